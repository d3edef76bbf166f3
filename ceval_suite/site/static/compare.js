// Two models, item by item: differences with intervals and tests, flips, fixed and broken items.
"use strict";

(() => {
  const { h, t, format: f } = CS;

  function pairOf(pairs, key, a, b) {
    for (const pair of pairs[key] || []) {
      if (pair.models[0] === a && pair.models[1] === b) return [pair, 1];
      if (pair.models[0] === b && pair.models[1] === a) return [pair, -1];
    }
    return [null, 1];
  }

  const turned = ([value, low, high], sign) => (sign > 0 ? [value, low, high] : [-value, -high, -low]);

  CS.views.compare = async (main, { parts }) => {
    const { site } = CS;
    const names = site.models.map((model) => model.name);
    main.append(h("h1", { text: t("compare.title") }), h("p", { class: "lead", text: t("compare.lead") }));
    if (names.length < 2) {
      main.append(h("p", { class: "empty", text: t("compare.one") }));
      return;
    }
    const column = CS.column(parts[1]) || site.columns.find((one) => Object.keys(one.cells).length > 1) || site.columns[0];
    const there = CS.modelsOf(column);
    const a = parts[2] || there[0] || names[0];
    const b = parts[3] || there.find((name) => name !== a) || names.find((name) => name !== a);
    const go = (...to) => CS.go(CS.address(["compare", ...to]));
    main.append(h("form", { class: "controls", "aria-label": t("filters"), on: { submit: (event) => event.preventDefault() } },
      CS.select("first", t("compare.a"), names.map((name) => [name, name]), a, (value) => go(column.key, value, b)),
      CS.select("second", t("compare.b"), names.map((name) => [name, name]), b, (value) => go(column.key, a, value)),
      h("button", { type: "button", id: "swap", text: t("compare.swap"), on: { click: () => go(column.key, b, a) } })));
    if (a === b) {
      main.append(h("p", { class: "empty", text: t("compare.same") }));
      return;
    }
    const pairs = await CS.load("pairs");
    main.append(differences(pairs, a, b, column), h("h2", { text: t("compare.items") }),
      h("div", { class: "controls" }, CS.select("column", t("benchmark"), site.columns.map((one) => [one.key, one.title]), column.key, (value) => go(value, a, b))));
    if (!(a in column.cells) || !(b in column.cells)) {
      main.append(h("p", { class: "empty", text: t("compare.absent") }));
      return;
    }
    await flips(main, column, a, b);
  };

  function differences(pairs, a, b, current) {
    const rows = CS.site.columns.filter((column) => a in column.cells && b in column.cells).map((column) => {
      const [pair, sign] = pairOf(pairs, column.key, a, b);
      const [name] = pair ? Object.keys(pair.averages) : [];
      const three = name && pair.averages[name];
      return { column, pair, sign, name, first: three && three[sign > 0 ? 0 : 1], second: three && three[sign > 0 ? 1 : 0], change: three && turned(three[2], sign) };
    });
    const direction = (row) => (row.pair && row.pair.p < 0.05 ? (row.change[0] > 0 ? "▲" : "▼") : "≈");
    return CS.table({
      caption: t("compare.table", { a, b }), className: "differences", rows,
      columns: [
        { label: t("benchmark"), head: true, cell: (row) => h("a", { href: CS.address(["compare", row.column.key, a, b]), "aria-current": row.column === current ? "true" : null, text: row.column.title }), sort: (row) => row.column.title },
        { label: t("averagename"), cell: (row) => row.name || "" },
        { label: a, numeric: true, cell: (row) => f.percent(row.first && row.first[0]) },
        { label: b, numeric: true, cell: (row) => f.percent(row.second && row.second[0]) },
        { label: t("difference"), numeric: true, sort: (row) => row.change && row.change[0], cell: (row) => (row.change ? h("span", {}, h("span", { class: "value", text: `${direction(row)} ${f.points(row.change[0])}` }), h("small", { text: ` ${f.pointsInterval(row.change)}` })) : h("span", { class: "missing" }, f.MISSING, h("small", { text: t("compare.unmade") }))) },
        { label: "p", title: t("compare.p"), numeric: true, sort: (row) => row.pair && row.pair.p, cell: (row) => f.p(row.pair && row.pair.p) },
        { label: "n", numeric: true, cell: (row) => f.count(row.pair && row.pair.labelled) },
        { label: t("fixed"), numeric: true, cell: (row) => f.count(row.pair && (row.sign > 0 ? row.pair.fixed : row.pair.broke)) },
        { label: t("broke"), numeric: true, cell: (row) => f.count(row.pair && (row.sign > 0 ? row.pair.broke : row.pair.fixed)) },
        { label: t("remarks"), cell: (row) => remark(row.pair) },
      ],
    });
  }

  function remark(pair) {
    if (!pair) return "";
    const alone = pair.alone[0] + pair.alone[1];
    return [
      pair.same_tokenizer === false ? t("tokenizers.differ") : "",
      pair.shots_differ ? t("shots.differ", { n: f.count(pair.shots_differ) }) : "",
      alone ? t("alone", { n: f.count(alone) }) : "",
      pair.clustered ? t("clustered") : "",
    ].filter(Boolean).join("; ");
  }

  async function flips(main, column, a, b) {
    const found = await CS.open(column);
    const { index } = found;
    const [one, two] = [found.models.indexOf(a), found.models.indexOf(b)];
    const counts = { rr: 0, rw: 0, wr: 0, same: 0, other: 0 };
    const lists = { fixed: [], broke: [] };
    const [first, second] = [index.margins[one], index.margins[two]];
    index.ids.forEach((_, i) => {
      const [from, to] = [index.states[one][i], index.states[two][i]];
      if ("-n".includes(from) || "-n".includes(to)) return;
      const row = { i, text: index.excerpts[i] || index.ids[i], subject: CS.subjectTitle(column, found.subjects[i]), given: `${index.predictions[one][i] || "–"} → ${index.predictions[two][i] || "–"}`, change: first[i] === null || second[i] === null ? null : second[i] - first[i] };
      if (from === "r" && to === "r") counts.rr += 1;
      else if (from === "r") { counts.rw += 1; lists.broke.push(row); }
      else if (to === "r") { counts.wr += 1; lists.fixed.push(row); }
      else counts[index.predictions[one][i] === index.predictions[two][i] ? "same" : "other"] += 1;
    });
    const rows = [
      [t("matrix.right"), counts.rr, f.MISSING, counts.rw],
      [t("matrix.wrong"), counts.wr, counts.same, counts.other],
    ];
    // an answer that was right and is wrong cannot be the same
    const cell = (place) => (row) => (typeof row[place] === "number" ? f.count(row[place]) : row[place]);
    main.append(CS.table({
      caption: t("matrix.caption", { a, b }), className: "matrix", id: "matrix", rows,
      columns: [
        { label: `${a} ↓ · ${b} →`, head: true, cell: cell(0) }, { label: t("matrix.right"), numeric: true, cell: cell(1) },
        { label: t("matrix.samewrong"), numeric: true, cell: cell(2) }, { label: t("matrix.otherwrong"), numeric: true, cell: cell(3) },
      ],
    }));
    for (const kind of ["fixed", "broke"]) {
      const query = { a, b, filter: kind, sort: kind === "fixed" ? "-margin" : "margin" };
      const sign = kind === "fixed" ? -1 : 1;
      const some = lists[kind].sort((x, y) => (x.change === null) - (y.change === null) || sign * (x.change - y.change));
      const box = h("div", { class: "flips", id: kind });
      main.append(h("section", {}, h("h3", { text: t(`compare.${kind}`, { n: f.count(some.length), a, b }) }),
        some.length ? h("p", {}, h("a", { href: CS.address(["items", column.key], query), text: t("compare.browse") })) : null, box));
      if (!some.length) continue;
      await CS.list(box, {
        rows: some, height: `${Math.min(360, 44 + 34 * some.length)}px`, label: t(`compare.${kind}`, { n: some.length, a, b }), empty: t("nothing"),
        columns: [
          { title: t("question"), field: "text", widthGrow: 4, formatter: (cell_) => h("a", { href: CS.itemAddress(column.key, found.id(cell_.getData().i), query), text: cell_.getValue() }) },
          { title: t("subject"), field: "subject", widthGrow: 1.2 },
          { title: t("prediction"), field: "given", width: 120 },
          { title: t("marginchange"), field: "change", width: 150, hozAlign: "right", formatter: (cell_) => f.margin(cell_.getValue()) },
        ],
      });
    }
  }
})();
