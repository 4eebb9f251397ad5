// The whole way from a prompt to a picture, as sdlearn.text_to_image and image_to_image walk it.

import { mapsByWord, rowNames, tokenWeights } from "./attention.js";
import { Generator, randn } from "./random.js";
import { alphasCumprod, combine, predictOriginalSample, SAMPLERS } from "./schedulers.js";

/**
 * Prepare a drawing: everything that is known before the first step.
 *
 * @returns {{recording: object, steps: AsyncGenerator<object>}} the recording as the view shows it,
 *   still without steps, and the loop, which takes a step whenever it is asked for one.
 */
export async function prepare(model, tokenizer, vocabulary, request) {
  const { config } = model;
  const { prompt, negative_prompt, seed, guidance_scale, sampler, mix, image } = request;
  const tokens = tokenizer.tokenize(prompt);
  const weights = tokenWeights(tokenizer, tokens, request.weights);
  const scheduler = new SAMPLERS[sampler](config.scheduler, request.steps);
  if (scheduler.timesteps[0] >= config.scheduler.num_train_timesteps)
    throw new Error(`${sampler} cannot take so many steps; take fewer.`);
  const tStart = image ? request.steps - Math.floor(request.steps * request.strength) : 0;

  const generator = new Generator(seed);
  const latents = image
    ? await latentsOf(model, image, scheduler, tStart, generator)
    : initialLatents(config, scheduler, generator);
  const other = mix && tokenizer.tokenize(mix.prompt);
  const embeds = await encodePrompt(model, tokens, tokenizer.tokenize(negative_prompt), other, mix);

  const marked = vocabulary.mark(tokens);
  const recording = {
    format: 1,
    model: "postcards",
    prompt,
    negative_prompt,
    seed,
    guidance_scale,
    sampler,
    mix,
    weights: request.weights,
    width: config.width,
    height: config.height,
    tokens: marked,
    noise_curve: noiseCurve(config.scheduler),
    steps: planned(scheduler, tStart),
    layers: config.layers,
    rows: rowNames(marked.words),
    done: 0,
    latents: [{ data: scheduler.scaleModelInput(latents, tStart), shape: config.latent_shape }],
    noise_pred_uncond: [],
    noise_pred_text: [],
    noise_pred: [],
    maps: [],
    pictures: [],
    picture: null,
  };
  const steps = denoise(model, scheduler, latents, embeds, {
    guidanceScale: guidance_scale,
    tStart,
    weights,
    words: request.maps ? marked.words : null,
  });
  return { recording, steps };
}

/**
 * Take the noise out of latents, (4, h, w), one step at a time.
 *
 * Without guidance (a scale of 1 or less) the U-Net sees the prompt alone. The latents of a step
 * are those after it, as the U-Net will be shown them, or at the end as they are: Euler's own are
 * up to 14 times larger.
 */
export async function* denoise(
  model,
  scheduler,
  latents,
  embeds,
  { guidanceScale, tStart = 0, weights, words = null },
) {
  const guided = guidanceScale > 1;
  const rows = guided ? embeds : embeds.subarray(embeds.length / 2);
  for (let i = tStart; i < scheduler.timesteps.length; i++) {
    const modelInput = scheduler.scaleModelInput(latents, i);
    const t = scheduler.timesteps[i];
    const { predictions, maps } = await model.predictNoise(modelInput, t, rows, weights);
    const text = predictions.at(-1);
    const uncond = guided ? predictions[0] : null;
    const noisePred = guided ? guide(uncond, text, guidanceScale) : text;
    latents = scheduler.step(noisePred, i, latents);
    const last = i + 1 === scheduler.timesteps.length;
    yield {
      latents: last ? latents : scheduler.scaleModelInput(latents, i + 1),
      noise_pred_uncond: uncond,
      noise_pred_text: text,
      noise_pred: noisePred,
      pred_original_sample: predictOriginalSample(modelInput, noisePred, scheduler.alphaBar(i)),
      maps: words && maps.map((map, k) => mapsByWord(map, model.config.layers[k], words)),
    };
  }
}

/** Classifier-free guidance: uncond + scale * (text - uncond). */
function guide(uncond, text, scale) {
  return uncond.map((value, i) => value + scale * (text[i] - value));
}

/** The noise that the loop starts from. */
export function initialLatents({ latent_shape }, scheduler, generator) {
  const count = latent_shape.reduce((product, side) => product * side);
  return randn(count, generator).map((value) => value * scheduler.initNoiseSigma);
}

/** A picture's latents under the noise of step `tStart`: both are drawn, first the picture's. */
async function latentsOf(model, image, scheduler, tStart, generator) {
  const { mean, std } = await model.encodeImage(image);
  const draw = randn(mean.length, generator);
  const scale = model.config.scaling_factor;
  const clean = mean.map((value, i) => (value + std[i] * draw[i]) * scale);
  return scheduler.addNoise(clean, randn(mean.length, generator), tStart);
}

/** What the U-Net reads, (2, 77, D): the negative prompt, then the prompt, mixed with another. */
async function encodePrompt(model, tokens, negative, other, mix) {
  const ids = [negative.ids, tokens.ids, ...(other ? [other.ids] : [])];
  const all = await model.encodeText(ids);
  const width = all.length / ids.length;
  const embeds = all.slice(0, 2 * width);
  if (other) {
    const [first, second] = [all.subarray(width, 2 * width), all.subarray(2 * width)];
    embeds.set(combine(1 - mix.share, first, mix.share, second), width);
  }
  return embeds;
}

/** Timestep and alpha_bar of each step that will be taken. */
function planned(scheduler, tStart) {
  return scheduler.timesteps.map((t, i) => ({ t, alpha_bar: scheduler.alphaBar(i) })).slice(tStart);
}

/** alpha_bar over the training steps, at some fifty of them: [t, alpha_bar]. */
function noiseCurve(config) {
  const alphas = alphasCumprod(config);
  const last = alphas.length - 1;
  const points = Array.from({ length: 51 }, (_, i) => Math.round((i * last) / 50));
  return points.map((t) => [t, alphas[t]]);
}
