// The Worker in which postcards runs, so that the page stays quick. It answers messages.
//
// In:  load · draw {id, request} · stop · picture {id, step} · tokenize {id, prompt}
// Out: progress {file, received, total} · ready {seconds} · tokens {id, tokens}
//      begin {id, recording} · step {id, step, …} · picture {id, step, picture}
//      done {id, picture, seconds} · stopped {id} · error {id, message}
//
// A new draw stops the one before. Whoever ends the Worker ends the work.

import { Files } from "./engine/files.js";
import { Model, NEEDED } from "./engine/model.js";
import { prepare } from "./engine/pipeline.js";
import { checked } from "./engine/request.js";
import { Tokenizer } from "./engine/tokens.js";
import { Vocabulary } from "./engine/vocabulary.js";

const TEXT = ["merges.txt", "postcards.json"];

const made = {}; // promises of what is made once: files, words, model
let drawing = null; // {id, stopped, originals}: the latest drawing, finished or not

self.onmessage = async ({ data: message }) => {
  const { type, id } = message;
  try {
    if (type === "load") await ready();
    else if (type === "draw") await draw(id, message.request);
    else if (type === "stop") stop();
    else if (type === "picture") await showStep(id, message.step);
    else if (type === "tokenize") await tellTokens(id, message.prompt);
    else throw new Error(`The Worker knows no message “${type}”.`);
  } catch (error) {
    postMessage({ type: "error", id, message: error.message });
  }
};

/** Make something once; after a failure the next message begins anew, from the list on. */
function once(name, make) {
  made[name] ??= make().catch((error) => {
    for (const each of Object.keys(made)) delete made[each];
    throw error;
  });
  return made[name];
}

/** The list of files; every byte that comes is told. */
const files = () =>
  once("files", async () => {
    const list = await new Files(new URL("./", import.meta.url)).open();
    const total = list.size([...TEXT, ...NEEDED]);
    let received = 0;
    const tell = (file, bytes) => {
      received += bytes;
      if (received <= total) postMessage({ type: "progress", file, received, total });
    };
    return { list, read: (name) => list.read(name, (bytes) => tell(name, bytes)) };
  });

/** What there is to know about words: it is here long before the model is. */
const words = () =>
  once("words", async () => {
    const { read } = await files();
    const all = await Promise.all(TEXT.map(read));
    const [merges, json] = all.map((bytes) => new TextDecoder().decode(bytes));
    const config = JSON.parse(json);
    return { config, tokenizer: new Tokenizer(merges), vocabulary: new Vocabulary(config.words) };
  });

const ready = () =>
  once("model", async () => {
    const start = performance.now();
    const { list, read } = await files();
    const { config } = await words();
    const model = new Model(config, read);
    await model.load();
    postMessage({ type: "ready", seconds: (performance.now() - start) / 1000 });
    list.keepAll().catch(() => {}); // for the next visit; this one has all that it needs
    return model;
  });

async function draw(id, given) {
  stop();
  const job = (drawing = { id, stopped: false, originals: [] });
  const model = await ready();
  const start = performance.now();
  const { config, tokenizer, vocabulary } = await words();
  await messages(); // whoever types quickly has changed it already
  if (job.stopped) return postMessage({ type: "stopped", id });
  const request = checked(given, config);
  const { recording, steps } = await prepare(model, tokenizer, vocabulary, request);
  postMessage({ type: "begin", id, recording });

  let latents;
  for await (const { pred_original_sample, ...step } of steps) {
    latents = step.latents;
    job.originals.push(pred_original_sample);
    postMessage({ type: "step", id, step: job.originals.length - 1, ...shaped(step, config) });
    await messages();
    if (job.stopped) return postMessage({ type: "stopped", id });
  }
  const picture = await model.decode(latents);
  const seconds = (performance.now() - start) / 1000;
  if (job.stopped) postMessage({ type: "stopped", id });
  else postMessage({ type: "done", id, picture, seconds });
}

function stop() {
  if (drawing) drawing.stopped = true;
}

/** Decode what a step took the picture to be; null if another drawing has begun since. */
async function showStep(id, step) {
  const original = drawing?.id === id ? drawing.originals[step] : undefined;
  const picture = original ? await (await ready()).decode(original) : null;
  postMessage({ type: "picture", id, step, picture });
}

async function tellTokens(id, prompt) {
  const { tokenizer, vocabulary } = await words();
  postMessage({ type: "tokens", id, tokens: vocabulary.mark(tokenizer.tokenize(prompt)) });
}

/** Give latents and predictions, (4, h, w), their shape. */
function shaped({ maps, ...arrays }, { latent_shape }) {
  const named = Object.entries(arrays).map(([name, data]) => [
    name,
    data && { data, shape: latent_shape },
  ]);
  return { ...Object.fromEntries(named), maps };
}

/** Wait until the messages that have come are read: a step leaves no time for them. */
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
