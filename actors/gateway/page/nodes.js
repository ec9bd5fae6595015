// Nodes: state, memory, and what they do.

import { el, keyed, say, set } from "./elements.js";
import { bytes, count, list, micros, rate } from "./words.js";

const RANK = { alive: 0, suspect: 1, left: 2, down: 2 };

/** Shows all nodes of `view` in `place`. */
export function drawNodes(place, view, rates, now) {
  // Those that are over come last.
  const nodes = [...view.nodes].sort((a, b) => RANK[a.state] - RANK[b.state]);
  keyed(place, nodes, (node) => node.id, make, (card, node) => update(card, node, view, rates.of(node.id, now)));
}

function make() {
  return el("li", { class: "card node" },
    el("header", { class: "row" }, el("h3", { class: "name" }), el("span", { class: "badge" })),
    el("div", { class: "memory" },
      el("p", { class: "row" }, el("span", {}, "Memory"), el("span", { class: "amount" })),
      el("div", { class: "bar" }, el("div"))),
    el("p", { class: "note does" }),
    el("p", { class: "problem" }),
    el("details", {}, el("summary", {}, "More"), el("dl", { class: "facts" })));
}

function update(card, node, view, perSecond) {
  const find = (className) => card.querySelector(`.${className}`);
  const isOver = node.state === "down" || node.state === "left";
  set(card, { "data-node": node.name, "data-state": node.state });
  say(find("name"), node.name);
  set(find("name"), { title: node.name });
  say(find("badge"), node.state);
  set(find("badge"), { "data-state": node.state });

  const used = Math.max(0, node.memory_bytes - node.memory_free_bytes);
  const share = node.memory_bytes > 0 ? Math.min(1, used / node.memory_bytes) : 0;
  find("memory").hidden = isOver;
  say(find("amount"), `${bytes(used)} of ${bytes(node.memory_bytes)}`);
  find("bar").firstChild.style.width = `${(100 * share).toFixed(1)}%`;

  const sequences = node.sequences ?? { running: 0, queued: 0 };
  const does = [];
  if (perSecond > 0) does.push(`${rate(perSecond)} tokens/s to its clients`);
  if (sequences.running > 0) does.push(`${sequences.running} running`);
  if (sequences.queued > 0) does.push(`${sequences.queued} queued`);
  if (does.length === 0) does.push("no clients now");
  say(find("does"), does.join(" · "));
  find("does").hidden = isOver;

  const pressure = isOver ? 0 : (node.memory?.pressure_percent ?? 0);
  const problem = pressure >= 20 ? `Short of memory: ${pressure} % of the last ten seconds went by in waiting for it.` : "";
  say(find("problem"), problem);
  find("problem").hidden = problem === "";
  keyed(find("facts"), facts(node), ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd")), (row, [, value]) => say(row.lastChild, value));
}

/** What multiplies: `avx512, 2 threads` on a processor, else the GPU's name. */
function kernels({ kernels, device }) {
  if (kernels) return `${kernels.name}, ${count(kernels.threads, "thread")}`;
  return device && device.accelerator !== "none" ? device.accelerator : "";
}

function facts(node) {
  const restarts = Object.entries(node.restarts ?? {}).map(([actor, times]) => `${actor} ${count(times, "time")}`);
  const links = (node.links ?? []).map((link) => `${link.name} ${micros(link.rtt_micros)}`);
  const all = [
    ["Computes on", node.chip],
    ["Kernels", kernels(node)],
    ["Address", node.address],
    ["Process", `${node.pid}${node.worker_pids.length > 0 ? `, workers ${node.worker_pids.join(", ")}` : ""}`],
    ["Tokens given", String(node.generated_tokens ?? 0)],
    ["Started again", list(restarts)],
    ["Round trips", links.join(", ")],
    ["Id", node.id.slice(0, 16)],
  ];
  return all.filter(([, value]) => value !== "" && value !== undefined);
}
