// Draws nodes, their layers, and the ways that tokens take.

import { keyed, say, set, shorten, svg } from "./elements.js";
import { loop, way } from "./layout.js";
import { list, part as share, range, sharers } from "./words.js";

/** So many places; of nodes that are over, only as many are shown as fit. */
const PLACES = 12;
const LINES = 2;
const NAME_FONT = "600 14px system-ui, sans-serif";
const TEXT_FONT = "12px system-ui, sans-serif";
const PAD = 13;

export class Picture {
  #place;
  #svg;
  #links = svg("g", { class: "links" });
  #hops = svg("g", { class: "hops" });
  #nodes = svg("g", { class: "cards" });
  #title = svg("title");
  /** Nodes in the order of their places: who has one keeps it. */
  #order = [];
  #shown = null;

  constructor(place) {
    this.#place = place;
    const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 4, refY: 4, markerWidth: 4.5, markerHeight: 4.5, orient: "auto" },
      svg("path", { d: "M0.5 0.5 L7.5 4 L0.5 7.5 Z", fill: "context-stroke" }));
    this.#svg = svg("svg", { role: "img", "aria-labelledby": "picture-text" },
      this.#title, svg("defs", {}, arrow), this.#links, this.#hops, this.#nodes);
    this.#title.id = "picture-text";
    place.append(this.#svg);
    new ResizeObserver(() => this.#shown && this.draw(...this.#shown)).observe(place);
  }

  /** `hues` gives models their colours, `flowing` says whether tokens come. */
  draw(view, hues, flowing) {
    this.#shown = [view, hues, flowing];
    const width = this.#place.clientWidth;
    if (width < 50) return;
    const nodes = this.#placed(view);
    const layout = loop(nodes.length, width);
    set(this.#svg, { viewBox: `0 0 ${layout.width} ${layout.height}`, width: layout.width, height: layout.height });
    const at = new Map(nodes.map((node, index) => [node.id, index]));
    this.#drawLinks(nodes, layout, at);
    this.#drawHops(view, hues, flowing, layout, at);
    keyed(this.#nodes, nodes, (node) => node.id, card, (element, node) => {
      const place = layout.places[at.get(node.id)];
      const { width: w, height: h } = layout.card;
      element.style.transform = `translate(${place.x - w / 2}px, ${place.y - h / 2}px)`;
      drawCard(element, node, view, hues, w, h);
    });
    say(this.#title, described(view));
  }

  #placed(view) {
    const known = new Map(view.nodes.map((node) => [node.id, node]));
    const isOver = (id) => ["down", "left"].includes(known.get(id).state);
    this.#order = this.#order.filter((id) => known.has(id));
    // At first in the order in which tokens go.
    const first = view.models.flatMap((model) => model.stages.map((stage) => stage.node));
    for (const id of [...first, ...known.keys()]) {
      if (known.has(id) && !this.#order.includes(id)) this.#order.push(id);
    }
    let room = Math.max(0, PLACES - this.#order.filter((id) => !isOver(id)).length);
    const shown = this.#order.filter((id) => !isOver(id) || room-- > 0);
    return shown.map((id) => known.get(id));
  }

  #drawLinks(nodes, layout, at) {
    const links = new Map();
    for (const node of nodes.filter((one) => one.state === "alive" || one.state === "suspect")) {
      for (const link of node.links ?? []) {
        const [from, to] = [at.get(node.id), at.get(link.to)];
        const other = nodes[to];
        if (other === undefined || !["alive", "suspect"].includes(other.state)) continue;
        links.set(`${Math.min(from, to)}-${Math.max(from, to)}`, { from: Math.min(from, to), to: Math.max(from, to) });
      }
    }
    keyed(this.#links, links.entries(), ([key]) => key, () => svg("path"), (path, [, { from, to }]) => {
      set(path, { d: way(layout, from, to) });
    });
  }

  #drawHops(view, hues, flowing, layout, at) {
    const hops = [];
    for (const model of view.models) {
      const stages = model.stages.filter((stage) => at.has(stage.node));
      if (stages.length < 2) continue;
      stages.forEach((stage, index) => {
        const next = stages[(index + 1) % stages.length];
        const pair = [stage.node, next.node].sort().join();
        const aside = hops.filter((hop) => hop.pair === pair).length;
        const back = stages.length === 2 || aside > 0;
        hops.push({
          key: `${model.name} ${index}`, pair, hue: hues.get(model.name),
          isReturn: index === stages.length - 1,
          path: way(layout, at.get(stage.node), at.get(next.node), back ? 9 + 9 * Math.floor(aside / 2) : 0),
        });
      });
    }
    keyed(this.#hops, hops, (hop) => hop.key, () => svg("path", { "marker-mid": "url(#arrow)" }), (path, hop) => {
      set(path, { d: hop.path, "data-hue": hop.hue, "data-return": hop.isReturn || null, "data-flowing": flowing || null });
    });
  }
}

