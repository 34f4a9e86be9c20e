"use strict";
// The episode browser. Data arrives through `episodes.rows` and `episodes.records` (browser_data.py). All text of runs
// is untrusted: it enters the page as text nodes only.

const FACETS = ["run", "cell", "task", "outcome", "failure", "probe"];
const TEXTS = ["words", "sort", "a", "b"];
const CHECKS = ["differ", "film"];
const LIST = [["outcome", "Outcome"], ["run", "Run"], ["cell", "Cell"], ["task", "Task"], ["init", "Init"],
  ["probe", "Instruction"], ["contact", "First contact"], ["steps", "Steps"], ["tenths", "Seconds"], ["film", ""]];
const POLL = 2000; // ms between two requests for new rows

const get = (id) => document.getElementById(id);
const form = get("filters"), list = get("list"), space = get("space"), panel = get("episode"), head = get("head");
const narrow = matchMedia("(max-width: 62rem)");

let runs = [], size = 0, shown = new Uint32Array(0), chosen = -1, opened = -1, beside = -1, wanted = "", address = "";
const columns = {}, names = {}, sideOf = [], replaced = new Set(), records = new Map(), sides = new Map(), sideNames = new Set();
const state = Object.fromEntries([...FACETS, ...TEXTS].map((name) => [name, ""]).concat(CHECKS.map((name) => [name, false])));

// ---------------------------------------------------------------- text

