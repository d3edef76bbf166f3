// The frame: navigation, language and theme, and which view an address shows.
"use strict";

(() => {
  const { h, t } = CS;
  const VIEWS = ["board", "subjects", "categories", "calibration", "items", "compare", "training", "tables"];
  const shown = () => VIEWS.filter((view) => view !== "training" || CS.site.curves); // most sites hold no training job
  const main = document.getElementById("main");
  let current = null;
  let turn = 0;
  CS.ready = [];

  CS.go = (hash) => {
    if (location.hash === hash) render();
    else location.hash = hash;
  };

  function frame() {
    document.documentElement.lang = CS.language === "zh" ? "zh-CN" : "en";
    const here = CS.route().parts[0] || "board";
    const open = here === "item" ? "items" : here;
    document.getElementById("nav").setAttribute("aria-label", t("nav"));
    document.getElementById("nav").replaceChildren(...shown().map((view) =>
      h("a", { href: view === "board" ? "#/" : CS.address([view]), "aria-current": view === open ? "page" : null, text: t(`nav.${view}`) })));
    document.getElementById("skip").textContent = t("skip");
    const language = document.getElementById("language");
    language.textContent = CS.language === "zh" ? "English" : "中文";
    language.lang = CS.language === "zh" ? "en" : "zh-CN";
    const theme = document.getElementById("theme");
    theme.textContent = dark() ? "☀" : "☾";
    theme.setAttribute("aria-label", t(dark() ? "theme.light" : "theme.dark"));
    theme.title = t(dark() ? "theme.light" : "theme.dark");
    document.getElementById("footer").replaceChildren(h("p", { text: t("built", { version: CS.site.version, time: CS.site.built }) }), h("p", { text: t("keys") }));
  }

  function dark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  /** Show what the address says; a view that can go on from where it is does so. */
  async function render(fresh = false) {
    const mine = (turn += 1);
    const route = CS.route();
    const view = CS.views[route.parts[0] || "board"] ? route.parts[0] || "board" : "board";
    frame();
    try {
      if (!fresh && current && current.update && (await current.update(route))) {
        title(view);
        return;
      }
      const focused = document.activeElement && document.activeElement.id;
      CS.charts.clear();
      const page = h("div", { class: `view ${view}` });
      main.replaceChildren(page);
      current = null;
      const made = await CS.views[view](page, route);
      if (mine !== turn) return;
      current = made || null;
      title(view);
      const again = focused && document.getElementById(focused);
      if (again) again.focus();
    } catch (error) {
      main.replaceChildren(h("p", { class: "empty", role: "alert", text: t("unreadable", { file: error.message }) }));
      throw error;
    }
  }

  function title(view) {
    document.title = `${t(`nav.${view === "item" ? "items" : view}`)} · ${CS.site.title}`;
    document.documentElement.dataset.ready = location.hash || "#/";
    CS.ready.push(performance.now()); // since the page was asked for
  }

  document.getElementById("language").addEventListener("click", () => {
    CS.language = CS.language === "zh" ? "en" : "zh";
    render(true);
  });
  document.getElementById("theme").addEventListener("click", () => {
    const chosen = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    CS.kept.set("theme", chosen);
    render(true);
  });
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is the view's
    main.focus();
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
    const box = event.target.closest("pre, .scroll");
    if (typing || (box && box.scrollWidth > box.clientWidth)) return; // the arrows scroll it
    if (event.key === "/") {
      const search = document.getElementById("search");
      if (search) { event.preventDefault(); search.focus(); }
    } else if (current && current.key && current.key(event)) event.preventDefault();
  });
  addEventListener("hashchange", () => render());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => render(true));
  const chosen = CS.kept.get("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  render(true);
})();
