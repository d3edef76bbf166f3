// Tables: semantic ones that sort, for what fits a page; a virtual list for tens of thousands.
"use strict";

(() => {
  const { h, t } = CS;

  function compare(one, two) {
    const [first, second] = [one, two].map((value) => value === null || value === undefined);
    if (first || second) return first - second; // what is missing comes last, whichever the order
    return typeof one === "number" && typeof two === "number" ? one - two : String(one).localeCompare(String(two));
  }

  /**
   * A table that sorts by its column heads.
   *
   * columns: {label, title, numeric, cell(row) → node or text, sort(row) → value, head: true for
   * row heads}; rows: anything. `sorted` is [column, descending].
   */
  CS.table = ({ caption, hidden, columns, rows, sorted = null, className = "", id = "" }) => {
    let order = sorted;
    const body = h("tbody");
    const heads = columns.map((column, place) => {
      const cell = h("th", { scope: "col", class: column.numeric ? "number" : null });
      if (!column.sort) {
        cell.append(h("span", { title: column.title || null }, column.label));
        return cell;
      }
      cell.append(
        h("button", {
          type: "button", class: "sort", title: column.title || null,
          on: {
            click: () => {
              const down = order && order[0] === place ? !order[1] : Boolean(column.numeric);
              order = [place, down];
              draw();
              CS.say(t("sorted", { column: column.spoken || String(column.label) }));
            },
          },
        }, column.label, h("span", { class: "arrow", "aria-hidden": "true" })),
      );
      return cell;
    });

    function draw() {
      const shown = [...rows];
      if (order) {
        const value = columns[order[0]].sort;
        shown.sort((one, two) => {
          const [a, b] = [value(one), value(two)];
          const missing = [a, b].some((found) => found === null || found === undefined);
          return compare(a, b) * (order[1] && !missing ? -1 : 1);
        });
      }
      heads.forEach((cell, place) => {
        if (!columns[place].sort) return;
        const mine = order && order[0] === place;
        cell.setAttribute("aria-sort", mine ? (order[1] ? "descending" : "ascending") : "none");
      });
      body.replaceChildren(
        ...shown.map((row) =>
          h("tr", {}, columns.map((column) => {
            const made = column.cell(row);
            const classes = [column.numeric ? "number" : "", (column.className && column.className(row)) || ""];
            return h(column.head ? "th" : "td", {
              scope: column.head ? "row" : null,
              class: classes.filter(Boolean).join(" ") || null,
            }, made);
          })),
        ),
      );
    }

    draw();
    const table = h("table", { class: className || null, id: id || null },
      h("caption", { class: hidden ? "hidden" : null, text: caption }),
      h("thead", {}, h("tr", {}, heads)), body);
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
  };

  /** A list of any length, of which only what is seen is drawn (Tabulator). */
  CS.list = async (place, { columns, rows, height, label, empty }) => {
    await CS.script("assets/vendor/tabulator.min.js");
    place.setAttribute("aria-label", label);
    return new Promise((resolve) => {
      const list = new window.Tabulator(place, {
        data: rows, height, columns, layout: "fitColumns", index: "i", headerSortTristate: true,
        placeholder: () => h("p", { class: "empty", text: empty }),
        columnDefaults: { headerSort: true, resizable: false, headerWordWrap: false },
      });
      list.on("tableBuilt", () => resolve(list));
    });
  };

  CS.select = (id, label, options, value, change) => {
    const control = h("select", { id, on: { change: (event) => change(event.target.value) } },
      options.map(([key, text]) => h("option", { value: key, text, selected: key === value })));
    return h("label", { class: "control" }, h("span", { text: label }), control);
  };
})();
