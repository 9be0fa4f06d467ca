"use strict";
// Figures are drawn when they come near the view; colours follow the page; a method hides everywhere at once.
const plots = [...document.querySelectorAll(".plot")];
const hidden = new Set();

function colours() {
  const style = getComputedStyle(document.documentElement);
  const [text, ground, line] = ["--text", "--raised", "--line"].map((name) => style.getPropertyValue(name).trim());
  return {
    "font.color": text,
    "hoverlabel.bgcolor": ground,
    "hoverlabel.bordercolor": line,
    "hoverlabel.font.color": text,
  };
}

function shown(trace) {
  return !hidden.has(trace.legendgroup);
}

function draw(plot) {
  if (plot.drawn) return;
  const source = plot.querySelector("script");
  const figure = JSON.parse(source.textContent);
  plot.drawn = true;
  for (const trace of figure.data) trace.visible = shown(trace);
  Plotly.newPlot(plot, figure.data, figure.layout, {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  });
  Plotly.relayout(plot, colours());
}

const watcher = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "600px" },
);
plots.forEach((plot) => watcher.observe(plot));

function toggle(button) {
  const method = button.dataset.method;
  const show = hidden.has(method);
  if (show) hidden.delete(method);
  else hidden.add(method);
  button.setAttribute("aria-pressed", String(show));
  for (const row of document.querySelectorAll("tr[data-method]")) {
    row.classList.toggle("hidden", hidden.has(row.dataset.method));
  }
  for (const plot of plots.filter((each) => each.drawn)) {
    Plotly.restyle(plot, { visible: plot.data.map(shown) });
  }
}

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => toggle(button));
}

function recolour() {
  for (const plot of plots.filter((each) => each.drawn)) Plotly.relayout(plot, colours());
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
matchMedia("print").addEventListener("change", (event) => {
  if (event.matches) plots.forEach(draw);
  for (const plot of plots.filter((each) => each.drawn)) Plotly.Plots.resize(plot);
  recolour();
});
window.addEventListener("beforeprint", () => plots.forEach(draw));