const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
const plain = (text) => String(text).replace(UNSAFE, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const spaced = (text) => plain(text).replaceAll("_", " ");
const objectWords = (name) =>
  spaced(String(name).replace(/_contain_region$/, "").replace(/^akita_/, "").replace(/_(\d+)(?=_|$)/g, " ($1)"));

function atomWords(atom) { // `on(bowl_1, plate_1)` -> bowl (1) on plate (1)
  const [, predicate, inner] = /^([^(]*)\((.*)\)$/.exec(atom) || [];
  if (inner === undefined) return objectWords(atom);
  const [first, ...rest] = inner.split(",").map((part) => objectWords(part.trim()));
  return `${first} ${spaced(predicate)} ${rest.join(" and ")}`.trim();
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((c) => c !== "" && c !== null && c !== undefined));
  return made;
}

// ---------------------------------------------------------------- data

const episodes = {
  rows(text) {
    const chunk = JSON.parse(text);
    runs = chunk.runs;
    episodes.last = chunk;
    if (chunk.start !== size) return;
    for (const [name, added] of Object.entries(chunk.names)) (names[name] ??= []).push(...added);
    for (const [name, added] of Object.entries(chunk.columns)) {
      const column = (columns[name] ??= []);
      for (const value of added) column.push(value);
    }
    for (; size < columns.run.length; size++) {
      if (columns.replaces[size] >= 0) replaced.add(columns.replaces[size]);
      const side = columns.run[size] * 4096 + columns.probe[size];
      sideOf.push(side);
      if (!sideNames.has(side)) {
        sideNames.add(side);
        sides.set(`${name("run", size)}|${raw("probe", size)}`, side);
      }
    }
  },
  records(text) {
    const chunk = JSON.parse(text);
    if (records.size > 20000) records.clear();
    chunk.records.forEach((record, i) => records.set(chunk.start + i, { ...record, film: chunk.films[chunk.start + i] }));
  },
};

function load(address) {
  return new Promise((done, failed) => {
    const script = element("script", { src: address, onload: done, onerror: failed });
    document.head.append(script);
    script.addEventListener("load", () => script.remove());
    script.addEventListener("error", () => script.remove());
  });
}

async function record(row) {
  const name = `data/records-${Math.floor(row / episodes.last.records)}.js`;
  if (!records.has(row)) await load(episodes.last.live ? `${name}?rows=${size}` : name);
  return records.get(row);
}

const name = (field, row) => (field === "run" ? runs[columns.run[row]].name : names[field][columns[field][row]]);
const raw = (field, row) => [name(field, row)].flat()[0];
function label(field, code) {
  if (field === "run") return plain(runs[code].name);
  const found = names[field][code];
  return Array.isArray(found) ? plain(found[1]) : field === "contact" ? objectWords(found) : field === "sentence" ? plain(found) : spaced(found);
}
const text = (field, row) => label(field, columns[field][row]);
const sideWords = (row) => (names.probe.length > 1 ? `${text("run", row)}, ${text("probe", row)}` : text("run", row));
const idOf = (row) => [name("run", row), raw("cell", row), raw("task", row), `init${columns.init[row]}`,
  `seed${columns.seed[row]}`, names.probe[columns.probe[row]][2]].join("/");

function sceneRows(row) { // every episode with the same initial state
  const found = [];
  for (let i = 0; i < size; i++) if (columns.scene[i] === columns.scene[row] && !replaced.has(i)) found.push(i);
  return found;
}

// ---------------------------------------------------------------- filters

function hits(field, sought) { // for each name of a column: does it contain the sought words?
  return Uint8Array.from(names[field], (_, code) => label(field, code).toLowerCase().includes(sought));
}

function partners() { // row of A -> row of B
  if (!state.a || !state.b) return null;
  const [a, b] = [sides.get(state.a), sides.get(state.b)], other = new Map(), found = new Map();
  for (let i = 0; i < size; i++) if (sideOf[i] === b && !replaced.has(i)) other.set(columns.scene[i], i);
  for (let i = 0; i < size; i++) {
    const row = sideOf[i] === a ? other.get(columns.scene[i]) : undefined;
    if (row !== undefined && !replaced.has(i)) found.set(i, row);
  }
  return found;
}

let pairs = null;

function apply() {
  pairs = partners();
  const sought = state.words.trim().toLowerCase();
  const found = sought ? ["task", "sentence", "contact"].map((field) => [columns[field], hits(field, sought)]) : null;
  const values = FACETS.map((field) => {
    const all = field === "run" ? runs.map((r) => r.name) : names[field].map((n) => [n].flat()[0]);
    return state[field] ? all.indexOf(state[field]) : -2; // -1: no such name
  });
  const data = FACETS.map((field) => columns[field]), failures = FACETS.indexOf("failure");
  const counts = FACETS.map((field) => new Uint32Array(field === "run" ? runs.length : names[field].length));
  const failed = Uint8Array.from(names.outcome, (n) => n === "failure" || n === "timeout");
  const success = names.outcome.indexOf("success"), outcome = columns.outcome;
  const rows = new Uint32Array(size);
  let length = 0;
  for (let i = 0; i < size; i++) {
    if (replaced.has(i) || (state.film && !columns.film[i])) continue;
    if (pairs && !pairs.has(i)) continue;
    if (pairs && state.differ && (outcome[i] === success) === (outcome[pairs.get(i)] === success)) continue;
    if (found && !found.some(([column, hit]) => hit[column[i]])) continue;
    let wrong = 0, which = -1;
    for (let f = 0; f < values.length && wrong < 2; f++) {
      if (values[f] !== -2 && values[f] !== data[f][i]) { wrong++; which = f; }
    }
    if (wrong > 1) continue;
    for (let f = 0; f < values.length; f++) {
      if ((wrong === 0 || f === which) && (f !== failures || failed[outcome[i]])) counts[f][data[f][i]]++;
    }
    if (wrong === 0) rows[length++] = i;
  }
  shown = rows.subarray(0, length);
  sort();
  FACETS.forEach((field, f) => fillFacet(field, counts[f]));
  fillSides();
  heads();
  if (!shown.includes(chosen)) chosen = shown.length ? shown[0] : -1;
  resize();
  tell();
}

function sort() {
  const [, down, field] = /^(-?)(\w*)$/.exec(state.sort) || [];
  if (!LIST.some(([known]) => known === field)) return;
  let keys = columns[field];
  if (names[field]) {
    const order = names[field].map((_, code) => code).sort((x, y) => ORDER.compare(label(field, x), label(field, y)));
    const rank = new Uint32Array(order.length);
    order.forEach((code, i) => { rank[code] = i; });
    keys = Uint32Array.from(keys, (code) => rank[code]);
  }
  const sign = down ? -1 : 1;
  shown.sort((x, y) => sign * (keys[x] - keys[y]) || x - y);
}

const ORDER = new Intl.Collator("en", { numeric: true });

function fill(select, options, value) { // options: [value, text]
  if (value && !options.some(([v]) => v === value)) options.push([value, `${plain(value)} (0)`]);
  select.replaceChildren(...options.map(([v, words]) => element("option", { value: v, selected: v === value }, words)));
}

function fillFacet(field, counts) {
  const codes = Array.from(counts.keys()).filter((code) => counts[code]);
  if (field !== "run") codes.sort((x, y) => ORDER.compare(label(field, x), label(field, y)));
  const value = (code) => (field === "run" ? runs[code].name : [names[field][code]].flat()[0]);
  fill(form[field], [["", "All"], ...codes.map((c) => [value(c), `${label(field, c)} (${counts[c].toLocaleString("en")})`])], state[field]);
}

function fillSides() {
  const options = [...sides.keys()].map((side) => [side, plain(names.probe.length > 1 ? side.replace("|", ", ") : side.split("|")[0])]);
  for (const which of ["a", "b"]) fill(form[which], [["", "none"], ...options], state[which]);
  form.differ.disabled = !pairs;
  form.a.closest("label").hidden = form.b.closest("label").hidden = form.differ.closest("label").hidden = sides.size < 2;
}

function tell() {
  const number = (n) => n.toLocaleString("en");
  const total = size - replaced.size;
  const parts = [pairs ? `${number(shown.length)} of ${number(pairs.size)} pairs of A and B` : `${number(shown.length)} of ${number(total)} episodes`];
  if (episodes.last.live) parts.push(`live: ${number(total)} of ${number(Math.max(total, runs.reduce((n, r) => n + r.asked, 0)))} requested episodes are recorded`);
  const problems = runs.map((r) => r.problem).filter(Boolean);
  get("status").textContent = plain([parts.join(" · "), ...problems].join(" "));
  get("status").className = problems.length ? "warn" : "";
}

// ---------------------------------------------------------------- list

let height = 34;

function resize() {
  get("grid").classList.toggle("paired", Boolean(pairs));
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  height = rem * parseFloat(getComputedStyle(list).getPropertyValue("--row"));
  space.style.height = `${shown.length * height}px`;
  get("grid").setAttribute("aria-rowcount", shown.length + 1);
  draw();
}

function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / height) - 5);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / height) + 10);
  const rows = [];
  for (let i = first; i < last; i++) rows.push(line(shown[i], i));
  get("rows").replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", chosen >= 0 ? `row${chosen}` : "");
}