function card(node) {
  return svg("g", { class: "card-node", "data-node": node.name },
    svg("title"),
    svg("rect", { class: "frame", rx: 12 }),
    svg("g", { class: "sign" }),
    svg("text", { class: "name", x: PAD + 18, y: 25 }),
    svg("g", { class: "holdings" }));
}

function drawCard(element, node, view, hues, width, height) {
  const [title, frame, sign, name, holdings] = element.children;
  set(element, { "data-state": node.state, "data-this": node.id === view.node.id || null });
  set(frame, { width, height });
  if (sign.dataset.state !== node.state) {
    sign.dataset.state = node.state;
    sign.replaceChildren(...signOf(node.state));
  }
  const mark = node.state === "alive" ? "" : node.state;
  const held = holdingsOf(node, view);
  say(title, [`${node.name} (${node.state})`, ...held.map((one) => `${one.model}: ${one.words}`)].join("\n"));
  say(name, shorten(node.name, width - 2 * PAD - 18, NAME_FONT));
  const lines = mark ? [] : held.slice(0, LINES);
  const key = JSON.stringify([mark, lines, held.length, width]);
  if (holdings.dataset.drawn === key) return;
  holdings.dataset.drawn = key;
  const several = view.models.length > 1;
  const parts = lines.flatMap((one, index) => {
    const y = lines.length === 1 ? 54 : 47 + 24 * index;
    const text = several ? `${one.short} · ${one.model}` : one.words;
    const more = held.length > LINES && index === LINES - 1 ? ` +${held.length - LINES}` : "";
    const room = width - 2 * PAD;
    return [
      svg("text", { class: "layers", x: PAD, y }, shorten(text, room - (more ? 22 : 0), TEXT_FONT) + more),
      ...strip(one, hues, PAD, y + (lines.length === 1 ? 11 : 5), room, lines.length === 1 ? 7 : 4),
    ];
  });
  if (parts.length === 0) {
    const text = { down: "planned around", left: "left in order", suspect: "is being asked" }[mark];
    parts.push(svg("text", { class: "layers", x: PAD, y: 54 }, shorten(text ?? "holds no layers", width - 2 * PAD, TEXT_FONT)));
    if (mark === "suspect" && held.length > 0) parts.push(...strip(held[0], hues, PAD, 65, width - 2 * PAD, 7));
  }
  holdings.replaceChildren(...parts);
}

/** What a node has of each model: the layers that it computes, and those that it keeps ready. */
function holdingsOf(node, view) {
  return view.models.flatMap((model) => {
    const total = (model.stages.at(-1)?.last_layer ?? -1) + 1;
    const rankOf = (stage) => sharers(stage).find((rank) => rank.node === node.id);
    const own = model.stages.filter((stage) => stage.node === node.id || rankOf(stage));
    const ready = (node.held ?? []).find((held) => held.model === model.name)?.layers ?? [];
    if (own.length === 0 && ready.length === 0) return [];
    const part = (stage) => (rankOf(stage) ? ` (${share(rankOf(stage))})` : "");
    const short = own.map((stage) => range(stage) + part(stage)).join(", ");
    const words = own.length > 0 ? `layers ${short}` : "standing by";
    return [{ model: model.name, short: short || "standing by", words, own, ready, total }];
  });
}

/** All layers of a model as a bar, with a node's own in colour. */
function strip({ model, own, ready, total }, hues, x, y, width, height) {
  const last = Math.max(total - 1, ...ready.map((run) => run.last_layer));
  const unit = width / (last + 1);
  const piece = (kind, { first_layer: first, last_layer: end }) => svg("rect", {
    class: kind, "data-hue": hues.get(model), x: x + first * unit, y, width: Math.max(2, (end - first + 1) * unit), height, rx: 2,
  });
  return [
    svg("rect", { class: "none", x, y, width, height, rx: 2 }),
    ...ready.map((run) => piece("held", run)),
    ...own.map((stage) => piece(stage.state === "ready" ? "own" : "coming", stage)),
  ];
}

/** A state as a shape, so that it is no matter of colour alone. */
function signOf(state) {
  const [x, y] = [PAD + 5, 20];
  const line = (d) => svg("path", { d, class: "stroke" });
  switch (state) {
    case "alive": return [svg("circle", { cx: x, cy: y, r: 5 })];
    case "suspect": return [svg("circle", { cx: x, cy: y, r: 4.5, class: "ring" }), svg("circle", { cx: x, cy: y, r: 1.5 })];
    case "down": return [line(`M${x - 4} ${y - 4} l8 8 M${x + 4} ${y - 4} l-8 8`)];
    default: return [line(`M${x - 5} ${y} h10`)];
  }
}

function described(view) {
  const nodes = view.nodes.map((node) => {
    const held = holdingsOf(node, view).filter((one) => one.own.length > 0);
    const parts = held.map((one) => `${one.words} of ${one.model}`);
    return `${node.name} is ${node.state}${parts.length > 0 ? ` and computes ${list(parts)}` : ""}`;
  });
  return nodes.join(". ");
}
