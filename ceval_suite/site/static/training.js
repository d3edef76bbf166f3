// Training jobs: the official average of each checkpoint against its step, one chart a protocol.
"use strict";

(() => {
  const { h, t, format: f } = CS;

  CS.views.training = async (main) => {
    const curves = await CS.load("curves");
    main.append(h("h1", { text: t("training.title") }), h("p", { class: "lead", text: t("training.lead") }));
    for (const found of curves) {
      main.append(h("h2", { text: found.title }));
      await CS.charts.curves(main, {
        title: `${found.title}, ${found.average}`,
        series: found.series.map((one) => ({ name: one.name, points: one.points })),
        table: CS.table({
          caption: found.title, hidden: true,
          rows: found.series.flatMap((one) => one.points.map((point) => ({ name: one.name, point }))),
          columns: [
            { label: t("training.job"), head: true, cell: ({ name }) => name, sort: ({ name }) => name },
            { label: t("training.step"), numeric: true, cell: ({ point }) => f.count(point[0]), sort: ({ point }) => point[0] },
            { label: found.average, numeric: true, cell: ({ point }) => `${f.percent(point[1])} ${f.half(point.slice(1))}`, sort: ({ point }) => point[1] },
            { label: "n", numeric: true, cell: ({ point }) => f.count(point[4]) },
          ],
        }),
      });
    }
  };
})();
