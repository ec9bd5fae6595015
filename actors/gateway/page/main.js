// Puts the page together: what comes from the node, and who shows it.

import { Chat } from "./chat.js";
import { el, keyed, say, set, svg } from "./elements.js";
import { Live } from "./live.js";
import { drawModels } from "./models.js";
import { drawNodes } from "./nodes.js";
import { Picture } from "./picture.js";
import { Rates } from "./rates.js";
import { Server } from "./server.js";
import { Timeline } from "./timeline.js";
import { count, list, rate, safety } from "./words.js";

const HUES = 6;

const find = (id) => document.getElementById(id);
const server = new Server();
const rates = new Rates();
const picture = new Picture(find("picture"));
const timeline = new Timeline(find("timeline"), find("no-events"));
const chat = new Chat(document.querySelector(".chat"), server, () => askForKey());
const hues = new Map();
let view = null;

const live = new Live(server, onEvent, onStatus);

function onEvent(name, data) {
  if (name !== "cluster") {
    const sentence = timeline.take(name, data, Date.now());
    if (sentence) say(find("announcement"), sentence);
    return;
  }
  view = data;
  rates.take(view.nodes, performance.now());
  find("key").hidden = true;
  find("main").hidden = false;
  timeline.recoveries(view.recoveries);
  draw();
}

function draw() {
  if (!view) return;
  const now = performance.now();
  for (const model of view.models) {
    if (!hues.has(model.name)) hues.set(model.name, hues.size % HUES);
  }
  drawTiles(now);
  picture.draw(view, hues, rates.total(now) > 0);
  drawLegend();
  find("no-models").hidden = view.models.length > 0;
  drawModels(find("models"), view, hues);
  drawNodes(find("nodes"), view, rates, now);
  chat.offer(view.models);
}

function drawTiles(now) {
  const { nodes, models } = view;
  say(find("seen-by"), `as ${view.node.name} sees it`);
  say(find("rate"), rate(rates.total(now)));
  drawSpark(rates.history);
  const living = nodes.filter((node) => node.state === "alive");
  const sum = (field) => living.reduce((all, node) => all + (node.sequences?.[field] ?? 0), 0);
  say(find("running"), String(sum("running")));
  say(find("queued"), sum("queued") > 0 ? `${sum("queued")} queued` : "none queued");
  say(find("living"), String(living.length));
  say(find("of-all"), `of ${nodes.length} alive`);
  const others = nodes.filter((node) => node.state !== "alive");
  say(find("gone"), others.length > 0 ? `${list(others.slice(0, 2).map((node) => `${node.name} ${node.state}`))}${others.length > 2 ? ` and ${others.length - 2} more` : ""}` : "all is well");
  document.title = `${living.length} of ${count(nodes.length, "node")} · Planaria`;

  const unsafe = models.filter((model) => !safety(model).safe);
  const ready = models.filter((model) => model.state === "ready");
  say(find("safe"), models.length === 0 ? "–" : unsafe.length === 0 ? "Safe" : "Not safe");
  say(find("safe-note"), models.length === 0 ? "no model is served"
    : unsafe.length === 0 ? "N-1 safe: any one may die"
    : unsafe.length === 1 ? `${unsafe[0].name} is not N-1 safe`
    : `${unsafe.length} of ${count(models.length, "model")} are not N-1 safe`);
  set(find("safety"), { "data-safe": models.length === 0 ? null : String(unsafe.length === 0 && ready.length === models.length) });
}

function drawSpark(history) {
  const [width, height] = [120, 28];
  const most = Math.max(1, ...history);
  const x = (index) => width - (history.length - 1 - index) * (width / 59);
  const points = history.map((value, index) => `${x(index).toFixed(1)},${(height - 2 - (value / most) * (height - 4)).toFixed(1)}`);
  const place = find("spark");
  if (!place.firstChild) {
    place.append(svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, svg("polyline", { "vector-effect": "non-scaling-stroke" })));
  }
  set(place.firstChild.firstChild, { points: points.join(" ") });
}

function drawLegend() {
  const shown = view.models.length > 1 ? view.models : [];
  keyed(find("legend"), shown, (model) => model.name, (model) => el("span", { "data-hue": hues.get(model.name) }), (item, model) => say(item, model.name));
}

function onStatus(status, why) {
  const place = find("connection");
  set(place, { "data-status": status });
  const words = {
    connecting: view ? "reconnecting" : "connecting",
    live: "live",
    lost: why || `${view ? view.node.name : "the node"} is away, trying again`,
    key: "key needed",
  };
  // Attempts are many: who listens hears of the first.
  const isAgain = status === "connecting" && place.dataset.was === "lost";
  if (!isAgain) say(place, words[status]);
  place.dataset.was = isAgain ? "lost" : status;
  set(document.body, { "data-status": isAgain ? "lost" : status });
  if (status === "key") askForKey();
}

function askForKey() {
  const [form, problem] = [find("key"), find("key-problem")];
  say(problem, server.hasKey ? "That key is not the right one." : "");
  find("main").hidden = true;
  form.hidden = false;
  find("key-field").focus();
}

find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  server.key = find("key-field").value.trim();
  find("key-field").value = "";
  live.resume();
});

// Rates fall to nothing without a word from anybody.
setInterval(() => {
  rates.tick(performance.now());
  draw();
}, 1000);

live.resume();