function line(row, i) {
  const cells = LIST.map(([field]) => element("span", { className: COLUMN_CLASS[field] || "" }, ...[cell(field, row)].flat()));
  cells.forEach((c, k) => { c.setAttribute("role", "gridcell"); c.dataset.column = LIST[k][0]; c.title = c.textContent; });
  const made = element("div", { className: "row", id: `row${row}` }, ...cells);
  made.style.top = `${i * height}px`;
  made.setAttribute("role", "row");
  made.setAttribute("aria-rowindex", i + 2);
  made.setAttribute("aria-selected", row === chosen);
  return made;
}

const COLUMN_CLASS = { init: "number", steps: "number", tenths: "number" };

function cell(field, row) {
  if (field === "outcome") return pairs ? [ending(row), " / ", ending(pairs.get(row))] : ending(row);
  if (field === "contact") return text("contact", row) + ({ 1: " ✓", 0: " ✗" }[columns.heeded[row]] || "");
  if (field === "tenths") return (columns.tenths[row] / 10).toFixed(1);
  if (field === "film") return columns.film[row] ? "▶" : "";
  return names[field] || field === "run" ? text(field, row) : String(columns[field][row]);
}

const ending = (row) => element("span", { className: raw("outcome", row) }, text("failure", row));

function choose(position) {
  if (!shown.length) return;
  position = Math.max(0, Math.min(shown.length - 1, position));
  chosen = shown[position];
  const top = position * height;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
  draw();
  if (opened >= 0) open(chosen);
}

// ---------------------------------------------------------------- one episode

