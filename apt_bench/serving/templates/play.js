"use strict";
// The page of `apt-bench play` (serving/play.py). All text of the server is untrusted: it enters the page as text nodes
// only. Events of the running job arrive through a request that the server holds until there is something new.

const RETRY = 2000; // ms before the next request after one that failed
const IMAGE = "data:image/jpeg;base64,";
const CAMERAS = [["agentview", "Camera of the scene"], ["wrist", "Camera at the wrist"]];

const get = (id) => document.getElementById(id);
const [suite, cell, task, init, a, b, two] = ["suite", "cell", "task", "init", "a", "b", "two"].map(get);
const moment = get("moment");

let suites = [], head = { phase: "loading", text: "Loading", job: 0, version: 0 }, count = 0, sides = [], problem = "";
let wanted = "", edited = false; // the scene that was asked for last; whether the second instruction was typed
let known = 0, sending = 0, heard; // the last request that the fields show; posts without an answer yet
const first = new Promise((done) => { heard = done; }); // the first message

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------- choices

function fill(select, entries, words) {
  const before = select.value;
  select.replaceChildren(...entries.map((entry) => element("option", { value: entry.name }, words(entry))));
  if (entries.some((entry) => entry.name === before)) select.value = before;
}

const chosen = (list, select) => list.find((entry) => entry.name === select.value) || list[0];

function choices() {
  fill(suite, suites, (s) => s.title);
  const { cells } = chosen(suites, suite);
  fill(cell, cells, (c) => c.label);
  const { tasks } = chosen(cells, cell);
  fill(task, tasks, (t) => t.label);
  init.max = chosen(tasks, task).inits - 1;
}

const scene = () => ({ suite: suite.value, cell: cell.value, task: task.value, init: init.valueAsNumber });

// Another page, or this page before it was reloaded, has chosen a scene: show its choices.
function adopt(request) {
  known = request.number;
  for (const [select, name] of [[suite, "suite"], [cell, "cell"], [task, "task"]]) {
    choices();
    select.value = request[name];
  }
  choices();
  init.value = request.init;
  a.value = request.sentences[0];
  two.checked = request.sentences.length > 1;
  b.value = request.sentences[1] ?? sides[0]?.frames[0]?.other ?? "";
  edited = two.checked;
  get("second").hidden = !two.checked;
}

async function post(path, value) {
  sending += 1;
  try {
    const reply = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
    const answer = reply.ok ? await reply.json() : { error: await reply.text() };
    problem = answer.error || "";
    known = Math.max(known, answer.number || 0);
    draw();
    return answer;
  } catch {
    problem = "The server does not answer. Has apt-bench play been stopped?";
    draw();
    return { error: problem };
  } finally {
    sending -= 1;
  }
}

async function show() { // show the chosen scene, and set its own instruction
  choices();
  if (!init.checkValidity()) return;
  const asked = (wanted = JSON.stringify(scene()));
  b.value = "";
  edited = false;
  const answer = await post("/run", { ...scene(), sentences: [] });
  if (asked === wanted && !answer.error) a.value = answer.sentence;
}

function run() {
  if (!get("run").disabled) post("/run", { ...scene(), sentences: two.checked ? [a.value, b.value] : [a.value] });
}

// ---------------------------------------------------------------- events

function take(message) {
  if (message.job !== head.job || message.first < count) [sides, count] = [[], 0];
  const follows = Number(moment.value) >= Number(moment.max);
  for (const event of message.events) {
    const side = (sides[event.side] ??= { frames: [] });
    if (event.kind === "frame") side.frames.push(event);
    else side[event.kind] = event;
    if (event.kind === "frame" && !edited && !b.value) b.value = event.other;
  }
  count += message.events.length;
  head = message;
  heard();
  if (suites.length && !sending && message.request.number > known) adopt(message.request);
  moment.max = Math.max(0, ...sides.map((side) => side.frames.length - 1));
  if (follows || message.first === 0) moment.value = moment.max;
  draw();
}

async function listen() {
  for (;;) {
    try {
      const reply = await fetch(`/events/${head.job}/${count}/${head.version}`);
      take(await reply.json());
    } catch {
      problem = "The server does not answer. Has apt-bench play been stopped?";
      draw();
      await new Promise((done) => setTimeout(done, RETRY));
      problem = "";
    }
  }
}

// ---------------------------------------------------------------- drawing

function statusText() {
  if (head.phase === "loading") return `${head.text} ... This takes some seconds. A scene can be chosen meanwhile.`;
  if (head.phase === "failed") return head.text;
  const begun = sides.filter((side) => side.frames.length > 0);
  if (!head.running) return `Ready. The policy is ${head.policy}.`;
  if (begun.length < Math.max(1, sides.length)) return "Preparing the scene ...";
  const steps = begun.map((side) => side.frames.at(-1).step);
  return `Running: ${steps.length > 1 ? "steps" : "step"} ${steps.join(" and ")} of ${begun[0].frames[0].budget}`;
}

