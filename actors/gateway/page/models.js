// Models: state, plan, and what would become of it without a node.

import { el, keyed, say, set, shorten, svg } from "./elements.js";
import { count, division, epoch, layers, micros, part as share, safety, sharers, stages, who } from "./words.js";

const FONT = "600 13px system-ui, sans-serif";
const SMALL = "12px system-ui, sans-serif";
const HEIGHT = 46;

/** Shows all models of `view` in `place`. */
export function drawModels(place, view, hues) {
  keyed(place, view.models, (model) => model.name, make, (card, model) => update(card, model, view, hues));
}

function make() {
  const part = (name, className, ...children) => el(name, { class: className }, ...children);
  const card = part("article", "card model",
    part("header", "row", part("h3", "name"), part("span", "badge")),
    part("p", "note about"),
    part("p", "problem why"),
    part("div", "strip"),
    part("p", "safety"),
    el("details", {}, el("summary", {}, "Stages"), part("ol", "stages")),
    el("details", {}, el("summary", {}, "If one of its nodes died"), part("ul", "failover")));
  new ResizeObserver(() => card.redraw?.()).observe(card);
  return card;
}

function update(card, model, view, hues) {
  const find = (className) => card.querySelector(`.${className}`);
  set(card, { "data-model": model.name, "data-state": model.state, "data-hue": hues.get(model.name) });
  say(find("name"), model.name);
  say(find("badge"), model.state);
  set(find("badge"), { "data-state": model.state });
  const about = [epoch(model.epoch, view.nodes), division(model.strategy)];
  if (model.context) about.push(`context ${model.context}`);
  say(find("about"), about.join(" · "));
  set(find("about"), { "data-epoch": model.epoch?.counter });
  const why = [model.reason, model.unpinned].filter((text) => text !== "").join(". ");
  say(find("why"), why);
  find("why").hidden = why === "";
  const { safe, text } = safety(model);
  say(find("safety"), text);
  set(find("safety"), { "data-safe": String(safe) });
  // A plan that is gone most often makes way for another at once: its place is kept, so that nothing jumps.
  const isPlanned = model.stages.length > 0;
  const details = [...card.querySelectorAll("details")];
  for (const part of [find("strip"), find("safety"), ...details]) {
    part.hidden = !isPlanned && !find("strip").firstChild;
    set(part, { "data-gone": !isPlanned || null, "aria-hidden": isPlanned ? null : "true" });
  }
  card.redraw = () => drawStrip(find("strip"), model);
  card.redraw();
  keyed(find("stages"), model.stages, (stage) => stage.node, () => el("li", {}, el("b"), el("span")), (item, stage) => {
    say(item.firstChild, who(stage));
    say(item.lastChild, stageWords(stage));
  });
  const failover = Object.entries(model.failover);
  details[1].hidden ||= isPlanned && failover.length === 0;
  keyed(find("failover"), failover, ([name]) => name, () => el("li", {}, el("b"), el("span")), (item, [name, plan]) => {
    say(item.firstChild, `without ${name}`);
    say(item.lastChild, plan === null ? "no plan" : stages(plan));
    set(item, { "data-fatal": plan === null || null });
  });
}

function stageWords(stage) {
  const words = [layers(stage), worst(stage)];
  const parts = sharers(stage).map((rank) => `${rank.name} ${share(rank)}`);
  if (parts.length > 0) words.push(parts.join(", "));
  if (stage.work.step_micros > 0) words.push(`a step takes ${micros(stage.work.step_micros)}`);
  if (stage.hop_micros !== null) words.push(`${micros(stage.hop_micros)} to the next`);
  if (stage.pinned) words.push("pinned");
  return words.join(", ");
}

/** The state of a stage: that of a rank that is not ready, if there is one. */
function worst(stage) {
  return sharers(stage).map((rank) => rank.state).find((state) => state !== "ready") ?? stage.state;
}

/** The layers of a model, from the first to the last, by who computes them. */
function drawStrip(place, model) {
  const width = place.clientWidth;
  const total = (model.stages.at(-1)?.last_layer ?? -1) + 1;
  const key = JSON.stringify([width, model.stages.map((s) => [s.node, who(s), s.first_layer, s.last_layer, worst(s), sharers(s).map((r) => r.last_unit)])]);
  if (place.dataset.drawn === key || total === 0 || width < 50) return;
  place.dataset.drawn = key;
  const gap = 2;
  const unit = (width + gap) / total;
  const pieces = model.stages.map((stage) => {
    const x = stage.first_layer * unit;
    const w = Math.max(2, (stage.last_layer - stage.first_layer + 1) * unit - gap);
    const text = (y, className, words, font) => {
      const shown = shorten(words, w - 16, font);
      // A letter or two say less than none.
      return shown === words || shown.length > 4 ? svg("text", { class: className, x: x + 9, y }, shown) : null;
    };
    // Ranks share every layer: below the words each has a line as long as its part.
    const parts = sharers(stage).map((rank) => {
      const [left, end] = [rank.first_unit, rank.last_unit + 1].map((unit) => (unit / rank.units) * (w - 16));
      return svg("rect", { class: "rank", x: x + 8 + left, y: HEIGHT - 6, width: Math.max(2, end - left - 3), height: 2 });
    });
    return svg("g", { class: "segment", "data-state": worst(stage), "data-node": who(stage), "data-layers": `${stage.first_layer}-${stage.last_layer}` },
      svg("title", {}, `${who(stage)}: ${layers(stage)}, ${worst(stage)}`),
      svg("rect", { x, y: 0, width: w, height: HEIGHT, rx: 6 }),
      ...parts,
      text(20, "who", who(stage), FONT),
      text(36, "what", w < 110 ? layers(stage).replace(/^layers? /, "") : layers(stage), SMALL));
  });
  const label = `${count(total, "layer")}: ${stages(model.stages)}`;
  place.replaceChildren(svg("svg", { role: "img", "aria-label": label, width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` }, ...pieces));
}