async function open(row, partner = -1) {
  chosen = opened = row;
  const others = sceneRows(row).filter((other) => other !== row);
  beside = others.includes(partner) ? partner : pairs?.get(row) ?? likely(row, others);
  write();
  panel.hidden = false;
  overlay();
  const both = [row, beside].filter((r) => r >= 0);
  const found = await Promise.all(both.map((r) => record(r).catch(() => null)));
  if (opened !== row) return; // another one was opened meanwhile
  const most = Math.max(...both.map((r) => columns.steps[r]), 1);
  const choice = element("select", { ariaLabel: "Beside it" });
  fill(choice, [["", "nothing"], ...others.map((r) => [String(r), sideWords(r)])], beside < 0 ? "" : String(beside));
  choice.onchange = () => open(row, choice.value === "" ? -1 : Number(choice.value));
  const button = (words, act) => element("button", { type: "button", onclick: act }, words);
  const sidesShown = element("div", { className: "sides" });
  panel.replaceChildren(
    element("div", { className: "bar" }, button("Close", close), button("Previous", () => step(-1)), button("Next", () => step(1)),
      found.some((r) => r?.film) ? button("Play", play) : "", others.length ? element("label", {}, "Beside it ", choice) : ""),
    element("h2", {}, text("task", row)),
    element("p", { className: "note" }, `${text("cell", row)} · initial state ${columns.init[row]} · seed ${columns.seed[row]}`),
    sidesShown);
  const articles = both.map(() => element("article"));
  sidesShown.append(...articles);
  articles.forEach((place, i) => article(place, both[i], found[i], most));
}

function likely(row, others) { // the same instruction in another run, else another instruction in the same run
  const same = others.find((r) => columns.probe[r] === columns.probe[row]);
  return same ?? others.find((r) => columns.run[r] === columns.run[row]) ?? -1;
}

function article(made, row, found, most) {
  made.append(element("h2", {}, `${sideWords(row)}: `, ending(row)));
  made.append(element("blockquote", {}, text("sentence", row) || "(no sentence)"));
  made.append(element("p", { className: "note" }, `Sentence sent; source: ${text("source", row)}`));
  if (!found) {
    made.append(element("p", {}, "The record cannot be read."));
    return;
  }
  if (found.film) made.append(element("video", { src: found.film, controls: true, muted: true, loop: true, preload: "metadata", playsInline: true }));
  else made.append(element("p", { className: "note" }, found.video ? `The film is not in this folder: ${plain(found.video)} in the run directory.` : "No film was recorded."));
  const events = timeline(found.events || {}), hz = runs[columns.run[row]].hz;
  const seconds = (step) => (hz ? `${(step / hz).toFixed(1)} s` : "");
  if (events.length) made.append(picture(events, columns.steps[row], most, made.clientWidth || 300));
  made.append(element("h3", {}, "Events"), table([...events.map(([step, kind, words]) => [`step ${step}${hz ? `, ${seconds(step)}` : ""}`, `${kind}${words ? `: ${words}` : ""}`]),
    [`step ${columns.steps[row]}${hz ? `, ${seconds(columns.steps[row])}` : ""}`, "end"]]));
  const goal = pairsOf(found.events?.goal).filter(([, truth]) => truth && typeof truth === "object");
  if (goal.length) made.append(element("h3", {}, "Goal at the end"), table(goal.map(([atom, truth]) => [truth.last ? "true" : "not true", atomWords(atom)])));
  made.append(element("h3", {}, "Record"), table(facts(row, found)));
}

const pairsOf = (value) => (value && typeof value === "object" ? Object.entries(value).slice(0, 200) : []);
const table = (rows) => element("table", {}, element("tbody", {}, ...rows.map((r) => element("tr", {}, ...r.map((c) => element("td", {}, plain(c)))))));

function timeline(events) { // [control step, kind, words], in order of time
  const found = [], isStep = (s) => typeof s === "number" && s >= 0;
  for (const [entry, kind] of [["touched", "contact"], ["grasped", "grasp"], ["lifted", "lift"], ["operated", "operated"]]) {
    const steps = pairsOf(events[entry]).filter(([, s]) => isStep(s)).sort((x, y) => x[1] - y[1]);
    steps.forEach(([thing, s], i) => found.push([s, kind === "contact" && i === 0 ? "first contact" : kind, objectWords(thing)]));
  }
  for (const [, placed] of pairsOf(events.placements)) {
    if (!isStep(placed?.step)) continue;
    const on = Array.isArray(placed.on) && placed.on.length ? ` on ${placed.on.map(objectWords).join(" and ")}` : "";
    found.push([placed.step, placed.dropped === true ? "dropped" : "placed", objectWords(placed.object) + on]);
  }
  for (const [entry, kind] of [["goal", "goal reached"], ["base_goal", "original goal reached"]]) {
    for (const [atom, truth] of pairsOf(events[entry])) if (isStep(truth?.first)) found.push([truth.first, kind, atomWords(atom)]);
  }
  if (isStep(events.shortcut)) found.push([events.shortcut, "original task done", ""]);
  return found.sort((x, y) => x[0] - y[0]).slice(0, 200);
}

