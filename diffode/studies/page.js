"use strict";
// Curves are [target, path, method, NFE, errors, floor], with numbers for names; a method has a name, a family and a look.
const byId = id => document.getElementById(id);
const text = value => String(value).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const written = value => value === 0 ? "0" : value.toExponential(1).replace("e+0", "").replace("e-", "e-");
const state = {target: "", path: "", pins: new Set(), others: true};
let shown = [], spot = null, places = [];

// -- what is shown --------------------------------------------------------------------------------------------------------

function chosen(target, path) {
  const tag = target.startsWith("tag:") ? target.slice(4) : null;
  return DATA.curves.filter(([t, p]) =>
    (path === "" || DATA.paths[p] === path) &&
    (target === "" || (tag === null ? DATA.targets[t] === target : DATA.tags[t].includes(tag))));
}

// The geometric mean over problems of each method, at the budgets that it has on all of them.
function averaged(curves) {
  const problems = new Set(curves.map(([t, p]) => `${t},${p}`)).size, methods = new Map();
  for (const [, , m, nfe, errors] of curves) {
    if (!methods.has(m)) methods.set(m, new Map());
    const sums = methods.get(m);
    nfe.forEach((n, i) => {
      const old = sums.get(n) || [0, 0];
      sums.set(n, [old[0] + Math.log(Math.max(errors[i], 1e-300)), old[1] + 1]);
    });
  }
  const found = [];
  for (const [m, sums] of methods) {
    const points = [...sums].filter(([, [, count]]) => count === problems).map(([n, [sum]]) => [n, Math.exp(sum / problems)]);
    if (points.length) found.push({m, points: points.sort((a, b) => a[0] - b[0])});
  }
  return {lines: found, problems, floor: Math.max(0, ...curves.map(c => c[5]))};
}

// The methods that are best within some budget, by their largest run within it.
function winners(lines) {
  const found = new Set();
  for (const budget of DATA.budgets) {
    let best = null, least = Infinity;
    for (const {m, points} of lines) {
      const run = points.filter(([n]) => n <= budget).at(-1);
      if (run && run[1] < least) [best, least] = [m, run[1]];
    }
    if (best !== null) found.add(best);
  }
  return found;
}

const inFront = lines => state.pins.size ? new Set(lines.map(l => l.m).filter(m => state.pins.has(m))) : winners(lines);

// -- drawing --------------------------------------------------------------------------------------------------------------

function scales(lines, floor, box) {
  const nfe = lines.flatMap(l => l.points.map(p => p[0])), errors = lines.flatMap(l => l.points.map(p => p[1])).filter(e => e > 0);
  let low = Math.log10(Math.min(...errors)), high = Math.log10(Math.max(...errors));
  // One run that goes astray must not flatten all others.
  const sorted = errors.map(Math.log10).sort((a, b) => a - b);
  high = Math.min(high, sorted[Math.floor(0.98 * (sorted.length - 1))] + 1);
  if (floor > 0 && Math.log10(floor) > low - 2) low = Math.min(low, Math.log10(floor));
  low -= 0.1; high += 0.1;
  const left = Math.log(Math.min(...nfe)), right = Math.max(Math.log(Math.max(...nfe)), left + 1e-9);
  return {
    x: n => box.left + (Math.log(n) - left) / (right - left || 1) * (box.right - box.left),
    y: e => box.bottom - (Math.min(Math.max(Math.log10(e), low), high) - low) / (high - low) * (box.bottom - box.top), low, high,
  };
}

const MARKS = {
  o: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", s: "M-3.5-3.5h7v7h-7z", "^": "M0-4.5L4 3.5H-4z", D: "M0-4.8L4.8 0 0 4.8-4.8 0z",
  v: "M0 4.5L4-3.5H-4z", P: "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", X: "M-4-4L0-1 4-4 1 0 4 4 0 1-4 4-1 0z",
};
const ink = m => DATA.methods[m].colour === "#000000" ? "var(--ink)" : DATA.methods[m].colour;

