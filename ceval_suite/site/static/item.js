// One item: what was asked, to the letter, and what every model answered.
"use strict";

(() => {
  const { h, t, format: f } = CS;
  const COLUMNS = 8;

  /** A prompt from its parts, as the model was asked it. */
  function rest(pattern, parts) {
    return pattern.map((one) => (typeof one === "number" ? parts[one] : one)).join("");
  }

  CS.item = async (column, found, place, { rank, total, previous, next, query }) => {
    const [number, at] = found.chunk(place);
    const [results, texts, heads] = await Promise.all([
      CS.load(`c/${column.key}/r${number}`),
      column.reason ? null : CS.load(`c/${column.key}/t${number}`),
      CS.load(`c/${column.key}/heads`),
    ]);
    const item = texts && texts.items[at];
    const passage = item && item[3] !== null ? texts.passages[item[3]] : "";
    const id = found.id(place);
    const gold = found.index.gold[place];
    const step = (to, label, sign) => (to ? h("a", { class: "step", href: to, title: label, "aria-label": label, text: sign }) : h("span", { class: "step off", "aria-hidden": "true", text: sign }));
    const out = [
      h("header", {},
        h("nav", { class: "steps", "aria-label": t("items.steps") }, step(previous, t("previous"), "←"),
          h("span", { text: rank === undefined ? t("outside") : t("position", { n: f.count(rank + 1), all: f.count(total) }) }), step(next, t("next"), "→")),
        h("h2", {}, CS.subjectTitle(column, found.subjects[place])),
        h("p", { class: "id" }, h("code", { text: id }), ...facts(item))),
    ];
    if (item) out.push(...question(item, passage, gold));
    else out.push(h("p", { class: "empty", text: t(`prompt.${column.reason || "changed"}`, { task: column.task }) }));
    out.push(h("h3", { text: t("answers") }), answers(column, found, place, results, at, gold));
    out.push(...written(found, results, at), ...siblings(column, found, place, query));
    if (item) {
      out.push(...prompts(column, found, results, at, heads, [passage, item[0], ...item[2]]));
      if (item[5]) out.push(h("details", {}, h("summary", { text: t("explanation") }), h("p", { class: "text", text: item[5] })));
    }
    return out;
  };

  function facts(item) {
    if (!item) return [];
    const [, , , , kind, , flags, year, part] = item;
    const some = [kind === "single" ? "" : t(`kind.${kind}`), part ? t("part", { n: part[0], all: part[1] }) : "", year, ...flags];
    return some.filter(Boolean).map((text) => h("span", { class: "tag", text }));
  }

  function question([text, labels, choices], passage, gold) {
    const right = new Set(gold);
    const out = [];
    if (passage) out.push(h("details", { class: "passage", open: passage.length < 1200 }, h("summary", { text: t("passage") }), h("p", { class: "text", text: passage })));
    out.push(h("p", { class: "question text", text }));
    if (choices.length) {
      out.push(h("ol", { class: "choices" }, labels.map((label, k) => h("li", { class: right.has(label) ? "gold" : null },
        h("b", { text: label }), h("span", { class: "text", text: choices[k] || "" }), right.has(label) ? h("span", { class: "goldmark", text: t("gold") }) : null))));
    } else out.push(h("p", {}, h("b", { text: `${t("gold")}: ` }), gold || t("nogold")));
    return out;
  }

  /** Shares among the scored answers; what all of them lack of 1 is not theirs. */
  function shares(values) {
    if (!values) return null;
    const known = values.filter((value) => value !== null);
    if (!known.length) return null;
    const top = Math.max(...known);
    const sum = known.reduce((total, value) => total + Math.exp((value - top) / 1000), 0);
    return values.map((value) => (value === null ? null : Math.exp((value - top) / 1000) / sum));
  }

  function answers(column, found, place, results, at, gold) {
    const keys = results.keys[results.labels[at]];
    const rows = found.models.map((name, k) => ({ name, k, state: found.index.states[k][place], values: results.models[k][0][at] }))
      .filter((row) => row.state !== "-");
    const best = [...keys.keys()].sort((one, two) => Math.max(...rows.map((row) => (row.values || [])[two] ?? -1e9)) - Math.max(...rows.map((row) => (row.values || [])[one] ?? -1e9)));
    const kept = keys.length <= COLUMNS ? [...keys.keys()] : best.slice(0, COLUMNS).sort((one, two) => one - two);
    const isGold = (key) => key === gold || (key.length === 1 && gold.includes(key) && !keys.includes(gold));
    const remark = (row) => (results.models[row.k][4][at] || [{}])[0];
    const bar = (row, place_) => {
      const found_ = shares(row.values);
      const share = found_ && found_[place_];
      if (share === null || share === undefined) return f.MISSING;
      const raw = row.values[place_];
      const bound = (remark(row).bounded || []).includes(keys[place_]) ? "≤ " : "";
      return h("span", { class: "bar", title: `${keys[place_]}: ${bound}log p = ${f.margin(raw)}` },
        h("i", { class: isGold(keys[place_]) ? "gold" : "", width: `${Math.max(1, 100 * share)}%` }), h("span", { text: `${bound}${f.share(share)}` }));
    };
    return CS.table({
      caption: t("answers"), hidden: true, className: "answers", rows,
      columns: [
        { label: t("model"), head: true, cell: (row) => h("span", { class: "model", text: row.name }) },
        { label: t("prediction"), cell: (row) => CS.sign(row.state, ` ${found.index.predictions[row.k][place] || t("state.u")}`) },
        ...kept.map((k) => ({ label: h("span", { class: isGold(keys[k]) ? "goldhead" : "" }, keys[k], isGold(keys[k]) ? h("span", { class: "hidden", text: ` ${t("gold")}` }) : ""), cell: (row) => bar(row, k) })),
        { label: t("margin"), title: t("margin.what"), numeric: true, cell: (row) => f.margin(found.index.margins[row.k][place]) },
        { label: t("mass"), title: t("mass.what"), numeric: true, cell: (row) => { const mass = results.models[row.k][1][at]; return mass === null ? f.MISSING : f.share(mass / 1000); } },
        { label: t("shotsshown"), numeric: true, cell: (row) => f.count(results.models[row.k][2][at]) },
        // a column that says nothing would only take room from the bars
        ...(rows.some((row) => remarks(remark(row))) ? [{ label: t("remarks"), cell: (row) => remarks(remark(row)) }] : []),
      ],
    });
  }

  function remarks({ tie, cut, score, bounded, methods = {}, opinions = {} }) {
    const some = [tie ? t("tie") : "", cut ? t("cut") : "", score ? t("score", { share: f.share(score) }) : "", bounded && bounded.length ? t("bounded") : ""];
    for (const [name, given] of Object.entries(methods)) some.push(`${name}: ${given || "–"}`);
    for (const [name, right] of Object.entries(opinions)) some.push(`${name}: ${right ? "✓" : "✗"}`);
    return some.filter(Boolean).join(", ");
  }

  function written(found, results, at) {
    const some = found.models.flatMap((name, k) => { const text = results.models[k][3][at]; return text === null ? [] : [[name, results.texts[text]]]; });
    if (!some.length) return [];
    return [h("h3", { text: t("written") }), ...some.map(([name, text]) => h("details", { open: some.length <= 3 }, h("summary", { text: name }), h("pre", { tabindex: "0", text: text || t("empty") })))];
  }

  function siblings(column, found, place, query) {
    const id = found.id(place);
    if (!id.includes("#")) return [];
    const stem = id.split("#")[0];
    const links = [];
    for (let k = 0; found.places.has(`${stem}#${k}`); k += 1) {
      const one = `${stem}#${k}`;
      links.push(h("li", {}, h("a", { href: CS.itemAddress(column.key, one, query), "aria-current": one === id ? "true" : null, text: `${k + 1}` },
        ...found.index.states.map((states) => CS.sign(states[found.places.get(one)])))));
    }
    return [h("h3", { text: t("siblings") }), h("ol", { class: "siblings" }, links)];
  }

  function prompts(column, found, results, at, heads, parts) {
    const variants = results.prompts[at] || [];
    if (!variants.length) return [];
    const states = results.states[at];
    const which = results.which[at];
    const names = (k) => found.models.filter((_, model) => which[model] === k);
    const proved = (k) => found.models.filter((_, model) => which[model] === k && states[model] === "ok");
    const doubts = [...new Set(states.filter((state) => state && state !== "ok"))];
    const box = h("div", { class: "prompt" });
    const draw = (k) => {
      const [head, pattern, lead, shots] = variants[k];
      const whole = rest(results.patterns[pattern], parts);
      const [own, ours] = [whole.slice(0, whole.length - lead), lead ? whole.slice(-lead) : ""];
      const text = heads[head];
      box.replaceChildren(...[
        h("p", { class: proved(k).length ? "proof" : "proof doubt" }, proved(k).length ? h("span", { class: "seal", "aria-hidden": "true", text: "✓" }) : null,
          proved(k).length ? t("proved", { models: proved(k).join(", ") }) : t("unproved", { models: names(k).join(", ") })),
        text ? h("details", { class: "shots" }, h("summary", { text: t(shots ? "head" : "head.bare", { shots, n: f.count(text.length) }) }), h("pre", { tabindex: "0", text })) : null,
        h("pre", { tabindex: "0", class: "ask", id: "prompt" }, own, ours ? h("mark", { title: t("ours"), text: ours }) : null),
        ours ? h("p", { class: "note", text: t("ours") }) : null,
      ].filter(Boolean));
    };
    draw(0);
    const out = [h("h3", { text: t("prompt") })];
    if (variants.length > 1) {
      out.push(CS.select("variant", t("variants", { n: variants.length }), variants.map(([, , , shots], k) => [String(k), `${t("shots", { n: shots })}: ${names(k).join(", ")}`]), "0", (value) => draw(Number(value))));
    }
    out.push(box, ...doubts.map((state) => h("p", { class: "note", text: t(`doubt.${state}`, { models: found.models.filter((_, k) => states[k] === state).join(", ") }) })));
    return out;
  }
})();
