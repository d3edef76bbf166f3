// The overview: models × columns, each cell with interval and n, and a way to its items.
"use strict";

(() => {
  const { h, t, format: f } = CS;

  CS.estimateOf = (cell, category) => {
    if (!cell) return { reason: "notrun" };
    if (cell.reason) return cell;
    if (category) return cell.parts[category] ? { value: cell.parts[category] } : { reason: "category" };
    return { value: cell.metrics[cell.headline] };
  };

  function shown(column, model, category) {
    const cell = column.cells[model];
    const { value, reason } = CS.estimateOf(cell, category);
    if (!value) {
      return h("span", { class: "missing" }, f.MISSING, h("small", { text: t(`reason.${reason}`) }));
    }
    const mark = category ? "" : cell.mark || "";
    const rank = !category && cell.rank ? t("rank", { low: cell.rank[0], high: cell.rank[1] }) : "";
    const chance = !category && cell.chance;
    const notes = [
      t("interval95", { interval: f.interval(value) }),
      mark ? t(`mark.${mark}`) : "",
      chance ? t("chance") : "",
      rank,
    ].filter(Boolean);
    return h("a", {
      class: `cell ${mark}`, title: notes.join("\n"),
      href: CS.address(["items", column.key], { model, filter: "wrong" }),
    },
      h("span", { class: "value" }, chance ? h("span", { class: "mark", text: "≈" }) : null, f.percent(value[0])),
      h("span", { class: "half", text: ` ${f.half(value)}` }),
      h("small", { text: `n = ${f.count(value[3])}` }, rank ? ` · ${rank}` : ""),
      mark || chance ? h("span", { class: "hidden", text: `, ${notes.slice(1).join(", ")}` }) : null,
    );
  }

  function head(column) {
    const facts = [
      t(`split`, { split: column.split }), column.protocol, t("shots", { n: column.shots }),
      column.chat ? t("chatted") : "", column.limit ? t("limited", { n: column.limit }) : "",
    ];
    return h("span", { class: "head" }, h("b", { text: column.task }),
      h("small", { text: facts.filter(Boolean).join(" · ") }), h("small", { text: t(`average.${column.average}`) }));
  }

  CS.views.board = (main, { query }) => {
    const { site } = CS;
    const set = (key) => (value) => CS.go(CS.address([], { ...query, [key]: value }));
    const speaks = (column) => !query.language || column.language.split("+").includes(query.language);
    const has = (column) => !query.category || query.category in column.categories || query.category in column.groups;
    const columns = site.columns.filter((column) => speaks(column) && has(column));
    const models = site.models.filter((model) => !query.family || model.family === query.family);
    const families = [...new Set(site.models.map((model) => model.family))].sort();
    const categories = [...new Set(site.columns.filter(speaks).flatMap((column) =>
      [...Object.keys(column.categories), ...Object.keys(column.groups)]))].sort();
    const value = (column, model) => (CS.estimateOf(column.cells[model.name], query.category).value || [null])[0];
    const title = query.category ? t("board.category", { category: query.category }) : t("board.title");

    main.append(
      h("h1", { text: title }),
      h("p", { class: "lead", text: t("board.lead") }),
      h("form", { class: "controls", "aria-label": t("filters"), on: { submit: (event) => event.preventDefault() } },
        CS.select("by-language", t("language"), [["", t("all")], ["zh", t("zh")], ["en", t("en")]], query.language || "", set("language")),
        CS.select("by-category", t("category"), [["", t("all")], ...categories.map((one) => [one, one])], query.category || "", set("category")),
        CS.select("by-family", t("family"), [["", t("all")], ...families.map((one) => [one, one])], query.family || "", set("family")),
      ),
    );
    if (!columns.length || !models.length) {
      main.append(h("p", { class: "empty", text: t("nothing") }));
      return;
    }
    main.append(
      CS.table({
        caption: title, hidden: true, className: "board", id: "board", rows: models,
        sorted: [1, true],
        columns: [
          { label: t("model"), head: true, cell: (model) => h("span", { class: "model", text: model.name }), sort: (model) => model.name },
          ...columns.map((column) => ({
            label: head(column), spoken: column.title, numeric: true, title: column.title,
            cell: (model) => shown(column, model.name, query.category),
            sort: (model) => value(column, model),
          })),
        ],
      }),
      h("dl", { class: "legend" },
        h("dt", {}, h("b", { text: "68.7" })), h("dd", { text: t("mark.best") }),
        h("dt", {}, h("u", { text: "68.7" })), h("dd", { text: t("mark.tied") }),
        h("dt", { text: "≈" }), h("dd", { text: t("chance") }),
        h("dt", { text: f.MISSING }), h("dd", { text: t("legend.missing") })),
    );
    if (site.exclusions.length) {
      main.append(h("p", { class: "note", text: t("excluded", { lists: site.exclusions.map((one) => `${one.title} (${f.count(one.items)})`).join(", ") }) }));
    }
    main.append(protocols(columns));
  };

  function protocols(columns) {
    return h("details", { class: "protocols" }, h("summary", { text: t("protocols") }),
      CS.table({
        caption: t("protocols"), hidden: true, rows: columns,
        columns: [
          { label: t("benchmark"), head: true, cell: (column) => column.name },
          { label: t("protocol"), cell: (column) => column.title },
          { label: t("items"), numeric: true, cell: (column) => f.count(column.items) },
          { label: t("fingerprint"), cell: (column) => h("code", { text: column.sha.slice(0, 8), title: column.sha }) },
          { label: t("license"), cell: (column) => column.license },
          { label: t("note"), cell: (column) => column.note },
        ],
      }));
  }
})();
