// Tables made when the site was built: models, tokenizers, quantised forms, bits per byte.
"use strict";

(() => {
  const { h, t } = CS;

  CS.views.tables = async (main) => {
    const tables = await CS.load("tables");
    main.append(h("h1", { text: t("tables.title") }), h("p", { class: "lead", text: t("tables.lead") }));
    if (!tables.length) main.append(h("p", { class: "empty", text: t("tables.none") }));
    for (const found of tables) {
      main.append(
        h("h2", { text: t(`table.${found.title}`) === `table.${found.title}` ? found.title : t(`table.${found.title}`) }),
        CS.table({
          caption: found.title, hidden: true, rows: found.rows,
          columns: found.columns.map((label, place) => ({
            label, head: place === 0, numeric: found.numeric.includes(place),
            cell: (row) => row[place][0], sort: (row) => row[place][1],
          })),
        }),
        h("ul", { class: "notes" }, found.notes.map((note) => h("li", { text: note }))),
      );
    }
  };
})();
