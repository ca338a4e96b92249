"use strict";
// Draws from the JSON in the page. Text is only ever set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const spans = [...byId("text").children];
const keptBytes = Uint8Array.from(atob(data.kept), (character) => character.charCodeAt(0));
const rowBytes = data.heads > 1 ? data.tokens : Math.ceil(data.tokens / 8);
const LEFT = 34; // of the plots, room for the layers' numbers
let shown = -1; // the layer in the text and in the curves, -1 for all

/** The share of a layer's KV heads that keep a token. */
function kept(layer, token) {
  if (data.heads > 1) return keptBytes[layer * rowBytes + token] / data.heads;
  return (keptBytes[layer * rowBytes + (token >> 3)] >> (token & 7)) & 1;
}

const layersKept = spans.map((_, token) => {
  let sum = 0;
  for (let layer = 0; layer < data.layers; layer++) sum += kept(layer, token);
  return sum;
});

/* The text */

function shade() {
  spans.forEach((span, token) => {
    const share = shown < 0 ? layersKept[token] / data.layers : kept(shown, token);
    const level = share > 0 ? `k${Math.max(1, Math.ceil(share * 8 - 1e-9))}` : "k0";
    const gone = shown >= 0 && shown >= data.layersRun[token] && share === 0;
    span.className = `${span.marks} ${gone ? "gone" : level}`;
  });
  if (at >= 0) spans[at].classList.add("at");
}

function show(layer) {
  shown = Math.max(-1, Math.min(data.layers - 1, layer));
  byId("layer").value = shown;
  const slides = shown >= 0 && data.windows[shown] !== null ? `, slides over ${data.windows[shown]}` : "";
  byId("layer-said").textContent =
    shown < 0 ? `all ${data.layers}` : `${shown}: ${data.keptPerLayer[shown].toLocaleString("en")} kept${slides}`;
  legend();
  shade();
  drawMap();
  drawCurves();
}

