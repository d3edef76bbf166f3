// A heat map of subjects × models, and categories as bars and radar with intervals.
"use strict";

(() => {
  const { h, t, format: f } = CS;
  const STEPS = 9;

  /** A subject in the reader's language: its title, or the file's name without underscores. */
  CS.subjectTitle = (column, name) => {
    const found = column.subjects.find(([key]) => key === name);
    const plain = name.replaceAll("_", " ").replaceAll("-", " ");
    const title = found && found[1];
    if (!title) return plain;
    const chinese = /[\u3400-\u9fff]/.test(title);
    return chinese === (CS.language === "zh") ? title : plain;
  };

  CS.picker = (view, key, query = {}) =>
    CS.select("column", t("benchmark"), CS.site.columns.map((column) => [column.key, column.title]), key,
      (value) => CS.go(CS.address([view, value], query)));

  const modelsOf = (column) => CS.site.models.map((model) => model.name).filter((name) => name in column.cells);
  CS.modelsOf = modelsOf;

  CS.views.subjects = async (main, { parts }) => {
    const column = CS.column(parts[1]) || CS.site.columns[0];
    const details = await CS.load(`c/${column.key}/summary`);
    const models = modelsOf(column).filter((name) => Object.keys(details[name].subjects).length);
    main.append(h("h1", { text: t("subjects.title") }), h("p", { class: "lead", text: t("subjects.lead") }),
      h("div", { class: "controls" }, CS.picker("subjects", column.key)));
    if (!models.length) {
      main.append(h("p", { class: "empty", text: t("nolabels") }));
      return;
    }
    const rows = column.subjects.map(([name]) => name).filter((name) => models.some((model) => details[model].subjects[name]));
    const all = rows.flatMap((name) => models.map((model) => details[model].subjects[name]).filter(Boolean).map(([value]) => value));
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const step = (value) => Math.round(((value - least) / (most - least || 1)) * (STEPS - 1));
    const cell = (name, model) => details[model].subjects[name];
    main.append(
      h("p", { class: "scale", "aria-hidden": "true" }, f.percent(least),
        h("span", { class: "ramp" }, Array.from({ length: STEPS }, (_, k) => h("i", { class: `heat${k}` }))), f.percent(most)),
      CS.table({
        caption: `${t("subjects.title")}: ${column.title}`, hidden: true, className: "heat", id: "heat", rows,
        columns: [
          { label: t("subject"), head: true, cell: (name) => h("span", { title: name, text: CS.subjectTitle(column, name) }), sort: (name) => CS.subjectTitle(column, name) },
          ...(Object.keys(column.categories).length ? [{ label: t("category"), cell: (name) => h("small", { text: column.subjects.find(([key]) => key === name)[2] }), sort: (name) => column.subjects.find(([key]) => key === name)[2] }] : []),
          { label: "n", numeric: true, cell: (name) => f.count((models.map((model) => cell(name, model)).find(Boolean) || [])[3]), sort: (name) => (models.map((model) => cell(name, model)).find(Boolean) || [])[3] },
          ...models.map((model) => ({
            label: model, numeric: true, sort: (name) => (cell(name, model) || [null])[0],
            className: (name) => (cell(name, model) ? `heat${step(cell(name, model)[0])}` : "missing"),
            cell: (name) => {
              const found = cell(name, model);
              if (!found) return f.MISSING;
              return h("a", {
                href: CS.address(["items", column.key], { subject: name, model }),
                title: `${CS.subjectTitle(column, name)}, ${model}\n${t("interval95", { interval: f.interval(found) })}, n = ${f.count(found[3])}`,
              }, f.percent(found[0]), h("small", { text: ` ${f.half(found)}` }));
            },
          })),
        ],
      }));
  };

  CS.views.categories = async (main, { parts }) => {
    const column = CS.column(parts[1]) || CS.site.columns[0];
    main.append(h("h1", { text: t("categories.title") }), h("p", { class: "lead", text: t("categories.lead") }),
      h("div", { class: "controls" }, CS.picker("categories", column.key)));
    const models = modelsOf(column).filter((name) => column.cells[name].parts)
      .sort((one, two) => CS.estimateOf(column.cells[two]).value[0] - CS.estimateOf(column.cells[one]).value[0]);
    const names = [...new Set(models.flatMap((model) => Object.keys(column.cells[model].parts)))];
    if (!names.length) {
      main.append(h("p", { class: "empty", text: models.length ? t("nocategories") : t("nolabels") }));
      return;
    }
    const some = models.slice(0, CS.charts.MOST);
    if (some.length < models.length) main.append(h("p", { class: "note", text: t("chartmost", { n: some.length, all: models.length }) }));
    const value = (model, name) => column.cells[model].parts[name];
    const table = CS.table({
      caption: t("categories.title"), hidden: true, rows: names,
      columns: [
        { label: t("category"), head: true, cell: (name) => name, sort: (name) => name },
        ...models.map((model) => ({
          label: model, numeric: true, sort: (name) => (value(model, name) || [null])[0],
          cell: (name) => (value(model, name) ? `${f.percent(value(model, name)[0])} ${f.half(value(model, name))} (n = ${f.count(value(model, name)[3])})` : f.MISSING),
        })),
      ],
    });
    await CS.charts.bars(main, {
      title: t("categories.bars"), names, table,
      series: some.map((model) => ({ name: model, values: names.map((name) => value(model, name) || null) })),
    });
    const round = names.filter((name) => name in column.categories);
    if (round.length >= 3) {
      await CS.charts.radar(main, {
        title: t("categories.radar"), names: round,
        series: some.map((model) => ({ name: model, values: round.map((name) => (value(model, name) || [0])[0]) })),
      });
    }
  };
})();
