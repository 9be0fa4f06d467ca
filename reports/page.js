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
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
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
// Paper has a width of its own: two figures side by side (page.css has the same widths), in the colours of paper.
window.addEventListener("beforeprint", () => {
  document.documentElement.classList.add("paper");
  plots.forEach(draw);
  for (const plot of plots) {
    const alone = plot.parentElement.children.length === 1;
    Plotly.relayout(plot, { ...colours(), autosize: false, width: alone ? 670 : 330 });
  }
});
window.addEventListener("afterprint", () => {
  document.documentElement.classList.remove("paper");
  for (const plot of plots) Plotly.relayout(plot, { ...colours(), autosize: true, width: null });
});
