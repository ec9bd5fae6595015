// Follows the cluster, and comes back when the node was away.

import { KeyNeeded } from "./server.js";

/** The node shows every five seconds that it lives. */
const SILENCE = 12_000;
const FIRST_WAIT = 400;
const LONGEST_WAIT = 10_000;

/**
 * Calls `onEvent(name, data)` for every event, and `onStatus(status)` when the connection changes: `connecting`,
 * `live`, `lost` or `key`. After `key` it rests until `resume` is called.
 */
export class Live {
  #server;
  #onEvent;
  #onStatus;
  #wait = FIRST_WAIT;
  #timer = null;
  #running = null;

  constructor(server, onEvent, onStatus) {
    this.#server = server;
    this.#onEvent = onEvent;
    this.#onStatus = onStatus;
    const again = () => document.visibilityState === "visible" && this.#timer !== null && this.resume();
    addEventListener("online", again);
    document.addEventListener("visibilitychange", again);
  }

  /** Connects now. */
  resume() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#running?.abort();
    const abort = new AbortController();
    this.#running = abort;
    this.#follow(abort);
  }

  async #follow(abort) {
    this.#onStatus("connecting");
    let silence = null;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(), SILENCE);
    };
    try {
      heard();
      for await (const event of this.#server.events("/cluster/events", { signal: abort.signal })) {
        heard();
        if (event.comment !== null) continue;
        if (event.event === "cluster") {
          this.#wait = FIRST_WAIT;
          this.#onStatus("live");
        }
        this.#onEvent(event.event, JSON.parse(event.data));
      }
    } catch (error) {
      if (error instanceof KeyNeeded && this.#running === abort) {
        this.#onStatus("key");
        return;
      }
    } finally {
      clearTimeout(silence);
    }
    // Somebody else follows meanwhile.
    if (this.#running !== abort) return;
    // Pages that lost the same node do not come back all at once.
    const wait = this.#wait * (0.75 + Math.random() / 2);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT);
    this.#onStatus("lost");
    this.#timer = setTimeout(() => this.resume(), wait);
  }
}