function draw() {
  get("status").textContent = problem || statusText();
  get("status").className = problem || head.phase === "failed" ? "fault" : "";
  get("notice").hidden = !head.notice;
  get("notice").textContent = head.notice || "";
  const stop = get("stop"), focused = document.activeElement === stop;
  get("run").disabled = head.phase !== "ready" || !suites.length;
  stop.disabled = !head.running;
  if (focused && stop.disabled) get("run").focus();
  const main = get("sides");
  while (main.children.length > sides.length) main.lastChild.remove();
  while (main.children.length < sides.length) main.append(article());
  sides.forEach((side, i) => drawSide(side, main.children[i]));
  const objects = sides[0]?.frames[0]?.objects;
  get("objects").textContent = objects ? `In this scene: ${objects.join(", ")}.` : "";
  get("time").hidden = Number(moment.max) === 0;
  get("shown").textContent = `${moment.value} of ${moment.max}`;
  document.body.dataset.phase = head.phase;
  document.body.dataset.running = Boolean(head.running);
}

function article() {
  const views = CAMERAS.map(([name, words]) =>
    element("figure", {}, element("img", { className: name, alt: words, width: 256, height: 256 }), element("figcaption", {}, words)));
  return element("article", {}, element("blockquote", { dir: "auto" }), element("p", { className: "note unknown" }),
    element("div", { className: "views" }, ...views),
    element("p", { className: "caption" }), element("div", { className: "result" }));
}

function drawSide(side, place) {
  const frame = side.frames[Math.min(Number(moment.value), side.frames.length - 1)];
  if (frame) {
    place.querySelector("blockquote").textContent = frame.sentence || "(no instruction: the sentence is empty)";
    const unknown = place.querySelector(".unknown");
    unknown.hidden = !frame.unknown.length;
    if (frame.unknown.length) unknown.textContent = `Not in the policy's vocabulary: ${frame.unknown.join(", ")}. It reads these letter by letter and may not know what they mean.`;
    for (const [name] of CAMERAS) {
      const image = place.querySelector(`.${name}`), address = frame.images[name];
      if (address.startsWith(IMAGE) && image.src !== address) image.src = address;
    }
    const touched = frame.first ? `touched first: ${frame.first}` : "nothing touched yet";
    place.querySelector(".caption").textContent =
      `Step ${frame.step} of ${frame.budget}; ${touched}; goal of the task (${frame.goal}): ${frame.reached ? "reached" : "not reached"}`;
  }
  const result = place.querySelector(".result");
  if (result.told === (side.end || side.error)) return;
  result.told = side.end || side.error;
  result.replaceChildren(...(side.error ? [fault(side.error.text)] : []), ...(side.end ? [list(side.end, side.frames.at(-1))] : []));
}

const fault = (text) => element("p", { className: "fault" }, text);

function list(end, last) {
  const pace = end.seconds > 0 ? `, ${(end.decisions / end.seconds).toFixed(1)} decisions per second` : "";
  const ended = end.finished ? "Ended" : "Stopped";
  const did = end.did === null ? "" : end.did ? "yes" : "no";
  const rows = [
    ["Did the robot do what the instruction asks for?", element("span", { className: did }, end.verdict)],
    ["Touched first", end.first || "nothing"],
    [`Goal of the task (${last.goal})`, end.goal ? "reached" : "not reached"],
    ["What it did", story(end.story)],
    [ended, `at step ${end.steps} of ${end.budget}, after ${end.decisions} decisions in ${end.seconds.toFixed(1)} s${pace}`],
  ];
  const made = element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  if (end.fault) made.prepend(fault(end.fault));
  return made;
}

function story(events) {
  if (!events.length) return "nothing";
  return element("ol", {}, ...events.map(([step, words]) => element("li", {}, element("span", {}, `step ${step}`), words)));
}

// ---------------------------------------------------------------- controls

for (const select of [suite, cell, task]) select.addEventListener("change", () => { init.value = "0"; show(); });
init.addEventListener("change", show);
b.addEventListener("input", () => { edited = true; });
two.addEventListener("change", () => { get("second").hidden = !two.checked; });
moment.addEventListener("input", draw);
get("stop").addEventListener("click", () => post("/stop", {}));
get("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && head.running) post("/stop", {}); });

listen();
fetch("/suites.json").then((reply) => reply.json()).then(async (found) => {
  await first;
  suites = found;
  if (!found.length) problem = "No shipped suite has a scene for this policy.";
  else if (head.request.number) adopt(head.request);
  else await show();
}).then(draw);