function line({m, points}, at, front, marks) {
  const path = points.map(([n, e], i) => `${i ? "L" : "M"}${at.x(n).toFixed(1)} ${at.y(e).toFixed(1)}`).join("");
  if (!front) return `<path class="rest" d="${path}"/>`;
  const look = DATA.methods[m], dash = look.dash ? ` stroke-dasharray="${look.dash}"` : "";
  let drawn = `<path class="front" stroke="${ink(m)}"${dash} d="${path}"/>`;
  if (marks) for (const [n, e] of points)
    drawn += `<path d="${MARKS[look.marker]}" transform="translate(${at.x(n).toFixed(1)} ${at.y(e).toFixed(1)})" fill="${ink(m)}"/>`;
  return drawn;
}

function draw() {
  const {lines, problems, floor} = averaged(chosen(state.target, state.path)), plot = byId("plot");
  const front = inFront(lines), wide = plot.clientWidth >= 640;
  shown = lines.filter(l => front.has(l.m) || state.others);
  places = []; spot = null;
  if (!shown.length) {
    plot.innerHTML = ""; byId("key").innerHTML = ""; byId("values").innerHTML = "";
    byId("said").textContent = lines.length ? "Nothing is chosen." : "No method has a run with the same evaluations on all of these.";
    return small();
  }
  const width = Math.max(plot.clientWidth, 280), height = wide ? 460 : 340, letters = wide ? (plot.clientWidth >= 900 ? 260 : 190) : 14;
  const box = {left: 58, right: width - letters, top: 14, bottom: height - 42}, at = scales(shown, floor, box);
  let svg = "", last = -Infinity;
  for (let d = Math.ceil(at.low); d <= at.high; d++) {
    const y = at.y(10 ** d);
    svg += `<line class="grid" x1="${box.left}" x2="${box.right}" y1="${y}" y2="${y}"/>` +
      `<text x="${box.left - 8}" y="${y + 4}" text-anchor="end">${d >= -2 && d <= 2 ? 10 ** d : `1e${d}`}</text>`;
  }
  for (const n of new Set(shown.flatMap(l => l.points.map(p => p[0])))) {
    svg += `<line class="grid" x1="${at.x(n)}" x2="${at.x(n)}" y1="${box.bottom}" y2="${box.bottom + 4}"/>`;
  }
  // Budgets are named; what solvers of several stages make of them has a mark alone.
  for (const n of DATA.budgets.filter(n => shown.some(l => l.points.some(p => p[0] === n)))) {
    const x = at.x(n);
    if (x - last > 22) { svg += `<text x="${x}" y="${box.bottom + 18}" text-anchor="middle">${n}</text>`; last = x; }
  }
  svg += `<text x="${(box.left + box.right) / 2}" y="${height - 4}" text-anchor="middle">evaluations of the field (NFE)</text>`;
  svg += `<text transform="translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)" text-anchor="middle">${text(DATA.label)}</text>`;
  if (floor > 0 && Math.log10(floor) >= at.low) {
    const top = at.y(floor);
    svg += `<rect class="floor" x="${box.left}" width="${box.right - box.left}" y="${top}" height="${box.bottom - top}"/>` +
      `<text x="${box.left + 6}" y="${top - 5}">error of the reference</text>`;
  }
  const behind = shown.filter(l => !front.has(l.m)), before = shown.filter(l => front.has(l.m));
  for (const l of behind) svg += line(l, at, false);
  for (const l of before) svg += line(l, at, true, true);
  if (wide) svg += ends(before, at, box);
  svg += `<path id="spot" class="here" d=""/>`;
  plot.innerHTML = `<svg viewBox="0 0 ${width} ${height}" aria-hidden="true">${svg}</svg>`;
  for (const l of shown) for (const [n, e] of l.points) places.push({m: l.m, n, e, x: at.x(n), y: at.y(e)});
  before.sort((a, b) => a.points.at(-1)[1] - b.points.at(-1)[1]);
  byId("key").innerHTML = before.map(l => `<li><span class="swatch" style="background:${ink(l.m)}"></span>${text(DATA.methods[l.m].name)}</li>`).join("");
  byId("said").textContent = `${state.pins.size ? "Chosen" : "Best at some NFE"}: ${before.length} of ${lines.length} methods, ${problems} ${problems === 1 ? "problem" : "problems"}.`;
  values(before);
  small();
}

