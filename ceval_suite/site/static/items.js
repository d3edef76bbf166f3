// The item browser: a filtered, searchable list beside one item; arrow keys go through it.
"use strict";

(() => {
  const { h, t, format: f } = CS;
  const FILTERS = {
    all: () => true,
    right: (states) => states.every((state) => state === "r"),
    wrong: (states) => states.every((state) => "wup".includes(state)),
    unanswered: (states) => states.includes("u"),
    flipped: (states) => states.includes("r") && states.some((state) => "wup".includes(state)),
  };

  const fold = (text) => text.normalize("NFKC").toLowerCase();

  /** One column's index with what is worked out of it; kept while the page is open. */
  const opened = new Map();
  CS.open = async (column) => {
    if (!opened.has(column.key)) {
      const index = await CS.load(`c/${column.key}/index`);
      const subjects = [];
      index.subjects.forEach(([name, count]) => { for (let k = 0; k < count; k += 1) subjects.push(name); });
      const places = new Map(index.ids.map((id, place) => [index.prefix + id, place]));
      opened.set(column.key, {
        index, subjects, places, models: Object.keys(column.cells).sort(),
        id: (place) => index.prefix + index.ids[place],
        chunk(place) {
          let at = index.chunks.length - 1;
          while (index.chunks[at] > place) at -= 1;
          return [at, place - index.chunks[at]];
        },
        texts: null,
      });
    }
    return opened.get(column.key);
  };

  /** All texts of a column for searching, loaded when somebody searches. */
  async function searchable(column, found, progress) {
    if (found.texts) return found.texts;
    const texts = found.index.ids.map((id) => fold(found.index.prefix + id));
    if (!column.reason) {
      const { chunks } = found.index;
      for (let k = 0; k < chunks.length; k += 1) {
        progress(k / chunks.length);
        const { items, passages } = await CS.load(`c/${column.key}/t${k}`);
        items.forEach((item, place) => {
          if (!item) return;
          const [question, , choices, passage] = item;
          texts[chunks[k] + place] += `\n${fold([question, ...choices, passage === null ? "" : passages[passage]].join("\n"))}`;
        });
      }
    }
    progress(1);
    found.texts = texts;
    return texts;
  }

  async function chosen(column, found, query, progress) {
    const { index, models } = found;
    const who = models.indexOf(query.model);
    const filter = query.filter || "all";
    const [a, b] = [models.indexOf(query.a), models.indexOf(query.b)];
    const flips = a >= 0 && b >= 0 && ["fixed", "broke"].includes(filter);
    const words = fold(query.q || "").split(/\s+/).filter(Boolean);
    const texts = words.length ? await searchable(column, found, progress) : null;
    const fits = (place) => {
      if (query.subject && found.subjects[place] !== query.subject) return false;
      const states = index.states.map((one) => one[place]);
      if (flips) {
        const [from, to] = [states[a], states[b]];
        const wanted = filter === "fixed" ? "wup".includes(from) && to === "r" : from === "r" && "wup".includes(to);
        if (!wanted) return false;
      } else if (filter === "flipped") {
        const there = states.filter((state) => state !== "-");
        if (!FILTERS.flipped(there)) return false;
      } else if (FILTERS[filter]) {
        const some = who >= 0 ? [states[who]] : states.filter((state) => state !== "-");
        if (who >= 0 && some[0] === "-") return false;
        if (!FILTERS[filter](some)) return false;
      }
      return !texts || words.every((word) => texts[place].includes(word));
    };
    const places = index.ids.map((_, place) => place).filter(fits);
    const margin = marginOf(found, who, a, b, flips);
    if (query.sort === "margin" || query.sort === "-margin") {
      const sign = query.sort === "margin" ? 1 : -1;
      places.sort((one, two) => {
        const [x, y] = [margin(one), margin(two)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x - y);
      });
    }
    return { places, margin };
  }

  function marginOf(found, who, a, b, flips) {
    const { margins } = found.index;
    if (flips) return (place) => (margins[a][place] === null || margins[b][place] === null ? null : margins[b][place] - margins[a][place]);
    if (who >= 0) return (place) => margins[who][place];
    return (place) => {
      const some = margins.map((one) => one[place]).filter((value) => value !== null);
      return some.length ? some.reduce((sum, value) => sum + value, 0) / some.length : null;
    };
  }

  const SIGN = { r: "✓", w: "✗", u: "?", p: "◐", n: "·", "-": " " };
  CS.sign = (state, extra = "") =>
    h("span", { class: `state ${{ r: "right", w: "wrong", u: "none", p: "part" }[state] || "absent"}` },
      h("span", { "aria-hidden": "true", text: SIGN[state] }), h("span", { class: "hidden", text: t(`state.${state}`) }), extra);

  CS.views.items = async (main, route) => {
    const column = CS.column(route.parts[1]) || CS.site.columns[0];
    const found = await CS.open(column);
    const browser = new Browser(main, column, found);
    await browser.update(route);
    return browser;
  };
  CS.views.item = CS.views.items;

  class Browser {
    constructor(main, column, found) {
      Object.assign(this, { column, found, query: {}, places: [], list: null, at: null });
      this.controls = h("form", { class: "controls", "aria-label": t("filters"), on: { submit: (event) => event.preventDefault() } });
      this.count = h("p", { class: "count", role: "status" });
      this.box = h("div"); // as high as what is around it, so that only what is seen is drawn
      this.detail = h("article", { class: "detail", id: "detail", "aria-live": "off" });
      main.append(h("h1", { class: "hidden", text: t("items.title") }), this.controls,
        h("div", { class: "browser" }, h("section", { class: "side", "aria-label": t("items.list") }, this.count, h("div", { class: "list" }, this.box)), this.detail));
      this.head();
    }

    head() {
      const { column, found } = this;
      const set = (key) => (value) => this.go({ [key]: value });
      const subjects = found.index.subjects.map(([name, count]) => [name, `${CS.subjectTitle(column, name)} (${f.count(count)})`]);
      const { query } = CS.route();
      const filters = ["all", "right", "wrong", "unanswered", "flipped", ...(query.a && query.b ? ["fixed", "broke"] : [])];
      const search = h("input", { type: "search", id: "search", value: query.q || "", placeholder: t("search.hint"), autocomplete: "off" });
      let timer = null;
      const changed = (event) => {
        if (event.isComposing) return; // a Chinese word is not there yet
        clearTimeout(timer);
        timer = setTimeout(() => this.go({ q: search.value.trim() }), 250);
      };
      search.addEventListener("input", changed);
      search.addEventListener("compositionend", changed);
      this.controls.replaceChildren(
        CS.picker("items", column.key),
        CS.select("subject", t("subject"), [["", t("all")], ...subjects], query.subject || "", set("subject")),
        CS.select("model", t("model"), [["", t("everymodel")], ...found.models.map((name) => [name, name])], query.model || "", set("model")),
        CS.select("filter", t("show"), filters.map((name) => [name === "all" ? "" : name, t(`filter.${name}`)]), query.filter || "", set("filter")),
        CS.select("order", t("order"), [["", t("order.file")], ["margin", t("order.least")], ["-margin", t("order.most")]], query.sort || "", set("sort")),
        h("label", { class: "control wide" }, h("span", { text: t("search") }), search),
      );
    }

    /** Change filters; the item that is open stays open where it fits them. */
    go(change) {
      const query = { ...CS.route().query, ...change };
      const id = this.at === null ? null : this.found.id(this.at);
      const target = id ? CS.itemAddress(this.column.key, id, query) : CS.address(["items", this.column.key], query);
      history.replaceState(null, "", target);
      this.narrowed = true;
      this.update(CS.route());
    }

    async update(route) {
      if (!["items", "item"].includes(route.parts[0]) || (route.parts[1] || this.column.key) !== this.column.key) return false;
      const asked = JSON.stringify(route.query);
      if (asked !== this.asked) {
        this.asked = asked;
        this.query = route.query;
        const progress = (share) => { this.count.textContent = share < 1 ? t("searching", { percent: Math.round(100 * share) }) : ""; };
        const { places, margin } = await chosen(this.column, this.found, route.query, progress);
        if (asked !== this.asked) return true; // asked for something else meanwhile
        this.places = places;
        this.ranks = new Map(places.map((place, rank) => [place, rank]));
        this.margin = margin;
        await this.draw();
      }
      const id = route.parts.slice(2).join("/");
      let place = id ? this.found.places.get(id) : this.places[0];
      if (this.narrowed && !this.ranks.has(place)) {
        [place] = this.places;
        const first = place === undefined ? CS.address(["items", this.column.key], route.query) : CS.itemAddress(this.column.key, this.found.id(place), route.query);
        history.replaceState(null, "", first);
      }
      this.narrowed = false;
      await this.show(place, this.places.length || id ? id : "");
      return true;
    }

    rows() {
      const { index } = this.found;
      return this.places.map((place) => ({
        i: place, text: index.excerpts[place] || this.found.index.ids[place], margin: this.margin(place),
        states: index.states.map((one) => one[place]).join(""),
      }));
    }

    async draw() {
      this.count.textContent = t("count", { n: f.count(this.places.length), all: f.count(this.found.index.ids.length) });
      if (this.list) {
        await this.list.replaceData(this.rows());
        return;
      }
      const link = (cell) => {
        const row = cell.getData();
        return h("a", { href: CS.itemAddress(this.column.key, this.found.id(row.i), this.query), text: row.text, class: row.i === this.at ? "here" : "", "aria-current": row.i === this.at ? "true" : null });
      };
      const states = (cell) => h("span", { class: "states", title: this.found.models.map((name, k) => `${SIGN[cell.getValue()[k]]} ${name}`).join("\n") }, [...cell.getValue()].slice(0, 12).map((state) => CS.sign(state)));
      this.list = await CS.list(this.box, {
        rows: this.rows(), height: "100%", label: t("items.list"), empty: t("nothing"),
        columns: [
          { title: t("question"), field: "text", formatter: link, widthGrow: 4, headerSort: false },
          { title: t("models"), field: "states", formatter: states, width: Math.max(64, 20 + 18 * Math.min(12, this.found.models.length)), headerSort: false },
          { title: t("margin"), field: "margin", formatter: (cell) => f.margin(cell.getValue()), width: 74, hozAlign: "right", headerSort: false },
        ],
      });
    }

    async show(place, id) {
      const before = this.at;
      this.at = place === undefined ? null : place;
      if (place === undefined) {
        this.detail.replaceChildren(h("p", { class: "empty", text: id ? t("noitem", { id }) : t("nothing") }));
        return;
      }
      const rank = this.ranks.get(place);
      const step = (by) => {
        const next = this.places[(rank === undefined ? -1 : rank) + by];
        return next === undefined ? null : CS.itemAddress(this.column.key, this.found.id(next), this.query);
      };
      this.previous = step(-1);
      this.next = step(1);
      const shown = await CS.item(this.column, this.found, place, {
        rank, total: this.places.length, previous: this.previous, next: this.next, query: this.query,
      });
      if (this.at !== place) return;
      this.detail.replaceChildren(...shown);
      for (const one of [before, place]) {
        const row = one !== null && this.list && this.ranks.has(one) && this.list.getRow(one);
        if (row) row.reformat();
      }
      if (this.list && rank !== undefined) this.list.scrollToRow(place, "nearest", false).catch(() => {});
    }

    key(event) {
      const to = { ArrowLeft: this.previous, ArrowRight: this.next }[event.key];
      if (!to) return false;
      location.hash = to;
      return true;
    }
  }
})();