function legend() {
  const named = shown < 0
    ? [["k1", "kept in few layers"], ["k4", "in half of them"], ["k8", "in all"]]
    : data.heads > 1
      ? [["k4", "kept by half of the KV heads"], ["k8", "by all"]]
      : [["k8", "kept"]];
  const nodes = [];
  for (const [level, words] of named) {
    nodes.push(element("span", `swatch ${level}`), words);
  }
  nodes.push(shown < 0 ? " \u00a0 grey text: kept in none" : " \u00a0 grey text: not kept, or (paler) left behind before this layer");
  byId("legend").replaceChildren(...nodes);
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/* One token */

let at = -1;

function pick(token, x, y) {
  if (at >= 0) spans[at].classList.remove("at");
  at = token;
  const cursor = byId("cursor");
  byId("tip").hidden = cursor.hidden = token < 0;
  if (token < 0) return;
  spans[token].classList.add("at");
  cursor.style.left = `${place(token + 0.5)}px`;
  const words = describe(token);
  byId("said").textContent = words.replaceAll("\n", "; ");
  tip(token, words, x, y);
}

function describe(token) {
  const text = spans[token].textContent;
  const said = [
    `${text ? JSON.stringify(text) : data.emptyNames[token]} (id ${data.tokenIds[token]}), token ${token.toLocaleString("en")}`,
    `kept in ${round(layersKept[token])} of ${data.layers} layers${ranges(token)}`,
  ];
  if (data.layersRun[token] < data.layers) said.push(`left behind after layer ${data.layersRun[token] - 1}`);
  if (data.centrality && data.centrality[token] !== null) said.push(`centrality ${data.centrality[token]}`);
  return said.join("\n");
}

const round = (number) => String(Math.round(number * 100) / 100);

/** Name the layers that keep a token: ": 0-4, 7". */
function ranges(token) {
  const found = [];
  for (let layer = 0; layer < data.layers; layer++) {
    if (!kept(layer, token)) continue;
    const last = found.at(-1);
    if (last && last[1] === layer - 1) last[1] = layer;
    else found.push([layer, layer]);
  }
  const names = found.map(([from, to]) => (from === to ? `${from}` : `${from}\u2013${to}`));
  return names.length ? `: ${names.join(", ")}` : "";
}

function tip(token, words, x, y) {
  const strip = document.createElement("canvas");
  strip.width = data.layers;
  strip.height = 1;
  const pen = strip.getContext("2d");
  const pixels = pen.createImageData(data.layers, 1);
  for (let layer = 0; layer < data.layers; layer++) paint(pixels.data, layer, kept(layer, token), layer < data.layersRun[token] ? 1 : 0);
  pen.putImageData(pixels, 0, 0);
  const box = byId("tip");
  box.replaceChildren(words, strip);
  box.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.offsetWidth - 8))}px`;
  const below = y + 20 + box.offsetHeight < innerHeight;
  box.style.top = `${Math.max(8, below ? y + 20 : y - box.offsetHeight - 12)}px`;
}

/* The heat map: a pixel column is a token, or several */

let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => style.getPropertyValue(name).split(",").map(Number);
  colours = { kept: rgb("--kept"), seen: rgb("--seen"), notRun: rgb("--not-run") };
}

function paint(pixels, index, keptShare, runShare) {
  const strength = Math.sqrt(keptShare); // so that one token of many in a column is seen
  for (let channel = 0; channel < 3; channel++) {
    const ground = colours.notRun[channel] + (colours.seen[channel] - colours.notRun[channel]) * runShare;
    pixels[4 * index + channel] = ground + (colours.kept[channel] - ground) * strength;
  }
  pixels[4 * index + 3] = 255;
}

const plotWidth = () => byId("plot").clientWidth;
const place = (token) => LEFT + ((plotWidth() - LEFT) * token) / data.tokens;

function mapPixels(columns) {
  const image = new OffscreenCanvas(columns, data.layers);
  const pen = image.getContext("2d");
  const pixels = pen.createImageData(columns, data.layers);
  for (let column = 0; column < columns; column++) {
    const from = Math.floor((column * data.tokens) / columns);
    const to = Math.max(from + 1, Math.floor(((column + 1) * data.tokens) / columns));
    for (let layer = 0; layer < data.layers; layer++) {
      let keeping = 0, running = 0;
      for (let token = from; token < to; token++) {
        keeping += kept(layer, token);
        running += layer < data.layersRun[token];
      }
      paint(pixels.data, layer * columns + column, keeping / (to - from), running / (to - from));
    }
  }
  pen.putImageData(pixels, 0, 0);
  return image;
}

let cached = { columns: 0, image: null };
const rowHeight = () => Math.max(2, Math.min(12, 340 / data.layers));

function drawMap() {
  const canvas = byId("map"), width = plotWidth(), height = Math.round(rowHeight() * data.layers), ratio = devicePixelRatio;
  const columns = Math.max(1, Math.min(data.tokens, Math.floor((width - LEFT) * ratio)));
  if (cached.columns !== columns) cached = { columns, image: mapPixels(columns) };
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(cached.image, LEFT, 0, width - LEFT, height);
  const style = getComputedStyle(document.documentElement);
  drawLayerNumbers(pen, style);
  if (data.pivotLayer !== null) drawPivotLine(pen, style, width);
  if (shown >= 0) {
    pen.strokeStyle = style.getPropertyValue("--always");
    pen.lineWidth = 1.5;
    pen.strokeRect(LEFT, shown * rowHeight(), width - LEFT - 1, rowHeight());
  }
}

function drawLayerNumbers(pen, style) {
  pen.fillStyle = style.getPropertyValue("--dim");
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const step = Math.max(1, Math.ceil(14 / rowHeight()));
  for (let layer = 0; layer < data.layers; layer += step) pen.fillText(layer, LEFT - 6, (layer + 0.5) * rowHeight() + 0.5);
}

function drawPivotLine(pen, style, width) {
  const y = data.pivotLayer * rowHeight();
  pen.strokeStyle = pen.fillStyle = style.getPropertyValue("--on");
  pen.lineWidth = 2;
  pen.setLineDash([6, 4]);
  pen.beginPath();
  pen.moveTo(LEFT, y);
  pen.lineTo(width, y);
  pen.stroke();
  pen.setLineDash([]);
}

/* Curves */

const brief = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 });

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A path through the points that are there; a gap where one is null. */
function path(points, colour, extra = {}) {
  let steps = "", open = false;
  for (const [x, y] of points) {
    if (y === null) { open = false; continue; }
    steps += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    open = true;
  }
  return svg("path", { d: steps, fill: "none", stroke: colour, "stroke-width": 1.4, ...extra });
}

function drawCurve(id, curve, colour) {
  const target = byId(id), height = 84, width = plotWidth();
  target.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const values = curve.values.filter((value) => value !== null);
  const low = Math.min(0, ...values), top = Math.max(curve.top, low + 1e-12);
  const y = (value) => height - 3 - ((Math.min(value, top) - low) / (top - low)) * (height - 14);
  const points = curve.values.map((value, index) => {
    const middle = Math.min(data.tokens, (index + 0.5) * curve.width);
    return [place(middle), value === null ? null : y(value)];
  });
  target.replaceChildren(
    svg("line", { x1: LEFT, x2: width, y1: height - 1, y2: height - 1, stroke: "var(--line)" }),
    path(points, colour),
    svg("text", { x: LEFT - 5, y: 14, "text-anchor": "end" }, brief.format(top)),
  );
}

function drawCurves() {
  const curve = data.scores[shown < 0 ? "all" : shown];
  const where = shown < 0 ? "largest over the layers" : `layer ${shown}`;
  byId("score-title").textContent = curve ? `${data.scoreName}, ${where}` : Object.keys(data.scores).length ? `layer ${shown} was not scored` : "nothing was scored: no attention was looked at";
  byId("score").style.display = curve ? "" : "none";
  if (curve) drawCurve("score", curve, "var(--score)");
  byId("centrality-title").textContent = data.centralityCurve ? "centrality, when the token was last seen" : "";
  byId("centrality").style.display = data.centralityCurve ? "" : "none";
  if (data.centralityCurve) drawCurve("centrality", data.centralityCurve, "var(--central)");
}

/* The pivot */

const PANELS = [
  ["transition T", "band", "transition", "var(--score)"],
  ["entropy H", "layers", "entropy", "var(--grey)"],
  ["sparsity \u03c1", "layers", "sparsity", "var(--grey)"],
  ["variance V", "layers", "variance", "var(--grey)"],
];

function drawPivot() {
  const finding = data.pivot;
  byId("origin").textContent = finding.origin;
  byId("pivot").replaceChildren();
  if (!finding.layers.length) return;
  PANELS.forEach((panel, index) => byId("pivot").append(pivotPanel(finding, panel, index ? 54 : 96, index === PANELS.length - 1)));
}

function pivotPanel(finding, [name, axis, key, colour], height, last) {
  const width = Math.max(260, byId("pivot").clientWidth), left = 84, room = last ? 16 : 4;
  const x = (layer) => left + ((width - left - 8) * (layer + 0.5)) / data.layers;
  const values = finding[key], low = Math.min(...values), high = Math.max(...values);
  const y = (value) => height - room - 4 - ((value - low) / (high - low || 1)) * (height - room - 14);
  const panel = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", height, role: "img" });
  panel.setAttribute("aria-label", `${name} by layer`);
  const step = (x(1) - x(0)) / 2;
  const [from, to] = [x(finding.band[0] ?? 0) - step, x(finding.band.at(-1) ?? 0) + step];
  panel.append(
    svg("rect", { x: from, y: 0, width: Math.max(0, to - from), height: height - room, fill: "var(--score)", opacity: 0.09 }),
    svg("line", { x1: left, x2: width, y1: height - room, y2: height - room, stroke: "var(--line)" }),
    svg("text", { x: left - 8, y: height / 2, "text-anchor": "end" }, name),
    path(finding[axis].map((layer, index) => [x(layer), y(values[index])]), colour, { "stroke-width": 1.8 }),
  );
  if (data.pivotLayer !== null) {
    const cut = x(data.pivotLayer) - step;
    panel.append(svg("line", { x1: cut, x2: cut, y1: 0, y2: height - room, stroke: "var(--on)", "stroke-width": 2, "stroke-dasharray": "5 3" }));
  }
  if (last) {
    const every = Math.max(1, Math.ceil(data.layers / 10));
    for (let layer = 0; layer < data.layers; layer += every) panel.append(svg("text", { x: x(layer), y: height - 3, "text-anchor": "middle" }, layer));
  }
  return panel;
}

/* What the reader does */

spans.forEach((span, token) => { span.token = token; span.marks = span.className; });
byId("layer").addEventListener("input", (event) => show(Number(event.target.value)));
byId("before").addEventListener("click", () => show(shown - 1));
byId("after").addEventListener("click", () => show(shown + 1));
for (const box of document.querySelectorAll("[data-mark]")) {
  const apply = () => byId("text").classList.toggle(`show-${box.dataset.mark}`, box.checked);
  box.addEventListener("change", apply);
  apply();
}
byId("text").addEventListener("mousemove", (event) => {
  if (event.target.token !== undefined) pick(event.target.token, event.clientX, event.clientY);
});
byId("text").addEventListener("mouseleave", () => pick(-1));
byId("text").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const token = Math.max(0, Math.min(data.tokens - 1, at + step));
  spans[token].scrollIntoView({ block: "nearest" });
  const box = spans[token].getBoundingClientRect();
  pick(token, box.left, box.bottom);
});

function tokenAt(event) {
  const x = event.clientX - byId("plot").getBoundingClientRect().left - LEFT;
  return x < 0 ? -1 : Math.min(data.tokens - 1, Math.floor((x / (plotWidth() - LEFT)) * data.tokens));
}
byId("plot").addEventListener("mousemove", (event) => pick(tokenAt(event), event.clientX, event.clientY));
byId("plot").addEventListener("mouseleave", () => pick(-1));
byId("map").addEventListener("click", (event) => {
  const token = tokenAt(event);
  if (token < 0) {
    const layer = Math.floor((event.clientY - byId("map").getBoundingClientRect().top) / rowHeight());
    show(layer === shown ? -1 : layer);
  } else {
    spans[token].scrollIntoView({ block: "center" });
  }
});

function redraw() {
  readColours();
  cached = { columns: 0, image: null };
  drawMap();
  drawCurves();
  drawPivot();
}
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
readColours();
show(-1);
drawPivot();
