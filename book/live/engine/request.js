// What the page asks for: completed, and checked before any work is done.

import { SAMPLERS } from "./schedulers.js";

const DEFAULTS = {
  prompt: "",
  negative_prompt: "",
  seed: 0,
  steps: 20,
  guidance_scale: 5,
  sampler: "DDIM",
  mix: null,
  weights: {},
  image: null,
  strength: 0.8,
  maps: true,
};

/** Fill in what a request leaves out; an error says which value is wrong and what to do. */
export function checked(given, config) {
  const request = { ...DEFAULTS, ...given };
  const { steps, guidance_scale, sampler, mix, image, strength } = request;
  const refuseUnless = (right, sentence) => {
    if (!right) throw new Error(sentence);
  };
  const texts = [request.prompt, request.negative_prompt, mix?.prompt ?? ""];
  refuseUnless(
    texts.every((text) => typeof text === "string"),
    "A prompt must be a text.",
  );
  refuseUnless(Object.hasOwn(SAMPLERS, sampler), `There is no sampler “${sampler}”.`);
  const last = config.scheduler.num_train_timesteps - 1;
  const counts = Number.isInteger(steps) && steps >= 1 && steps <= last;
  refuseUnless(counts, `The steps must be a whole number, 1 to ${last}.`);
  refuseUnless(Number.isFinite(guidance_scale), "The guidance scale must be a number.");
  refuseUnless(
    request.seed === null || Number.isSafeInteger(request.seed),
    "The seed must be a whole number.",
  );
  if (mix) refuseUnless(mix.share >= 0 && mix.share <= 1, "The share must be between 0 and 1.");
  if (image) {
    const { width, height } = config;
    const fits = image.width === width && image.height === height;
    refuseUnless(fits, `The picture to start from must have ${width} × ${height} pixels.`);
    refuseUnless(strength >= 0 && strength <= 1, "The strength is between 0 and 1.");
    const walked = Math.floor(steps * strength);
    refuseUnless(walked >= 1, "At this strength no step is left; raise it, or take more steps.");
  }
  // Without a seed, one by chance: it is told, so that the picture can be drawn again.
  request.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  return request;
}
