// What failed, and how it was got over, the latest first.

import { el, keyed, say, set } from "./elements.js";
import { clock, count, millis, stages } from "./words.js";

const KEPT = 60;
/** A model without a plan for less than this, in milliseconds, is not worth a line. */
const GAP = 3000;
const PHASES = ["detect", "plan", "load", "rebuild"];

export class Timeline {
  #place;
  #empty;
  #entries = [];
  #number = 0;

  constructor(place, empty) {
    this.#place = place;
    this.#empty = empty;
  }

  /** Takes in what a view remembers, by the clock of its node; of later ones there are events. */
  recoveries(all) {
    all.forEach((one) => this.#recovery(one, one.at + one.resume_ms));
    this.#draw();
  }

  /** Takes in an event. Gives a sentence when it is worth to be said aloud. */
  take(name, data, at) {
    const sentence = this.#event(name, data, at);
    this.#draw();
    return sentence;
  }

  #event(name, data, at) {
    switch (name) {
      case "member": return this.#member(data, at);
      case "plan": return this.#plan(data, at);
      case "failure": return this.#add(at, "failure", `${sentence(data.kind === "model" ? `${data.name} cannot be served` : data.reason)}`, data.kind === "model" ? data.reason : "");
      case "recovery": return this.#recovery(data, at);
      default: return null;
    }
  }

  #member({ name, from, to }, at) {
    // A failure tells of that.
    if (to === "down" && from !== null) return null;
    const words = {
      alive: from === "suspect" ? "answers again" : from === null ? "has joined" : "is back",
      suspect: "does not answer; it is asked again",
      left: "has left in order",
      down: "is down",
      null: "is forgotten",
    };
    const kind = to === "alive" ? "good" : to === "suspect" ? "doubt" : "quiet";
    return this.#add(at, kind, `${name} ${words[to]}`, "");
  }

  #plan({ model, to_epoch: epoch, stages: all }, at) {
    // Most often there is another plan at once.
    const gap = `${model} has no plan`;
    const isFilled = (entry) => entry.title === gap && at - entry.at < GAP;
    this.#entries = this.#entries.filter((entry) => !isFilled(entry));
    if (!epoch) return this.#add(at, "quiet", gap, "");
    return this.#add(at, "plan", `${model} has a new plan, number ${epoch.counter}`, stages(all));
  }

  #recovery(one, at) {
    const key = `${one.at} ${one.model} ${one.to_epoch?.counter}`;
    const known = this.#entries.find((entry) => entry.key === key);
    const title = `${count(one.sequences, "answer")} went on after ${millis(one.resume_ms)}`;
    const how = one.label === "exact" ? "nothing had to be computed again" : `${count(one.replayed, "position")} computed again`;
    const detail = `${sentence(one.cause)}; ${how}.`;
    if (known) Object.assign(known, { title, detail, recovery: one });
    else this.#entries.push({ key, number: this.#next(), at, kind: "recovery", title, detail, recovery: one });
    return known && known.title === title ? null : title;
  }

  #add(at, kind, title, detail) {
    const number = this.#next();
    this.#entries.push({ key: String(number), number, at, kind, title, detail, recovery: null });
    return title;
  }

  #next() {
    this.#number += 1;
    return this.#number;
  }

  #draw() {
    this.#entries.sort((a, b) => b.at - a.at || b.number - a.number);
    this.#entries.splice(KEPT);
    this.#empty.hidden = this.#entries.length > 0;
    keyed(this.#place, this.#entries, (entry) => entry.key, make, update);
  }
}

function make(entry) {
  return el("li", { "data-kind": entry.kind },
    el("time", {}), el("p", { class: "title" }), el("p", { class: "note" }), el("div", { class: "phases" }));
}

function update(item, { at, title, detail, recovery }) {
  const [time, heading, note, phases] = item.children;
  say(time, clock(at));
  set(time, { datetime: new Date(at).toISOString() });
  say(heading, title);
  say(note, detail);
  note.hidden = detail === "";
  phases.hidden = recovery === null;
  const key = recovery && PHASES.map((phase) => recovery[`${phase}_ms`]).join();
  if (recovery && phases.dataset.drawn !== key) {
    phases.dataset.drawn = key;
    phases.replaceChildren(bar(recovery), legend(recovery));
  }
}

/** The phases as parts of a bar, as long as they took. */
function bar(recovery) {
  const parts = PHASES.map((phase) => {
    const part = el("div", { "data-phase": phase });
    part.style.flexGrow = String(recovery[`${phase}_ms`] ?? 0);
    return part;
  });
  return el("div", { class: "phase-bar", "aria-hidden": "true" }, ...parts);
}

function legend(recovery) {
  const rows = [...PHASES, "resume"].filter((phase) => recovery[`${phase}_ms`] !== null).map((phase) =>
    el("div", { "data-phase": phase }, el("dt", {}, phase), el("dd", {}, millis(recovery[`${phase}_ms`]))));
  return el("dl", {}, ...rows);
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
