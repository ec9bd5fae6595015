// Numbers and states in words.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let unit = 0;
  let rest = count;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  const digits = unit > 0 && rest < 10 ? 1 : 0;
  return `${rest.toFixed(digits)} ${UNITS[unit]}`;
}

export function millis(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

export function micros(us) {
  return us < 1000 ? `${us} µs` : `${(us / 1000).toFixed(us < 10_000 ? 2 : 1)} ms`;
}

export function rate(perSecond) {
  return perSecond < 10 && perSecond > 0 ? perSecond.toFixed(1) : String(Math.round(perSecond));
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** Layers as people write them: `0–4`. */
export function range({ first_layer: first, last_layer: last }) {
  return first === last ? String(first) : `${first}–${last}`;
}

export function layers(stage) {
  return `${stage.first_layer === stage.last_layer ? "layer" : "layers"} ${range(stage)}`;
}

export function list(words) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

export function stages(all) {
  return all.map((stage) => `${who(stage)} ${range(stage)}`).join(", ");
}

/** The ranks that share the layers of a stage; none of a node alone. */
export function sharers(stage) {
  const ranks = stage.ranks ?? [];
  return ranks.length > 1 ? ranks : [];
}

/** Who computes a stage: a node, or several that share its layers. */
export function who(stage) {
  return sharers(stage).map((rank) => rank.name ?? rank).join(" + ") || stage.name;
}

/** A rank's part of each layer. */
export function part(rank) {
  return `${rank.last_unit - rank.first_unit + 1} of ${rank.units} parts`;
}

export function clock(at) {
  return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** A plan's number and who made it. */
export function epoch(of, nodes) {
  if (!of) return "no plan";
  const planner = nodes.find((node) => node.id === of.planner);
  return `plan ${of.counter} by ${planner ? planner.name : of.planner.slice(0, 10)}`;
}

/** What `strategy` divides a model by. */
export function division(strategy) {
  if (strategy === "tensor") return "every layer shared by all";
  return strategy === "latency" ? "divided by time per token" : "divided by memory";
}

/** What would become of a model if one of its nodes died: whether it is safe, and a sentence. */
export function safety(model) {
  if (!model.epoch) return { safe: false, text: "" };
  const fatal = Object.entries(model.failover).filter(([, plan]) => plan === null);
  if (model.n_minus_1_safe) {
    const whose = model.stages.length === 1 ? "its node" : "any one of its nodes";
    return { safe: true, text: `N-1 safe: ${whose} may die, and others take over.` };
  }
  if (fatal.length === 0) return { safe: false, text: "What to do without a node is being worked out." };
  return { safe: false, text: `Not N-1 safe: without ${list(fatal.map(([name]) => name))} nobody has room for its layers.` };
}
