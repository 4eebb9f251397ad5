// Everything that decides a picture, as one plain object; and that object as a link.

export const DEFAULTS = {
  prompt: "an orange fox in the snow at night",
  negative_prompt: "",
  seed: 22,
  steps: 10,
  guidance_scale: 2,
  sampler: "DDIM",
  second: "", // the second prompt
  share: 0.5, // of the second prompt
  weights: {}, // word -> factor; words that are not named have 1
  drawing: "", // the scribble to start from, see easel.js
  upload: null, // or {width, height, data}: stays here, in no link
  strength: 0.6,
};

export const SAMPLERS = ["DDIM", "Euler", "DPM-Solver++ 2M"];

// Name in the link -> what it is here, and its limits.
const NUMBERS = {
  seed: ["seed", 0, 4294967295, true],
  steps: ["steps", 1, 50, true],
  guidance: ["guidance_scale", 1, 20, false],
  share: ["share", 0, 1, false],
  strength: ["strength", 0.1, 1, false],
};
const TEXTS = { prompt: "prompt", negative: "negative_prompt", second: "second" };

// Where the view stands if the link does not say.
export const USUAL = { word: null, layer: "mean", over: "mean", panel: "picture" };

/** The state's link, "#prompt=…", without what is as always. `place` is where the view stands. */
export function toLink(state, place = {}) {
  const parts = new URLSearchParams();
  for (const [name, key] of Object.entries(TEXTS))
    if (name === "prompt" || state[key] !== DEFAULTS[key]) parts.set(name, state[key]);
  for (const [name, [key]] of Object.entries(NUMBERS))
    if (name === "seed" || isUsed(state, key)) parts.set(name, state[key]);
  if (state.sampler !== DEFAULTS.sampler) parts.set("sampler", state.sampler);
  const weights = Object.entries(state.weights).filter(([, factor]) => factor !== 1);
  if (weights.length) parts.set("weights", weights.map((pair) => pair.join(":")).join(","));
  if (state.upload) parts.set("picture", "upload");
  else if (state.drawing) parts.set("picture", state.drawing);
  for (const [name, value] of Object.entries(place))
    if (value !== null && value !== undefined && value !== USUAL[name]) parts.set(name, value);
  return `#${parts}`;
}

function isUsed(state, key) {
  if (key === "share") return state.second !== "";
  if (key === "strength") return hasPicture(state);
  return state[key] !== DEFAULTS[key];
}

/** The state that a link stands for; what is missing or wrong in it is as always. */
export function fromLink(link) {
  const parts = new URLSearchParams(link.replace(/^#/, ""));
  const state = { ...DEFAULTS, weights: {} };
  for (const [name, key] of Object.entries(TEXTS))
    if (parts.has(name)) state[key] = parts.get(name).slice(0, 1000);
  for (const [name, [key, least, most, whole]] of Object.entries(NUMBERS)) {
    const value = Number(parts.get(name));
    if (!parts.get(name) || !Number.isFinite(value)) continue;
    state[key] = Math.min(most, Math.max(least, whole ? Math.round(value) : value));
  }
  if (SAMPLERS.includes(parts.get("sampler"))) state.sampler = parts.get("sampler");
  for (const pair of (parts.get("weights") ?? "").split(",")) {
    const [, word, factor] = pair.match(/^(.+):([\d.]+)$/) ?? [];
    if (word && Number(factor) <= 3) state.weights[word] = Number(factor);
  }
  const picture = parts.get("picture") ?? "";
  if (/^([a-z]\d+)+$/.test(picture)) state.drawing = picture;
  const place = {};
  for (const name of ["step", "word", "layer", "over", "panel", "lesson"])
    place[name] = parts.get(name);
  return { state, place, wantsUpload: picture === "upload" };
}

export function hasPicture(state) {
  return Boolean(state.upload || state.drawing);
}

/** How many of the steps are walked: with a picture to start from only a share of them. */
export function stepsWalked(state) {
  return hasPicture(state) ? Math.floor(state.steps * state.strength) : state.steps;
}

/** What the Worker is asked for. `image` is the picture to start from, {width, height, data}. */
export function toRequest(state, image) {
  return {
    prompt: state.prompt,
    negative_prompt: state.negative_prompt,
    seed: state.seed,
    steps: state.steps,
    guidance_scale: state.guidance_scale,
    sampler: state.sampler,
    mix: state.second && state.share > 0 ? { prompt: state.second, share: state.share } : null,
    weights: weightsThatCount(state),
    image,
    strength: state.strength,
    maps: true,
  };
}

// Those of words that are in the prompt: a link, or an older prompt, may name others.
function weightsThatCount({ prompt, weights }) {
  const words = prompt.toLowerCase().match(/\p{L}+|\p{N}/gu) ?? [];
  const counts = ([word, factor]) => factor !== 1 && words.includes(word.toLowerCase());
  return Object.fromEntries(Object.entries(weights).filter(counts));
}

const show = (text) => (text ? `“${text}”` : "no words");

/** What differs between two states: a list of {key, before, now}, in words. */
export function differences(one, other) {
  const found = [];
  const compare = (key, say) => {
    const [before, now] = [say(one), say(other)];
    if (before !== now) found.push({ key, before, now });
  };
  compare("prompt", (state) => show(state.prompt));
  compare("negative_prompt", (state) => state.negative_prompt ? `negative prompt ${show(state.negative_prompt)}` : "no negative prompt");
  compare("seed", (state) => `seed ${state.seed}`);
  compare("steps", (state) => (state.steps === 1 ? "1 step" : `${state.steps} steps`));
  compare("guidance_scale", (state) => `guidance ${state.guidance_scale}`);
  compare("sampler", (state) => state.sampler);
  compare("mix", (state) => mixInWords(state));
  compare("weights", (state) => weightsInWords(state));
  compare("picture", (state) => pictureInWords(state));
  // Two scribbles or two uploads may differ, though the words for them are the same.
  const another = one.upload !== other.upload || (!one.upload && one.drawing !== other.drawing);
  if (another && found.at(-1)?.key !== "picture")
    found.push({ key: "picture", before: pictureInWords(one), now: "another picture" });
  return found;
}

export function mixInWords({ second, share }) {
  return second ? `${Math.round(share * 100)} % of ${show(second)}` : "one prompt";
}

export function weightsInWords(state) {
  const weights = Object.entries(weightsThatCount(state));
  const say = ([word, factor]) => (factor === 0 ? `${word} blanked` : `${word} × ${factor}`);
  return weights.length ? weights.map(say).join(", ") : "all words as always";
}

export function pictureInWords(state) {
  if (!hasPicture(state)) return "noise alone";
  const which = state.upload ? "your picture" : "a scribble";
  return `${which}, strength ${state.strength}`;
}

/** Whether two states draw the same picture. */
export function same(one, other) {
  return differences(one, other).length === 0;
}

/** A file name that says how the picture was made. */
export function fileName(state) {
  const words = state.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  const parts = [words.join("-").slice(0, 80), `seed-${state.seed}`, `steps-${state.steps}`];
  parts.push(`guidance-${state.guidance_scale}`, state.sampler.replace(/[^A-Za-z0-9]+/g, "-"));
  if (state.negative_prompt) parts.push("negative");
  if (state.second) parts.push(`share-${state.share}`);
  for (const [word, factor] of Object.entries(weightsThatCount(state)))
    parts.push(`${word}-x${factor}`);
  if (hasPicture(state)) parts.push(`strength-${state.strength}`);
  return `${parts.join("_")}.png`;
}
