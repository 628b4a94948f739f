"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const print = window.matchMedia("print");
const PRINT_WIDTH = 680; // pixels of a page of paper

// Charts: plotly's figures with the colours that the page has now.
function themed(figure, width) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = [style.getPropertyValue("--ink").trim(), style.getPropertyValue("--line").trim()];
  const layout = structuredClone(figure.layout);
  for (const axis of [layout.xaxis, layout.yaxis]) {
    Object.assign(axis, { gridcolor: line, zerolinecolor: line, linecolor: line });
  }
  Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink }, width });
  return layout;
}
const shown = report.charts.map((figures, number) => document.querySelector(`select[data-chart="${number}"]`)?.value ?? Object.keys(figures)[0]);
function draw(number) {
  if (!window.Plotly) return undefined; // drawn as soon as it is there
  const figure = report.charts[number][shown[number]];
  const width = print.matches ? PRINT_WIDTH : undefined;
  const options = { responsive: !print.matches, displaylogo: false };
  return Plotly.react(`chart-${number}`, structuredClone(figure.data), themed(figure, width), options);
}
function drawAll() {
  return Promise.all(report.charts.map((_, number) => draw(number)));
}
for (const choice of document.querySelectorAll("select[data-chart]")) {
  choice.addEventListener("change", () => {
    shown[choice.dataset.chart] = choice.value;
    draw(Number(choice.dataset.chart));
  });
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
print.addEventListener("change", () => drawAll());

// Tables: a heading sorts, numbers as numbers; what is missing comes last either way.
function sortBy(heading) {
  const table = heading.closest("table");
  const column = [...heading.parentElement.children].indexOf(heading);
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  for (const button of table.querySelectorAll("button.config[aria-expanded=true]")) toggle(button);
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const valued = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[column];
    const text = "value" in cell.dataset ? cell.dataset.value : cell.textContent.trim();
    return { row, text, number: text === "" ? NaN : Number(text) };
  });
  valued.sort((a, b) => {
    if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
    const numbers = !Number.isNaN(a.number) && !Number.isNaN(b.number);
    const order = numbers ? a.number - b.number : a.text.localeCompare(b.text);
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...valued.map(({ row }) => row));
}
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

// Configurations: the base, and what a run changes of it.
function keyTable(headings, rows) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const text of headings) head.append(Object.assign(document.createElement("th"), { textContent: text }));
  const body = table.createTBody();
  for (const cells of rows) {
    const row = body.insertRow();
    for (const text of cells) row.insertCell().textContent = text;
  }
  return table;
}
function toggle(button) {
  const row = button.closest("tr");
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) {
    row.nextElementSibling.remove();
    return;
  }
  const changes = Object.entries(report.changes[button.dataset.run]);
  const below = document.createElement("tr");
  below.className = "changes";
  const cell = below.insertCell();
  cell.colSpan = row.cells.length;
  if (changes.length) {
    cell.append(keyTable(["key", "base", "this run"], changes.map(([key, value]) => [key, String(report.base[key] ?? ""), String(value)])));
  } else {
    cell.textContent = "the base, unchanged";
  }
  const whole = document.createElement("details");
  whole.append(Object.assign(document.createElement("summary"), { textContent: "every key" }));
  whole.append(keyTable(["key", "value"], Object.entries({ ...report.base, ...report.changes[button.dataset.run] }).map(([k, v]) => [k, String(v)])));
  cell.append(whole);
  row.after(below);
}
for (const button of document.querySelectorAll("button.config")) button.addEventListener("click", () => toggle(button));
document.getElementById("base").append(keyTable(["key", "value"], Object.entries(report.base).map(([k, v]) => [k, String(v)])));

// plotly.js takes most of the time that this page needs: it is unpacked and run when everything else can be read and used.
async function loadPlotly() {
  const packed = await fetch(`data:application/gzip;base64,${document.getElementById("plotly").textContent}`);
  const source = await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).blob();
  const script = document.createElement("script");
  script.src = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  await new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
  URL.revokeObjectURL(script.src);
}
loadPlotly().then(() => drawAll()).then(() => { document.body.dataset.ready = "true"; });
