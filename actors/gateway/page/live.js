// Follows the cluster, and comes back when the node was away.

import { KeyNeeded, Refused } from "./server.js";

/** The node shows every five seconds that it lives. */
const SILENCE = 12_000;
const FIRST_WAIT = 400;
const LONGEST_WAIT = 10_000;

/**
 * Calls `onEvent(name, data)` for every event, and `onStatus(status, why)` when the connection changes:
 * `connecting`, `live`, `lost` or `key`. After `key` it rests until `resume` is called. A page that nobody sees
 * follows nothing: browsers have six connections to a node for all of its pages together.
 */
export class Live {
  #server;
  #onEvent;
  #onStatus;
  #wait = FIRST_WAIT;
  #timer = null;
  #running = null;
  #rests = false;

  constructor(server, onEvent, onStatus) {
    this.#server = server;
    this.#onEvent = onEvent;
    this.#onStatus = onStatus;
    const again = () => (this.#rests || this.#timer !== null) && this.resume();
    addEventListener("online", again);
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#rest() : again()));
  }

  /** Connects now, or when somebody looks. */
  resume() {
    this.#rest();
    if (document.hidden) return;
    this.#rests = false;
    const abort = new AbortController();
    this.#running = abort;
    this.#follow(abort);
  }

  #rest() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#running?.abort();
    this.#running = null;
    this.#rests = true;
  }

  async #follow(abort) {
    this.#onStatus("connecting");
    let silence = null;
    let why = "";
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
      if (error instanceof Refused) why = error.message;
    } finally {
      clearTimeout(silence);
    }
    // Somebody else follows meanwhile.
    if (this.#running !== abort) return;
    // Pages that lost the same node do not come back all at once.
    const wait = this.#wait * (0.75 + Math.random() / 2);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT);
    this.#onStatus("lost", why);
    this.#timer = setTimeout(() => this.resume(), wait);
  }
}
