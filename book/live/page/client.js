// The page's end of the Worker in which the model runs: questions go out, a recording grows.

export class Client extends EventTarget {
  #worker;
  #number = 0; // of the latest question
  #drawing = null; // {id, recording, begin, finish, fail}
  #answers = new Map(); // number -> {resolve, reject} of a question that has one answer
  #loaded = null; // {resolve, reject}

  constructor(address = "worker.js") {
    super();
    this.#worker = new Worker(address, { type: "module" });
    this.#worker.addEventListener("message", ({ data }) => this.#hear(data));
    this.#worker.addEventListener("error", (event) => {
      event.preventDefault();
      this.#fail(`The Worker stopped: ${event.message || "its files could not be fetched"}.`);
    });
  }

  /** Fetch the model; resolves to the seconds it took. Fires "progress" meanwhile. */
  load() {
    return new Promise((resolve, reject) => {
      this.#loaded = { resolve, reject };
      this.#worker.postMessage({ type: "load" });
    });
  }

  /**
   * Draw. Resolves to the finished recording, or to null if it was stopped. Fires "grown" with the
   * recording each time it has grown. A new drawing stops the one before.
   */
  draw(request) {
    this.#drawing?.finish(null);
    return new Promise((resolve, reject) => {
      const id = ++this.#number;
      this.#drawing = { id, recording: null, finish: resolve, fail: reject };
      this.#worker.postMessage({ type: "draw", id, request });
    });
  }

  stop() {
    if (this.#drawing) this.#worker.postMessage({ type: "stop" });
  }

  tokenize(prompt) {
    return this.#ask({ type: "tokenize", prompt });
  }

  /** The predicted picture after a step of the latest drawing. */
  async picture(id, step) {
    return (await this.#ask({ type: "picture", step }, id)).picture;
  }

  end() {
    this.#worker.terminate();
  }

  #ask(question, id = ++this.#number) {
    return new Promise((resolve, reject) => {
      const key = answerKey({ ...question, id });
      const others = this.#answers.get(key) ?? [];
      this.#answers.set(key, [...others, { resolve, reject }]);
      if (!others.length) this.#worker.postMessage({ ...question, id });
    });
  }

  #hear(message) {
    const { type, id } = message;
    if (type === "progress") this.dispatchEvent(new CustomEvent("progress", { detail: message }));
    else if (type === "ready") this.#loaded?.resolve(message.seconds);
    else if (type === "tokens") this.#answer(message, message.tokens);
    else if (type === "picture") this.#answer(message, message);
    else if (type === "error" && (id === undefined || id === null)) this.#fail(message.message);
    else if (id === this.#drawing?.id) this.#grow(message);
    else if (type === "error") this.#refuse(message);
  }

  #answer(message, value) {
    const key = answerKey(message);
    for (const { resolve } of this.#answers.get(key) ?? []) resolve(value);
    this.#answers.delete(key);
  }

  #refuse({ id, message }) {
    for (const [key, waiting] of this.#answers)
      if (key.endsWith(` ${id}`)) {
        for (const { reject } of waiting) reject(new Error(message));
        this.#answers.delete(key);
      }
  }

  #grow(message) {
    const drawing = this.#drawing;
    if (message.type === "begin") {
      drawing.recording = { ...message.recording, id: message.id };
    } else if (message.type === "step") {
      addStep(drawing.recording, message);
    } else if (message.type === "done") {
      drawing.recording.picture = message.picture;
      drawing.recording.seconds = message.seconds;
    } else if (message.type === "error") {
      this.#drawing = null;
      drawing.fail(new Error(message.message));
      return;
    }
    if (drawing.recording)
      this.dispatchEvent(new CustomEvent("grown", { detail: drawing.recording }));
    if (message.type === "done" || message.type === "stopped") {
      this.#drawing = null;
      drawing.finish(message.type === "done" ? drawing.recording : null);
    }
  }

  #fail(text) {
    const error = new Error(text);
    this.#loaded?.reject(error);
    this.#drawing?.fail(error);
    for (const waiting of this.#answers.values()) for (const { reject } of waiting) reject(error);
    this.#drawing = null;
    this.#answers.clear();
  }
}

// What a question and its answer have in common. A step's picture has the drawing's number.
function answerKey({ type, step, id }) {
  return type === "picture" ? `picture ${step} of ${id}` : `tokens ${id}`;
}

const GROWING = ["noise_pred_uncond", "noise_pred_text", "noise_pred", "maps"];

/** Put what a "step" message brings into a recording. */
export function addStep(recording, message) {
  const { step } = message;
  for (const name of GROWING) (recording[name] ??= [])[step] = message[name] ?? null;
  recording.latents[step + 1] = message.latents;
  recording.pictures ??= [];
  recording.done = step + 1;
}
