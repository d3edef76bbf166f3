// The only place of the page where numbers become text.
"use strict";

CS.format = (() => {
  const MISSING = "–";
  const none = (value) => value === null || value === undefined;
  const percent = (value) => (none(value) ? MISSING : (100 * value).toFixed(1));
  const signed = (value, digits) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${Math.abs(value).toFixed(digits)}`;
  return {
    MISSING,
    percent,
    half: ([, low, high]) => `±${(50 * (high - low)).toFixed(1)}`,
    interval: ([, low, high]) => `${percent(low)}–${percent(high)}`,
    points: (value) => (none(value) ? MISSING : signed(100 * value, 1)),
    pointsInterval: ([, low, high]) => `${signed(100 * low, 1)} … ${signed(100 * high, 1)}`,
    count: (value) => (none(value) ? MISSING : value.toLocaleString("en-US")),
    p: (value) => (none(value) ? MISSING : value < 0.001 ? "<0.001" : value.toFixed(3)),
    margin: (thousandths) => (none(thousandths) ? MISSING : signed(thousandths / 1000, 2)),
    share: (value) => (none(value) ? MISSING : value < 0.0005 ? "<0.1 %" : `${(100 * value).toFixed(1)} %`),
    decimal: (value, digits = 3) => (none(value) ? MISSING : value.toFixed(digits)),
  };
})();