// Labels at the ends of curves, moved apart.
function ends(lines, at, box) {
  const labels = lines.map(l => ({m: l.m, y: at.y(l.points.at(-1)[1]), x: at.x(l.points.at(-1)[0])})).sort((a, b) => a.y - b.y);
  let free = box.top;
  for (const l of labels) { l.to = Math.max(l.y, free); free = l.to + 15; }
  free = box.bottom + 12;
  for (const l of labels.reverse()) { l.to = Math.min(l.to, free); free = l.to - 15; }
  return labels.map(l => {
    const name = DATA.methods[l.m].name, most = (byId("plot").clientWidth >= 900 ? 33 : 23);
    const short = name.length > most ? `${name.slice(0, most - 1)}\u2026` : name;
    return `<path class="grid" fill="none" d="M${l.x + 6} ${l.y}L${box.right + 8} ${l.to}"/>` +
      `<text class="end" style="fill:${ink(l.m)}" x="${box.right + 11}" y="${l.to + 4}">${text(short)}</text>`;
  }).join("");
}

function values(lines) {
  const budgets = [...new Set(lines.flatMap(l => l.points.map(p => p[0])))].sort((a, b) => a - b);
  const rows = lines.map(l => `<tr><td>${text(DATA.methods[l.m].name)}</td>${budgets.map(n => {
    const point = l.points.find(p => p[0] === n);
    return `<td>${point ? written(point[1]) : ""}</td>`;
  }).join("")}</tr>`);
  byId("values").innerHTML = `<table><thead><tr><th>method</th>${budgets.map(n => `<th>NFE ${n}</th>`).join("")}</tr></thead><tbody>${rows.join("")}</tbody></table>`;
}

// A caption's name may break after a mark between words, which comes before a break inside of one.
const breakable = name => text(name).replace(/([,:=_@\/+])(?=\S)/g, "$1<wbr>");

function small() {
  byId("small").innerHTML = DATA.targets.map((name, t) => {
    const {lines} = averaged(DATA.curves.filter(c => c[0] === t && (state.path === "" || DATA.paths[c[1]] === state.path)));
    const front = inFront(lines), drawn = lines.filter(l => front.has(l.m));
    if (!drawn.length) return "";
    const at = scales(drawn, 0, {left: 4, right: 146, top: 6, bottom: 84});
    const best = [...drawn].sort((a, b) => a.points.at(-1)[1] - b.points.at(-1)[1])[0];
    return `<button type="button" data-target="${text(name)}" aria-label="${text(name)}: show its curves"><span>${breakable(name)}</span>` +
      `<svg viewBox="0 0 150 90" aria-hidden="true">${drawn.map(l => line(l, at, true)).join("")}</svg>` +
      `<span class="note">${breakable(DATA.methods[best.m].name)} ${written(best.points.at(-1)[1])}</span></button>`;
  }).join("");
}

// -- pointing -------------------------------------------------------------------------------------------------------------

function point(place) {
  spot = place;
  byId("spot").setAttribute("d", `M${place.x - 8} ${place.y}a8 8 0 1 0 16 0a8 8 0 1 0-16 0`);
  byId("said").textContent = `${DATA.methods[place.m].name}, NFE ${place.n}: ${place.e.toExponential(2)}`;
}

