// The chat: asks the cluster, and writes what comes.

import { el, keyed, say, set } from "./elements.js";
import { KeyNeeded, Refused } from "./server.js";
import { count, millis, rate } from "./words.js";

/** A model whose layers are being loaded, or a full queue, is asked again so often. */
const TRIES = 4;

export class Chat {
  #parts;
  #server;
  #onKey;
  /** The conversation, as the API wants it. */
  #messages = [];
  #abort = null;

  constructor(root, server, onKey) {
    const find = (id) => root.querySelector(`#${id}`);
    const ids = ["model", "clear", "log", "nothing-said", "suggestion", "progress", "ask", "question", "send", "stop"];
    this.#parts = Object.fromEntries(ids.map((id) => [id, find(id)]));
    this.#server = server;
    this.#onKey = onKey;
    const { ask, question, stop, clear, suggestion } = this.#parts;
    ask.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#submit();
      }
    });
    question.addEventListener("input", () => this.#grow());
    stop.addEventListener("click", () => this.#abort?.abort());
    clear.addEventListener("click", () => this.#clear());
    suggestion.addEventListener("click", () => {
      question.value = suggestion.textContent;
      this.#submit();
    });
  }

  /** The models that can be asked. */
  offer(models) {
    const { model } = this.#parts;
    keyed(model, models, (one) => one.name, (one) => el("option", { value: one.name }), (option, one) => {
      say(option, one.state === "ready" ? one.name : `${one.name} (${one.state})`);
    });
    const none = models.length === 0;
    model.hidden = none;
    this.#parts.suggestion.hidden = none;
    this.#parts.send.disabled = none;
  }

  #grow() {
    const { question } = this.#parts;
    question.style.height = "auto";
    question.style.height = `${Math.min(question.scrollHeight + 2, 160)}px`;
  }

  #clear() {
    this.#abort?.abort();
    this.#messages = [];
    const { log, clear } = this.#parts;
    log.replaceChildren(this.#parts["nothing-said"]);
    clear.hidden = true;
    this.#state("idle", "");
    this.#parts.question.focus();
  }

  #state(state, text) {
    const { progress, send, stop, log } = this.#parts;
    say(progress, text);
    set(progress, { "data-state": state });
    const busy = ["waiting", "answering", "recovering"].includes(state);
    send.hidden = busy;
    stop.hidden = !busy;
    set(log, { "aria-busy": busy });
  }

  #submit() {
    const { question, model, clear } = this.#parts;
    const text = question.value.trim();
    if (text === "" || this.#abort || model.value === "") return;
    question.value = "";
    this.#grow();
    this.#parts["nothing-said"].remove();
    clear.hidden = false;
    this.#write("user", "You", text);
    this.#messages.push({ role: "user", content: text });
    this.#answer(model.value, this.#write("assistant", model.value, ""));
  }

  #write(role, who, text) {
    const body = el("p", { class: "text" }, text);
    this.#parts.log.append(el("article", { class: "message", "data-role": role }, el("h3", {}, who), body));
    this.#parts.log.scrollTop = this.#parts.log.scrollHeight;
    return body;
  }

  async #answer(model, body) {
    const conversation = this.#messages;
    const abort = new AbortController();
    this.#abort = abort;
    const answer = new Answer(body, this.#parts.log);
    try {
      this.#state("waiting", "Waiting for the first word");
      for await (const event of this.#asked({ model, messages: conversation, stream: true, stream_options: { include_usage: true } }, abort)) {
        this.#take(answer, event);
      }
      if (answer.error) throw new Error(answer.error);
      if (!answer.done) throw new Error("the connection broke off");
      this.#state("done", answer.summary());
    } catch (error) {
      this.#failed(answer, error, abort);
    } finally {
      answer.end();
      if (answer.text !== "") conversation.push({ role: "assistant", content: answer.text });
      else if (conversation.at(-1)?.role === "user") conversation.pop();
      this.#abort = null;
      this.#parts.stop.hidden = true;
      this.#parts.send.hidden = false;
    }
  }

  /** The events of an answer; asks again when the node says when. */
  async *#asked(body, abort) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        yield* this.#server.ask("/v1/chat/completions", body, abort.signal);
        return;
      } catch (error) {
        const waits = error instanceof Refused && error.retryAfter !== null && attempt < TRIES;
        if (!waits) throw error;
        this.#state("waiting", `Asking again in ${error.retryAfter} s: ${error.message}`);
        await pause(error.retryAfter * 1000, abort.signal);
      }
    }
  }

  #take(answer, { comment, data }) {
    if (comment === "recovering") {
      answer.interrupted();
      this.#state("recovering", "Recovering: something was lost, and the answer will go on");
    }
    if (comment !== null) return;
    if (data === "[DONE]") {
      answer.done = true;
      return;
    }
    answer.take(JSON.parse(data));
    if (answer.text !== "" && !answer.isInterrupted && !answer.error) this.#state("answering", "Answering");
  }

  #failed(answer, error, abort) {
    if (abort.signal.aborted) {
      this.#state("idle", this.#messages.length > 0 ? "Stopped" : "");
    } else if (error instanceof KeyNeeded) {
      this.#state("failed", "The node demands its key");
      this.#onKey();
    } else {
      const what = error instanceof TypeError ? "the node cannot be reached" : error.message;
      this.#state("failed", `${answer.text === "" ? "No answer" : "The answer broke off"}: ${what}`);
    }
  }
}

