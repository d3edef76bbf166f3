// Charts (ECharts, as SVG), each with its numbers as a table for those who cannot see it.
"use strict";

CS.charts = (() => {
  const { h, t, format: f } = CS;
  const MOST = 8;
  const SYMBOLS = ["circle", "rect", "triangle", "diamond", "roundRect", "pin", "arrow", "emptyCircle"];
  const LINES = ["solid", "dashed", "dotted"];
  let drawn = [];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = () => Array.from({ length: MOST }, (_, k) => css(`--series${k}`));

  function base() {
    const text = { color: css("--ink"), fontFamily: css("--font"), fontSize: 12 };
    return {
      animation: false, color: palette(), textStyle: text, aria: { enabled: false },
      legend: { type: "scroll", top: 0, textStyle: text, pageTextStyle: text, inactiveColor: css("--faint") },
      // rich text is drawn and never parsed, whatever a model is called
      tooltip: { renderMode: "richText", confine: true, backgroundColor: css("--panel"), borderColor: css("--line"), textStyle: text },
    };
  }

  const axis = (more = {}) => ({
    axisLine: { lineStyle: { color: css("--line") } }, axisTick: { show: false },
    splitLine: { lineStyle: { color: css("--line"), opacity: 0.6 } }, axisLabel: { color: css("--soft") }, ...more,
  });

  async function figure(main, { title, table, option, height = 360, className = "" }) {
    const box = h("div", { class: "chart", role: "img", "aria-label": title });
    box.style.height = `${height}px`;
    main.append(h("figure", { class: className }, h("figcaption", { text: title }), box,
      table ? h("details", {}, h("summary", { text: t("astable") }), table) : null));
    await CS.script("assets/vendor/echarts.min.js");
    if (!box.isConnected) return;
    const chart = window.echarts.init(box, null, { renderer: "svg" });
    chart.setOption(option);
    drawn.push(chart);
  }

  /** Bars with whiskers; a value is [value, low, high, n]. */
  function bars(main, { title, names, series, table }) {
    const colours = palette();
    const whisker = (k) => ({
      type: "custom", name: series[k].name, silent: true, tooltip: { show: false }, z: 5,
      data: series[k].values.flatMap((one, at) => (one ? [[at, 100 * one[1], 100 * one[2]]] : [])),
      renderItem: (params, api) => {
        const group = api.barLayout({ count: series.length, barGap: "10%", barCategoryGap: "30%" })[k];
        const from = api.coord([api.value(0), api.value(1)]);
        const to = api.coord([api.value(0), api.value(2)]);
        const x = from[0] + group.offsetCenter;
        const half = Math.min(5, group.width / 3);
        const line = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: css("--ink"), lineWidth: 1.2 } });
        return { type: "group", children: [line(x, from[1], x, to[1]), line(x - half, from[1], x + half, from[1]), line(x - half, to[1], x + half, to[1])] };
      },
    });
    return figure(main, {
      title, table,
      option: {
        ...base(),
        tooltip: { ...base().tooltip, trigger: "item", formatter: ({ seriesName, name, dataIndex, seriesIndex }) => {
          const one = series[seriesIndex] && series[seriesIndex].values[dataIndex];
          return one ? `${seriesName}\n${name}: ${f.percent(one[0])} ${f.half(one)}, n = ${f.count(one[3])}` : "";
        } },
        grid: { left: 44, right: 12, top: 44, bottom: 48 },
        xAxis: axis({ type: "category", data: names, axisLabel: { color: css("--soft"), interval: 0, hideOverlap: true, width: 110, overflow: "break" } }),
        yAxis: axis({ type: "value", min: 0, max: (range) => Math.min(100, Math.ceil((range.max + 12) / 20) * 20), name: "%" }),
        series: [
          ...series.map((one, k) => ({ type: "bar", name: one.name, barGap: "10%", barCategoryGap: "30%", itemStyle: { color: colours[k], borderRadius: [2, 2, 0, 0] }, data: one.values.map((found) => (found ? 100 * found[0] : null)) })),
          ...series.map((_, k) => whisker(k)),
        ],
      },
    });
  }

  function radar(main, { title, names, series }) {
    const most = Math.max(...series.flatMap((one) => one.values));
    const top = Math.min(1, Math.ceil(10 * most + 0.5) / 10);
    return figure(main, {
      title, height: 420, className: "narrow",
      option: {
        ...base(),
        radar: { center: ["50%", "57%"], radius: "72%", indicator: names.map((name) => ({ name, max: top })), axisName: { color: css("--soft") }, splitArea: { show: false }, splitLine: { lineStyle: { color: css("--line") } }, axisLine: { lineStyle: { color: css("--line") } } },
        tooltip: { ...base().tooltip, trigger: "item", formatter: ({ name, value }) => `${name}\n${names.map((one, k) => `${one}: ${f.percent(value[k])}`).join("\n")}` },
        series: [{ type: "radar", data: series.map((one, k) => ({ name: one.name, value: one.values, symbol: SYMBOLS[k % SYMBOLS.length], lineStyle: { type: LINES[k % LINES.length], width: 2 }, areaStyle: { opacity: 0.05 } })) }],
      },
    });
  }

  /** Accuracy over confidence; points are [confidence, accuracy, n]. */
  function reliability(main, { title, series, table }) {
    return figure(main, {
      title, table, height: 420, className: "narrow",
      option: {
        ...base(),
        grid: { left: 48, right: 16, top: 44, bottom: 44 },
        tooltip: { ...base().tooltip, trigger: "item", formatter: ({ seriesName, value }) => `${seriesName}\n${t("confidence")} ${f.percent(value[0] / 100)}, ${t("accuracy")} ${f.percent(value[1] / 100)}, n = ${f.count(value[2])}` },
        xAxis: axis({ type: "value", min: 0, max: 100, name: `${t("confidence")} %`, nameLocation: "middle", nameGap: 26 }),
        yAxis: axis({ type: "value", min: 0, max: 100, name: `${t("accuracy")} %` }),
        series: [
          { type: "line", name: t("perfect"), silent: true, symbol: "none", data: [[0, 0], [100, 100]], lineStyle: { color: css("--faint"), type: "dashed", width: 1 }, itemStyle: { color: css("--faint") }, tooltip: { show: false } },
          ...series.map((one, k) => ({ type: "line", name: one.name, data: one.points.map(([x, y, n]) => [100 * x, 100 * y, n]), symbol: SYMBOLS[k % SYMBOLS.length], symbolSize: (value) => 5 + Math.min(9, Math.sqrt(value[2]) / 4), itemStyle: { color: palette()[k] }, lineStyle: { color: palette()[k], type: LINES[k % LINES.length] } })),
        ],
      },
    });
  }

  /** Shares of letters: one group of bars per letter, the gold share as a line. */
  function letters(main, { title, names, gold, series, table }) {
    return figure(main, {
      title, table, height: 320, className: "narrow",
      option: {
        ...base(),
        grid: { left: 44, right: 12, top: 44, bottom: 28 },
        tooltip: { ...base().tooltip, trigger: "item", formatter: ({ seriesName, name, value }) => `${seriesName}\n${name}: ${f.share(value / 100)}` },
        xAxis: axis({ type: "category", data: names }),
        yAxis: axis({ type: "value", min: 0, name: "%" }),
        series: [
          ...series.map((one, k) => ({ type: "bar", name: one.name, barGap: "10%", itemStyle: { color: palette()[k] }, data: one.values.map((value) => 100 * value) })),
          { type: "scatter", name: t("goldshare"), symbol: "rect", symbolSize: [56, 3], z: 6, itemStyle: { color: css("--ink") }, data: gold.map((value) => 100 * value) },
        ],
      },
    });
  }

  /** Values against steps, with whiskers; points are [step, value, low, high, n]. */
  function curves(main, { title, series, table }) {
    const colours = palette();
    const whisker = (one, k) => ({
      type: "custom", name: one.name, silent: true, tooltip: { show: false },
      data: one.points.map(([step, , low, high]) => [step, 100 * low, 100 * high]), encode: { x: 0, y: [1, 2] },
      renderItem: (params, api) => {
        const from = api.coord([api.value(0), api.value(1)]);
        const to = api.coord([api.value(0), api.value(2)]);
        const line = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: colours[k % MOST], lineWidth: 1.2, opacity: 0.7 } });
        return { type: "group", children: [line(from[0], from[1], to[0], to[1]), ...[from, to].map(([x, y]) => line(x - 4, y, x + 4, y))] };
      },
    });
    return figure(main, {
      title, table,
      option: {
        ...base(),
        grid: { left: 48, right: 16, top: 44, bottom: 44 },
        tooltip: { ...base().tooltip, trigger: "item", formatter: ({ seriesName, dataIndex, seriesIndex }) => {
          const point = series[seriesIndex] && series[seriesIndex].points[dataIndex];
          return point ? `${seriesName}\n${t("training.step")} ${f.count(point[0])}: ${f.percent(point[1])} ${f.half(point.slice(1))}, n = ${f.count(point[4])}` : "";
        } },
        xAxis: axis({ type: "value", min: "dataMin", max: "dataMax", name: t("training.step"), nameLocation: "middle", nameGap: 26 }),
        yAxis: axis({ type: "value", scale: true, name: "%" }),
        series: [
          ...series.map((one, k) => ({ type: "line", name: one.name, data: one.points.map(([step, value]) => [step, 100 * value]), symbol: SYMBOLS[k % SYMBOLS.length], symbolSize: 8, itemStyle: { color: colours[k % MOST] }, lineStyle: { color: colours[k % MOST], type: LINES[k % LINES.length] } })),
          ...series.map(whisker),
        ],
      },
    });
  }

  function clear() {
    drawn.forEach((chart) => chart.dispose());
    drawn = [];
  }

  const resize = () => drawn.forEach((chart) => chart.resize());
  addEventListener("resize", resize);
  addEventListener("beforeprint", resize);
  return { MOST, bars, radar, reliability, letters, curves, clear };
})();
