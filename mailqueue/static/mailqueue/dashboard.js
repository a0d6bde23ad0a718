// Asks for the figures every two seconds and shows them. What fails is asked again, and said meanwhile.
"use strict";

const EVERY = 2000;
const PATIENCE = 8000;
// Seconds without a word of beat; a heartbeat is written every 10.
const SILENT = 30;
const SVG = "http://www.w3.org/2000/svg";
const pulse = document.getElementById("pulse");
let answered = null;

const whole = (number) => number.toLocaleString("en-GB");
const rate = (number) => (number > 0 && number < 10 ? number.toFixed(1) : whole(Math.round(number)));
const clock = (date) => date.toLocaleTimeString("en-GB");

function lasting(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.9995) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 120) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function say(name, text) {
  for (const place of document.querySelectorAll(`[data-said="${name}"]`)) place.textContent = text;
}

function drawn(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Where there is nothing to tell the curve is broken off; a minute by itself is a short stroke.
function paths(values, highest) {
  const step = 600 / (values.length - 1);
  const y = (value) => (100 - (value / highest) * 96).toFixed(2);
  let curve = "";
  let area = "";
  let from = null;
  values.forEach((value, minute) => {
    const x = (minute * step).toFixed(1);
    if (value === null) {
      if (from !== null) area += `L${((minute - 1) * step).toFixed(1)} 100Z`;
      from = null;
      return;
    }
    if (from === null) {
      curve += `M${x} ${y(value)}h0.1`;
      area += `M${x} 100L${x} ${y(value)}`;
      from = minute;
    } else {
      curve += `L${x} ${y(value)}`;
      area += `L${x} ${y(value)}`;
    }
  });
  if (from !== null) area += "L600 100Z";
  return { curve, area };
}

function draw(id, values, told) {
  const plot = document.querySelector(`#${id} .plot`);
  const known = values.filter((value) => value !== null);
  const highest = Math.max(...known, 0);
  const svg = drawn("svg", { viewBox: "0 0 600 100", preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", highest ? `highest of the last hour: ${told(highest)}` : "nothing in the last hour");
  for (const y of [4, 52, 100]) svg.append(drawn("line", { class: "grid", x1: 0, x2: 600, y1: y, y2: y }));
  const { curve, area } = paths(values, highest || 1);
  svg.append(drawn("path", { class: "area", d: area }), drawn("path", { class: "curve", d: curve }));
  const most = document.createElement("div");
  most.className = "most";
  most.append(Object.assign(document.createElement("span"), { textContent: highest ? told(highest) : "nothing in the last hour" }));
  const ends = document.createElement("div");
  ends.className = "ends";
  for (const text of ["an hour ago", "now"]) ends.append(Object.assign(document.createElement("span"), { textContent: text }));
  plot.replaceChildren(most, svg, ends);
}

function row(worker) {
  const line = document.createElement("tr");
  line.className = worker.state;
  const isGone = worker.state === "gone";
  const state = Object.assign(document.createElement("span"), { className: "state", textContent: isGone ? "gone" : worker.doing });
  const cells = [worker.name, state, whole(worker.in_flight), whole(worker.sent)];
  cells.push(isGone ? `silent for ${lasting(worker.silent_seconds)}` : `${worker.silent_seconds} s ago`);
  cells.forEach((cell, number) => {
    const place = document.createElement("td");
    if (number > 1) place.className = "n";
    place.append(cell);
    line.append(place);
  });
  return line;
}

function show({ stats, curves, workers }) {
  for (const place of document.querySelectorAll("[data-number]")) place.textContent = whole(stats[place.dataset.number]);
  document.getElementById("dead").classList.toggle("some", stats.dead_letter > 0);
  document.getElementById("uncertain").classList.toggle("some", stats.uncertain > 0);
  say("rate", rate(stats.rate));
  say("p50", lasting(stats.latency_p50_seconds));
  say("p95", lasting(stats.latency_p95_seconds));
  say("age", stats.due ? `${whole(stats.due)} due, the oldest for ${lasting(stats.oldest_due_age_seconds)}` : "nothing is due");
  draw("rate", curves.rate, (value) => `${rate(value)} a second`);
  draw("latency", curves.latency, lasting);
  const gone = workers.filter((worker) => worker.state === "gone").length;
  say("workers", `${whole(stats.workers)} alive${gone ? `, ${whole(gone)} gone` : ""}`);
  document.getElementById("nobody").hidden = stats.workers > 0;
  const tick = stats.last_tick_seconds;
  say("tick", tick === null ? "beat was not heard lately" : `beat was heard ${Math.round(tick)} s ago`);
  document.getElementById("silence").hidden = tick !== null && tick < SILENT;
  const table = document.getElementById("workers");
  table.hidden = workers.length === 0;
  table.tBodies[0].replaceChildren(...workers.map(row));
}

function lost(why) {
  pulse.className = "pulse lost";
  pulse.textContent = answered ? `${why}; these are the figures of ${clock(answered)}` : `${why}; asking again`;
  document.body.classList.add("stale");
}

async function ask() {
  const answer = await fetch(document.body.dataset.figures, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) {
    lost("Logged out");
    const link = Object.assign(document.createElement("a"), { href: location.href, textContent: "log in" });
    pulse.append(": ", link);
    return;
  }
  if (!answer.ok) throw new Error(`${answer.status}`);
  show(await answer.json());
  answered = new Date();
  pulse.className = "pulse live";
  pulse.textContent = `live · ${clock(answered)}`;
  document.body.classList.remove("stale");
}

async function watch() {
  for (;;) {
    if (!document.hidden) {
      try {
        await ask();
      } catch {
        lost("No answer");
      }
    }
    await new Promise((wake) => setTimeout(wake, EVERY));
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask().catch(() => lost("No answer"));
});
watch();