/** An answer as it is written. */
class Answer {
  text = "";
  error = null;
  done = false;
  #body;
  #log;
  #began = performance.now();
  #last = null;
  #pause = null;
  #usage = null;
  #reason = null;
  #thoughts = null;

  constructor(body, log) {
    this.#body = body;
    this.#log = log;
    set(body, { "data-writing": "" });
  }

  get isInterrupted() {
    return this.#pause !== null;
  }

  /** Something was lost: the next word comes after a pause. */
  interrupted() {
    if (this.#pause) return;
    this.#pause = el("span", { class: "mark", "data-mark": "recovering" }, "recovering");
    this.#body.append(this.#pause);
    this.#follow();
  }

  take(chunk) {
    if (chunk.error) {
      this.error = chunk.error.message;
      return;
    }
    this.#usage = chunk.usage ?? this.#usage;
    const [choice] = chunk.choices ?? [];
    this.#reason = choice?.finish_reason ?? this.#reason;
    const piece = choice?.delta?.content ?? "";
    const thought = choice?.delta?.reasoning_content ?? "";
    for (const call of choice?.delta?.tool_calls ?? []) {
      if (call.function?.name) this.#body.append(el("span", { class: "mark", "data-mark": "call" }, `calls ${call.function.name}`));
    }
    if (thought !== "") this.#think(thought);
    if (piece === "") return;
    const now = performance.now();
    if (this.#pause) {
      say(this.#pause, `went on after ${millis(now - (this.#last ?? this.#began))}`);
      set(this.#pause, { "data-mark": "recovered" });
      this.#pause = null;
    }
    this.#last = now;
    this.text += piece;
    this.#body.append(piece);
    this.#follow();
  }

  /** Thoughts stand dimmed before the answer. */
  #think(thought) {
    if (!this.#thoughts) {
      this.#thoughts = el("span", { class: "thoughts" });
      this.#body.prepend(this.#thoughts);
    }
    this.#thoughts.append(thought);
    this.#follow();
  }

  /** Keeps the end in sight of whoever looks at the end. */
  #follow() {
    const rest = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight;
    if (rest < 120) this.#log.scrollTop = this.#log.scrollHeight;
  }

  summary() {
    const took = performance.now() - this.#began;
    const tokens = this.#usage?.completion_tokens;
    const words = tokens ? [`${count(tokens, "token")} in ${millis(took)}`, `${rate((1000 * tokens) / took)} tokens/s`] : [`Done in ${millis(took)}`];
    if (this.#reason === "length") words.push("cut off at its limit");
    return words.join(" · ");
  }

  end() {
    this.#body.removeAttribute("data-writing");
    this.#pause?.remove();
    if (this.text === "" && !this.#thoughts) this.#body.closest("article").remove();
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new Error("stopped"));
    }, { once: true });
  });
}
