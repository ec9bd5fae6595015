// Speaks to this node: with the key if it demands one, and in streams of events.
//
// EventSource cannot send a key, so events are read from the body of an answer.

const KEPT_AS = "planaria-key";

/** The node demands another key. */
export class KeyNeeded extends Error {}

/** The node refuses. */
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    /** In seconds, if it is worth to ask again. */
    this.retryAfter = retryAfter;
  }
}

export class Server {
  #key = kept();

  /** Whether there is a key that may be wrong. */
  get hasKey() {
    return this.#key !== "";
  }

  /** The key from here on: in this tab, as long as it is open. */
  set key(key) {
    this.#key = key;
    try {
      sessionStorage.setItem(KEPT_AS, key);
    } catch {
      // A browser that keeps nothing: this page still knows it.
    }
  }

  async #open(path, options) {
    const headers = { ...(this.#key && { authorization: `Bearer ${this.#key}` }), ...options.headers };
    const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    if (answer.status === 401) throw new KeyNeeded(await reason(answer));
    if (!answer.ok) {
      const after = Number(answer.headers.get("retry-after"));
      throw new Refused(answer.status, await reason(answer), after > 0 ? after : null);
    }
    return answer;
  }

  /** Events as they come, as `{event, data}`, and comments as `{comment}`. */
  async *events(path, options = {}) {
    const answer = await this.#open(path, options);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) yield parsed(event);
      }
    } finally {
      // The node stops computing for whoever is gone.
      reader.cancel().catch(() => {});
    }
  }

  /** Asks with a body of JSON, and gives the answer's events. */
  ask(path, body, signal) {
    const headers = { "content-type": "application/json" };
    return this.events(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }
}

function kept() {
  try {
    return sessionStorage.getItem(KEPT_AS) ?? "";
  } catch {
    return "";
  }
}

function parsed(text) {
  const event = { event: "message", data: "", comment: null };
  for (const line of text.split("\n")) {
    const at = line.indexOf(":");
    const [field, value] = [line.slice(0, at), line.slice(at + 1).replace(/^ /, "")];
    if (field === "") event.comment = value;
    else if (field === "event") event.event = value;
    else if (field === "data") event.data += value;
  }
  return event;
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the node answered ${answer.status}`;
  }
}
