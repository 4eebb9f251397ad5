// Stands in for book/live/worker.js in tests/test_live_page.py: the same messages, no model.
// "slow" in the prompt makes each step take a while, and "broken" fails; "astronaut" is unknown.

const SIDE = 16;
let latest = 0;
let recording = null;

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function array(seed, ...shape) {
  const data = new Float32Array(shape.reduce((product, side) => product * side));
  for (let i = 0; i < data.length; i++) data[i] = Math.sin(seed + 1.3 * i);
  return { data, shape };
}

function picture(seed) {
  const data = new Uint8ClampedArray(128 * 128 * 4);
  for (let i = 0; i < data.length; i += 4) {
    const [x, y] = [(i / 4) % 128, Math.floor(i / 512)];
    data.set([(2 * x + 40 * seed) % 256, 2 * y, (100 * seed) % 256, 255], i);
  }
  return { width: 128, height: 128, data };
}

function tokens(prompt) {
  const found = prompt.match(/[\p{L}\p{N}]+/gu) ?? [];
  const pieces = new Array(77).fill("<|endoftext|>");
  pieces[0] = "<|startoftext|>";
  found.slice(0, 75).forEach((word, i) => (pieces[i + 1] = `${word}</w>`));
  const words = found.slice(0, 75).map((text, i) => ({
    text,
    positions: [i + 1],
    known: text !== "astronaut",
  }));
  const unknown = words.filter(({ known }) => !known).map(({ text }) => ({ word: text, nearest: null }));
  return { ids: pieces.map((_, i) => i), pieces, words, unknown, cut_off: found.slice(75) };
}

async function draw(id, request) {
  latest = id;
  const steps = request.image ? Math.floor(request.steps * request.strength + 1e-9) : request.steps;
  const cut = tokens(request.prompt);
  const uncond = request.guidance_scale > 1;
  recording = {
    format: 1, model: "postcards", prompt: request.prompt, negative_prompt: request.negative_prompt,
    seed: request.seed, guidance_scale: request.guidance_scale, sampler: request.sampler,
    width: 128, height: 128, tokens: cut,
    noise_curve: Array.from({ length: 50 }, (_, i) => [20 * i, Math.cos((i / 50) * 1.5) ** 2]),
    steps: Array.from({ length: steps }, (_, i) => {
      const t = Math.round(901 - (900 * i) / steps);
      return { t, alpha_bar: Math.cos((t / 1000) * 1.5) ** 2 };
    }),
    layers: [{ name: "down_blocks.0", height: SIDE, width: SIDE }, { name: "mid_block", height: 8, width: 8 }],
    rows: ["start", ...cut.words.keys(), "rest"],
    done: 0, latents: [array(request.seed, 4, SIDE, SIDE)],
    noise_pred_uncond: [], noise_pred_text: [], noise_pred: [], maps: [], pictures: [], picture: null,
  };
  postMessage({ type: "begin", id, recording });
  for (let step = 0; step < steps; step++) {
    await wait(request.prompt.includes("slow") ? 100 : 1);
    if (latest !== id) return postMessage({ type: "stopped", id });
    if (request.prompt.includes("broken")) return postMessage({ type: "error", id, message: "The fake is broken." });
    const rows = recording.rows.length;
    const maps = recording.layers.map(({ height, width }) => {
      const map = array(step, rows, height, width);
      map.data = map.data.map(() => 1 / rows);
      return map;
    });
    postMessage({
      type: "step", id, step, latents: array(step + 1, 4, SIDE, SIDE), maps,
      noise_pred_uncond: uncond ? array(step, 4, SIDE, SIDE) : null,
      noise_pred_text: array(step + 2, 4, SIDE, SIDE), noise_pred: array(step + 3, 4, SIDE, SIDE),
    });
  }
  postMessage({ type: "done", id, picture: picture(request.seed), seconds: steps / 1000 });
}

addEventListener("message", async ({ data: { type, id, request, step, prompt } }) => {
  if (type === "load") {
    for (const received of [0, 4e6, 8e6]) {
      postMessage({ type: "progress", file: "unet.onnx", received, total: 8e6 });
      await wait(10);
    }
    postMessage({ type: "ready", seconds: 0.02 });
  } else if (type === "draw") draw(id, request);
  else if (type === "stop") latest = 0;
  else if (type === "picture") postMessage({ type: "picture", id, step, picture: picture(step) });
  else if (type === "tokenize") postMessage({ type: "tokens", id, tokens: tokens(prompt) });
});