function picture(events, steps, most, width) { // the time line; both sides have the same scale
  const draw = (tag, attributes, words) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (words) made.textContent = words;
    return made;
  };
  const x = (s) => 8 + (width - 16) * Math.min(1, s / most), ends = [], parts = [];
  for (const [s, kind, words] of events) {
    const mark = /original|dropped/.test(kind) ? "wrong" : kind.startsWith("goal") ? "goal" : "mark";
    parts.push(draw("circle", { cx: x(s), cy: 10, r: 5, class: mark }));
    parts.at(-1).append(draw("title", {}, `step ${s}: ${kind} ${words}`));
    const span = kind.length * 6 + 8, left = Math.max(0, Math.min(x(s) - 4, width - span));
    let level = ends.findIndex((end) => end < left);
    if (level < 0) level = ends.length;
    if (level > 5) continue;
    ends[level] = left + span;
    parts.push(draw("text", { x: left, y: 32 + 13 * level }, kind));
  }
  const made = draw("svg", { viewBox: `0 0 ${width} ${26 + 13 * ends.length}`, role: "img", "aria-label": "Events on a time line" });
  made.append(draw("line", { x1: x(0), x2: x(steps), y1: 10, y2: 10, "stroke-width": 3 }), draw("line", { x1: x(steps), x2: x(steps), y1: 3, y2: 17, "stroke-width": 3 }), ...parts);
  return made;
}

const DRAWN = ["targets", "touched", "grasped", "lifted", "operated", "placements", "goal", "base_goal", "shortcut"];

function facts(row, found) {
  const isText = (value) => typeof value === "string";
  const short = (value) => (isText(value) ? value : Array.isArray(value) && value.every(isText) ? value.map(objectWords).join(", ") : JSON.stringify(value)).slice(0, 400);
  const empty = (value) => value === null || value === undefined || (typeof value === "object" && !Object.keys(value).length);
  const parts = pairsOf(found.seconds).map(([part, s]) => `${part} ${Number(s).toFixed(1)}`).join(", ");
  const named = [
    ["outcome", `${raw("outcome", row)}${found.failure ? `, ${spaced(found.failure)}` : ""}`], ["error", found.error],
    ["known defects", (found.flags || []).join(", ")], ["objects of the task", (found.events?.targets || []).toString().split(",").map(objectWords).join(", ")],
    ["steps", `${columns.steps[row]} control steps, ${found.decisions} decisions`], ["seconds", `${(columns.tenths[row] / 10).toFixed(1)}${parts ? ` (${parts})` : ""}`],
    ["initial state", `${columns.init[row]}, hash ${found.start_hash}`], ["final state", `hash ${found.end_hash}`], ["seed", String(columns.seed[row])],
    ["attempt", found.attempt > 1 ? String(found.attempt) : ""], ["key", idOf(row)],
    ...pairsOf(found.prompts).map(([source, sentence]) => [`sentence of ${spaced(source)}`, String(sentence)]),
  ];
  const more = [...pairsOf(found.events).filter(([key]) => !DRAWN.includes(key)), ...pairsOf(found.notes)];
  return [...named, ...more.filter(([, value]) => !empty(value)).map(([key, value]) => [spaced(key), short(value)])].filter(([, value]) => value);
}

function close() {
  opened = -1;
  panel.hidden = true;
  panel.replaceChildren();
  overlay();
  write();
  list.focus();
}

function overlay() { // on a narrow screen the episode covers the page
  const covered = narrow.matches && opened >= 0;
  form.inert = get("grid").inert = covered;
  document.body.classList.toggle("covered", covered);
  if (covered) panel.focus();
}

const step = (by) => choose(shown.indexOf(chosen) + by);

function play() {
  const films = [...panel.querySelectorAll("video")], pause = films.some((film) => !film.paused);
  for (const film of films) {
    if (pause) film.pause();
    else film.play().catch(() => {});
  }
}

