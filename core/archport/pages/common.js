"use strict";
// Readable against light and dark; Okabe and Ito's colours for the colour-blind.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#d55e00", "#c9b800", "#8a8f99", "#7b61c9", "#5b3a29",
  "#2a9d8f", "#b23a48"];
const $ = (id) => document.getElementById(id);
const bytes = (count) => {
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return (count / size).toPrecision(3) + " " + unit;
  }
  return count + " B";
};
const seconds = (time) => {
  if (time === 0) return "0 s";
  if (time < 1e-3) return (time * 1e6).toPrecision(3) + " µs";
  if (time < 1) return (time * 1e3).toPrecision(3) + " ms";
  return time < 600 ? time.toPrecision(3) + " s" : (time / 60).toPrecision(3) + " min";
};
const number = (value) => value.toLocaleString("en");
const make = (name, text, attributes = {}) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const swatches = (id, entries) => $(id).replaceChildren(...entries.map(([name, colour]) => {
  const entry = make("span", name);
  entry.style.setProperty("--swatch", colour);
  return entry;
}));
// Shares of a whole as one bar. Styles are set one by one: a Content-Security-Policy lets no style attribute in.
const bar = (id, shares) => $(id).replaceChildren(...shares.map(([share, colour]) => {
  const piece = make("div");
  piece.style.flex = String(share);
  piece.style.background = colour;
  return piece;
}));
// A text that is set again is read out again.
const setText = (id, text) => {
  if ($(id).textContent !== text) $(id).textContent = text;
};
// The page's own button turns the system's choice around; `draw` follows both.
const follow = (draw) => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    draw();
  });
  dark.addEventListener("change", draw);
};
