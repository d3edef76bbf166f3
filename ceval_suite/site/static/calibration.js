// What probabilities say: reliability curves, calibration error, and which letters are preferred.
"use strict";

(() => {
  const { h, t, format: f } = CS;

  /** A value with its interval; of a single cluster there is none. */
  function withInterval(one, show) {
    if (!one) return f.MISSING;
    return one.low === null || one.low === undefined ? show(one.value) : `${show(one.value)} (${show(one.low)}–${show(one.high)})`;
  }

  CS.views.calibration = async (main, { parts }) => {
    const column = CS.column(parts[1]) || CS.site.columns[0];
    const details = await CS.load(`c/${column.key}/summary`);
    const models = CS.modelsOf(column);
    main.append(h("h1", { text: t("calibration.title") }), h("p", { class: "lead", text: t("calibration.lead") }),
      h("div", { class: "controls" }, CS.picker("calibration", column.key)));
    await curves(main, models, details);
    await preferences(main, models, details);
  };

  async function curves(main, models, details) {
    const some = models.filter((model) => details[model].calibration && details[model].calibration.bins);
    main.append(h("h2", { text: t("calibration.curves") }));
    if (!some.length) {
      main.append(h("p", { class: "empty", text: t("calibration.none") }));
      return;
    }
    const number = (value) => f.decimal(value, 3);
    const scalar = (found, key) => (found && typeof found[key] === "object" && found[key] ? withInterval(found[key], number) : f.decimal(found && found[key], 3));
    const table = CS.table({
      caption: t("calibration.table"), rows: some,
      columns: [
        { label: t("model"), head: true, cell: (model) => model, sort: (model) => model },
        { label: "n", numeric: true, cell: (model) => f.count(details[model].calibration.n) },
        { label: "ECE", numeric: true, cell: (model) => scalar(details[model].calibration, "ece"), sort: (model) => (details[model].calibration.ece || {}).value },
        { label: t("calibration.tempered"), title: t("calibration.fitted"), numeric: true, cell: (model) => scalar(details[model].calibration.temperature, "ece") },
        { label: "Brier", numeric: true, cell: (model) => scalar(details[model].calibration, "brier") },
        { label: "NLL", numeric: true, cell: (model) => scalar(details[model].calibration, "nll") },
        { label: t("confidence"), numeric: true, cell: (model) => f.decimal(details[model].calibration.confidence, 3) },
        { label: t("choicemass"), numeric: true, cell: (model) => f.decimal(details[model].choice_mass, 3) },
      ],
    });
    main.append(table);
    const points = (model) => details[model].calibration.bins.filter((bin) => bin.n && bin.confidence !== null).map((bin) => [bin.confidence, bin.accuracy, bin.n]);
    await CS.charts.reliability(main, {
      title: t("calibration.curves"),
      series: some.slice(0, CS.charts.MOST).map((model) => ({ name: model, points: points(model) })),
      table: CS.table({
        caption: t("calibration.curves"), hidden: true,
        rows: some.flatMap((model) => points(model).map((point) => [model, ...point])),
        columns: [
          { label: t("model"), head: true, cell: ([model]) => model },
          { label: t("confidence"), numeric: true, cell: ([, value]) => f.percent(value) },
          { label: t("accuracy"), numeric: true, cell: ([, , value]) => f.percent(value) },
          { label: "n", numeric: true, cell: ([, , , n]) => f.count(n) },
        ],
      }),
    });
  }

  async function preferences(main, models, details) {
    const labels = (model) => (details[model].bias || {}).labels || details[model].letters || {};
    const some = models.filter((model) => Object.keys(labels(model)).length);
    main.append(h("h2", { text: t("bias.title") }));
    if (!some.length) {
      main.append(h("p", { class: "empty", text: t("bias.none") }));
      return;
    }
    const names = [...new Set(some.flatMap((model) => Object.keys(labels(model))))].sort();
    const sum = (model, kind) => Object.values(labels(model)).reduce((total, one) => total + (one[kind] || 0), 0) || 1;
    const share = (model, name, kind) => ((labels(model)[name] || {})[kind] || 0) / sum(model, kind);
    const table = CS.table({
      caption: t("bias.table"), hidden: true, rows: some,
      columns: [
        { label: t("model"), head: true, cell: (model) => model, sort: (model) => model },
        ...names.map((name) => ({
          label: name, numeric: true, sort: (model) => share(model, name, "predicted"),
          cell: (model) => {
            const recall = (labels(model)[name] || {}).recall;
            const value = typeof recall === "object" && recall ? recall.value : recall;
            return h("span", {}, f.share(share(model, name, "predicted")),
              h("small", { text: value === undefined || value === null ? "" : ` ${t("recall")} ${f.percent(value)}` }));
          },
        })),
        { label: t("bias.p"), numeric: true, cell: (model) => f.p((details[model].bias || {}).p), sort: (model) => (details[model].bias || {}).p },
        { label: t("bias.corrected"), numeric: true, cell: (model) => {
          const found = (details[model].bias || {}).prior_corrected;
          return found ? `${f.percent(found.value)} ${f.half([found.value, found.low, found.high])}` : f.MISSING;
        } },
      ],
    });
    main.append(h("p", { class: "note", text: t("bias.lead") }), table);
    await CS.charts.letters(main, {
      title: t("bias.chart"), names,
      gold: names.map((name) => share(some[0], name, "gold")),
      series: some.slice(0, CS.charts.MOST).map((model) => ({ name: model, values: names.map((name) => share(model, name, "predicted")) })),
    });
  }
})();