// ---------------------------------------------------------------- address

function write() {
  const parameters = new URLSearchParams();
  for (const key of [...FACETS, ...TEXTS]) if (state[key]) parameters.set(key, state[key]);
  for (const key of CHECKS) if (state[key]) parameters.set(key, "1");
  if (opened >= 0) parameters.set("episode", idOf(opened));
  address = `#${parameters}`;
  if (location.hash !== address && (location.hash || address !== "#")) location.replace(address);
}

function read() {
  address = location.hash;
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const key of [...FACETS, ...TEXTS]) state[key] = parameters.get(key) || "";
  for (const key of CHECKS) state[key] = parameters.get(key) === "1";
  wanted = parameters.get("episode") || "";
  for (const key of ["words", "sort"]) form[key].value = state[key];
  for (const key of CHECKS) form[key].checked = state[key];
}

function openWanted() {
  if (!wanted) return;
  for (let i = size - 1; i >= 0; i--) {
    if (!replaced.has(i) && wanted.startsWith(name("run", i)) && idOf(i) === wanted) {
      wanted = "";
      opened = i;
      if (shown.includes(i)) choose(shown.indexOf(i));
      else open(i);
      return;
    }
  }
}

// ---------------------------------------------------------------- start

function changed() { // the user changed a filter
  for (const key of [...FACETS, ...TEXTS]) state[key] = form[key].value;
  for (const key of CHECKS) state[key] = form[key].checked;
  list.scrollTop = 0;
  apply();
  write();
}

function heads() {
  const orders = LIST.filter(([, title]) => title);
  fill(form.sort, [["", "as recorded"], ...orders.flatMap(([field, title]) => [[field, `${title} ↑`], [`-${field}`, `${title} ↓`]])], state.sort);
  head.replaceChildren(...LIST.map(([field, title]) => {
    const direction = state.sort === field ? "ascending" : state.sort === `-${field}` ? "descending" : "none";
    const sorted = { ascending: " ↑", descending: " ↓", none: "" }[direction];
    const act = () => { form.sort.value = direction === "ascending" ? `-${field}` : field; changed(); };
    const made = element("span", { className: COLUMN_CLASS[field] || "" }, title ? element("button", { type: "button", onclick: act }, title + sorted) : "");
    made.dataset.column = field;
    made.setAttribute("role", "columnheader");
    made.setAttribute("aria-sort", direction);
    return made;
  }));
}

form.addEventListener("input", changed);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => {
  for (const select of form.querySelectorAll("select")) select.value = "";
  changed();
}));
list.addEventListener("scroll", () => requestAnimationFrame(draw));
list.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row) open(Number(row.id.slice(3))).then(draw);
  draw();
});
list.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.clientHeight / height) - 1), at = shown.indexOf(chosen);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: shown.length - 1 }[event.key];
  if (to !== undefined) choose(to);
  else if (event.key === "Enter" && chosen >= 0) open(chosen);
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|BUTTON|VIDEO)$/.test(event.target.tagName);
  if (event.key === "Escape" && opened >= 0) close();
  else if (event.key === "/" && !typing) form.words.focus();
  else if (event.key === " " && !typing && opened >= 0) play();
  else return;
  event.preventDefault();
});
new ResizeObserver(resize).observe(list);
narrow.addEventListener("change", overlay);
window.addEventListener("hashchange", () => {
  if (location.hash === address) return;
  read();
  apply();
  openWanted();
});

async function start() {
  read();
  get("fold").open = !matchMedia("(max-width: 44rem)").matches;
  try {
    do await load(`data/rows-${size}.js`); while (episodes.last.more);
  } catch {
    get("status").textContent = "The episodes cannot be loaded: the folder data is missing or the server has stopped.";
    return;
  }
  apply();
  openWanted();
  document.body.dataset.ready = "true";
  if (!episodes.last.live) return;
  for (;;) {
    await new Promise((done) => setTimeout(done, POLL));
    const before = size;
    try {
      do await load(`data/rows-${size}.js`); while (episodes.last.more);
    } catch {
      get("status").textContent = "The server does not answer: start apt-bench view again.";
      get("status").className = "warn";
      continue;
    }
    if (size > before) apply();
    else tell();
  }
}

start();