byId("plot").addEventListener("pointermove", event => {
  const svg = byId("plot").querySelector("svg");
  if (!svg) return;
  const seen = svg.getBoundingClientRect(), unit = svg.viewBox.baseVal.width / seen.width;
  const x = (event.clientX - seen.left) * unit, y = (event.clientY - seen.top) * unit;
  let best = null, distance = 900;
  for (const p of places) { const d = (p.x - x) ** 2 + (p.y - y) ** 2; if (d < distance) [best, distance] = [p, d]; }
  if (best && best !== spot) point(best);
});
byId("plot").addEventListener("keydown", event => {
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
  if (!step || !places.length) return;
  event.preventDefault();
  if (!spot) return point(places.reduce((a, b) => b.n < a.n || (b.n === a.n && b.e < a.e) ? b : a));
  const along = step[0] ? places.filter(p => p.m === spot.m).sort((a, b) => a.n - b.n) : places.filter(p => p.n === spot.n).sort((a, b) => a.e - b.e);
  point(along[Math.min(Math.max(along.indexOf(spot) + (step[0] || step[1]), 0), along.length - 1)]);
});

// -- choosing -------------------------------------------------------------------------------------------------------------

function keep() {
  const said = new URLSearchParams();
  if (state.target) said.set("target", state.target);
  if (state.path) said.set("path", state.path);
  if (!state.others) said.set("others", "no");
  for (const m of state.pins) said.append("method", DATA.methods[m].name);
  history.replaceState(null, "", String(said) ? `#${said}` : location.pathname + location.search);
}
function recall() {
  const said = new URLSearchParams(location.hash.slice(1)), known = name => [...byId(name).options].some(o => o.value === said.get(name));
  for (const key of ["target", "path"]) byId(key).value = state[key] = known(key) ? said.get(key) : "";
  state.others = byId("others").checked = said.get("others") !== "no";
  state.pins = new Set(said.getAll("method").map(name => DATA.methods.findIndex(m => m.name === name)).filter(m => m >= 0));
  for (const check of byId("families").querySelectorAll("input")) check.checked = state.pins.has(Number(check.value));
}
function changed() { keep(); draw(); }

function begin() {
  const tags = [...new Set(DATA.tags.flat())].filter(tag => DATA.tags.filter(own => own.includes(tag)).length > 1).sort();
  const option = (value, name) => new Option(name, value);
  byId("target").append(option("", "all targets"), ...tags.map(tag => option(`tag:${tag}`, `all ${tag}`)), ...DATA.targets.map(t => option(t, t)));
  byId("path").append(option("", "all paths"), ...DATA.paths.map(p => option(p, p)));
  const families = new Map();
  DATA.methods.forEach((method, m) => families.set(method.family, [...(families.get(method.family) || []), m]));
  byId("families").innerHTML = [...families].map(([family, members]) =>
    `<details><summary>${text(family)} (${members.length})</summary>${members.map(m =>
      `<label><input type="checkbox" value="${m}"><span class="swatch" style="background:${ink(m)}"></span>${text(DATA.methods[m].name)}</label>`).join("")}</details>`).join("");
  for (const key of ["target", "path"]) byId(key).onchange = () => { state[key] = byId(key).value; changed(); };
  byId("others").onchange = () => { state.others = byId("others").checked; changed(); };
  byId("families").onchange = ({target}) => { state.pins[target.checked ? "add" : "delete"](Number(target.value)); changed(); };
  byId("clear").onclick = () => { state.pins.clear(); for (const check of byId("families").querySelectorAll("input")) check.checked = false; changed(); };
  byId("small").onclick = event => {
    const button = event.target.closest("button");
    if (!button) return;
    byId("target").value = state.target = button.dataset.target;
    changed();
    byId("plot").scrollIntoView({block: "nearest"});
  };
  addEventListener("hashchange", () => { recall(); draw(); });
  let width = 0;
  new ResizeObserver(() => { if (byId("plot").clientWidth !== width) { width = byId("plot").clientWidth; draw(); } }).observe(byId("plot"));
  recall(); draw();
}
begin();
