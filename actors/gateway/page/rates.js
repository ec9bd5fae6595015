// Tokens a second, out of counters that nodes tell once a second. Pure: the clock is an argument.

/** How often nodes tell their counters. */
const TOLD_EVERY = 1000;
/** Rates are means over this time: steady enough to be read. */
const WINDOW = 4000;
/** So many seconds are drawn. */
const KEPT = 60;

export class Rates {
  #nodes = new Map();
  /** Of the whole cluster, one for each second, the oldest first. */
  history = [];
  #ticked = 0;

  /** Takes in what the nodes of a view have counted. */
  take(nodes, now) {
    for (const { id, generated_tokens: count = 0 } of nodes) {
      const points = this.#nodes.get(id) ?? [];
      this.#nodes.set(id, points);
      const last = points.at(-1);
      // The first, and those of a node that was started again, begin anew.
      if (!last || count < last.count) {
        points.splice(0, points.length, { at: now, count });
      } else if (count > last.count) {
        // What came after a silence came within what was told last.
        if (now - last.at > 1.5 * TOLD_EVERY) points.push({ at: now - TOLD_EVERY, count: last.count });
        points.push({ at: now, count });
      }
      while (points.length > 2 && now - points[1].at > WINDOW) points.shift();
    }
  }

  /** Tokens a second of a node's clients. */
  of(id, now) {
    const points = this.#nodes.get(id) ?? [];
    const last = points.at(-1);
    if (points.length < 2 || now - last.at > 1.6 * TOLD_EVERY) return 0;
    const first = points.find((point) => last.at - point.at <= WINDOW);
    return first === last ? 0 : ((last.count - first.count) * 1000) / (last.at - first.at);
  }

  /** Tokens a second of all clients. */
  total(now) {
    return [...this.#nodes.keys()].reduce((sum, id) => sum + this.of(id, now), 0);
  }

  /** Takes down the total, once a second however often it is called. */
  tick(now) {
    if (now - this.#ticked < 1000) return;
    this.#ticked = now;
    this.history.push(this.total(now));
    if (this.history.length > KEPT) this.history.shift();
  }
}
