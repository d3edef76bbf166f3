// The page's ground: data that registers itself, elements made of text alone, words, addresses.
"use strict";

window.CS = (() => {
  const values = new Map();
  const scripts = new Map();

  /** Called by every data script: keep its content under its name. */
  function data(name, value) {
    values.set(name, value);
  }

  /** Load a script once; nothing can be fetched from disk, but scripts can be run from it. */
  function script(src) {
    if (!scripts.has(src)) {
      scripts.set(
        src,
        new Promise((resolve, reject) => {
          const tag = document.createElement("script");
          tag.src = src;
          tag.onload = () => resolve();
          tag.onerror = () => {
            scripts.delete(src);
            reject(new Error(src));
          };
          document.head.append(tag);
        }),
      );
    }
    return scripts.get(src);
  }

  /** The content of data/<name>.js, loaded when it is first needed. */
  async function load(name) {
    if (!values.has(name)) await script(`data/${name}.js`);
    if (!values.has(name)) throw new Error(`data/${name}.js`);
    return values.get(name);
  }

  /**
   * An element. `options` are attributes, but for `text` (its text), `on` (listeners), `width`
   * (a style) and `props` (properties); children are nodes or texts. Markup is never parsed.
   */
  function h(tag, options = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "text") element.textContent = value;
      else if (key === "on") {
        for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
      } else if (key === "props") Object.assign(element, value);
      else if (key === "width") element.style.width = value;
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  const kept = {
    get(key) {
      try {
        return localStorage.getItem(`ceval-suite.${key}`);
      } catch {
        return null; // storage may be refused to a page from disk
      }
    },
    set(key, value) {
      try {
        localStorage.setItem(`ceval-suite.${key}`, value);
      } catch {
        // the choice then lasts as long as the page
      }
    },
  };

  let language = kept.get("language") || ((navigator.language || "").startsWith("zh") ? "zh" : "en");

  /** A word of the interface, with {names} filled in. */
  function t(key, parts = {}) {
    const words = values.get("words") || {};
    const found = (words[language] || {})[key] || (words.en || {})[key] || key;
    return found.replace(/\{(\w+)\}/g, (_, name) => (name in parts ? String(parts[name]) : ""));
  }

  function address(parts, query = {}) {
    const some = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
    const asked = some.length ? `?${new URLSearchParams(some)}` : "";
    return `#/${parts.map(encodeURIComponent).join("/")}${asked}`;
  }

  function itemAddress(column, id, query = {}) {
    return address(["item", column, ...id.split("/")], query);
  }

  function route() {
    const [path, asked = ""] = location.hash.replace(/^#\/?/, "").split("?");
    const parts = path
      .split("/")
      .filter((part) => part !== "")
      .map((part) => {
        try {
          return decodeURIComponent(part);
        } catch {
          return part;
        }
      });
    return { parts, query: Object.fromEntries(new URLSearchParams(asked)) };
  }

  /** Let a screen reader say what changed. */
  function say(text) {
    document.getElementById("live").textContent = text;
  }

  return {
    data, script, load, h, t, kept, address, itemAddress, route, say,
    views: {},
    get language() { return language; },
    set language(value) { language = value; kept.set("language", value); },
    get site() { return values.get("site"); },
    column(key) { return values.get("site").columns.find((column) => column.key === key); },
  };
})();
