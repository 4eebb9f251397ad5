// Three samplers: from the latents at one level of noise to the next, lower one.
//
// The same as diffusers' schedulers of these names, made from the shipped scheduler's settings.
// Each is asked about step i: `scaleModelInput` says what the U-Net is shown, `step` what follows.
// Sources: Song et al. 2020 (DDIM), Karras et al. 2022 (Euler), Lu et al. 2022 (DPM-Solver++ 2M).

/** alpha_bar at every training step: the share of the variance that is still picture. */
export function alphasCumprod({ beta_start, beta_end, num_train_timesteps }) {
  const values = new Float32Array(num_train_timesteps);
  const [low, high] = [Math.sqrt(beta_start), Math.sqrt(beta_end)]; // "scaled_linear"
  let product = 1;
  for (let t = 0; t < num_train_timesteps; t++) {
    const beta = (low + ((high - low) * t) / (num_train_timesteps - 1)) ** 2;
    product *= 1 - beta;
    values[t] = product;
  }
  return values;
}

/** `count` timesteps, falling, `ratio` apart: "leading" spacing. */
function spaced(count, ratio, offset) {
  return Array.from({ length: count }, (_, i) => (count - 1 - i) * ratio + offset);
}

/** a * x + b * y, value by value. */
export function combine(a, x, b, y) {
  return x.map((value, i) => a * value + b * y[i]);
}

/** Split x_t into picture and noise; the picture: (x_t - sqrt(1 - a) * noise) / sqrt(a). */
export function predictOriginalSample(sample, noisePred, a) {
  return combine(1 / Math.sqrt(a), sample, -Math.sqrt(1 - a) / Math.sqrt(a), noisePred);
}

/** Latents that keep the variance of x_t, which the U-Net is shown as they are. */
class Scheduler {
  initNoiseSigma = 1;

  scaleModelInput(sample) {
    return sample;
  }

  addNoise(original, noise, i) {
    const a = this.alphaBar(i);
    return combine(Math.sqrt(a), original, Math.sqrt(1 - a), noise);
  }
}

export class DDIMScheduler extends Scheduler {
  constructor(config, steps) {
    super();
    this.ratio = Math.floor(config.num_train_timesteps / steps);
    this.timesteps = spaced(steps, this.ratio, config.steps_offset);
    this.alphas = alphasCumprod(config);
  }

  alphaBar(i) {
    return this.alphas[this.timesteps[i]];
  }

  /** Go to the predicted picture, and part of the way back. */
  step(noisePred, i, sample) {
    const original = predictOriginalSample(sample, noisePred, this.alphaBar(i));
    const following = this.timesteps[i] - this.ratio;
    const a = this.alphas[Math.max(0, following)]; // set_alpha_to_one is false
    return combine(Math.sqrt(a), original, Math.sqrt(1 - a), noisePred);
  }
}

/** What Euler and DPM-Solver++ have in common: levels of noise as sigma, noise over picture. */
class SigmaScheduler extends Scheduler {
  constructor(config, timesteps) {
    super();
    this.timesteps = timesteps;
    const alphas = alphasCumprod(config);
    const sigmas = timesteps.map((t) => Math.sqrt((1 - alphas[t]) / alphas[t]));
    this.sigmas = Float32Array.from([...sigmas, 0]); // the last step ends without noise
  }

  alphaBar(i) {
    return 1 / (this.sigmas[i] ** 2 + 1);
  }
}

export class EulerDiscreteScheduler extends SigmaScheduler {
  constructor(config, steps) {
    const ratio = Math.floor(config.num_train_timesteps / steps);
    super(config, spaced(steps, ratio, config.steps_offset));
    this.initNoiseSigma = Math.sqrt(this.sigmas[0] ** 2 + 1);
  }

  /** Its latents are x_t / sqrt(alpha_bar); the U-Net is shown x_t. */
  scaleModelInput(sample, i) {
    const root = Math.sqrt(this.sigmas[i] ** 2 + 1);
    return sample.map((value) => value / root);
  }

  addNoise(original, noise, i) {
    return combine(1, original, this.sigmas[i], noise);
  }

  /** Follow the slope, which is the noise itself, to the next sigma. */
  step(noisePred, i, sample) {
    return combine(1, sample, this.sigmas[i + 1] - this.sigmas[i], noisePred);
  }
}

export class DPMSolverMultistepScheduler extends SigmaScheduler {
  #last = null; // the step before: the predicted picture and its lambda

  constructor(config, steps) {
    const ratio = Math.floor(config.num_train_timesteps / (steps + 1));
    super(config, spaced(steps + 1, ratio, config.steps_offset).slice(0, -1));
  }

  /** DDIM's step to a picture that leans away from the one predicted before. */
  step(noisePred, i, sample) {
    const [a, aNext] = [this.alphaBar(i), this.alphaBar(i + 1)];
    const lambda = -Math.log(this.sigmas[i]);
    const lambdaNext = -Math.log(this.sigmas[i + 1]); // infinite at the end
    const original = predictOriginalSample(sample, noisePred, a);
    let lean = original;
    if (this.#last && aNext < 1) {
      const r = (lambda - this.#last.lambda) / (lambdaNext - lambda);
      lean = combine(1 + 1 / (2 * r), original, -1 / (2 * r), this.#last.original);
    }
    this.#last = { original, lambda };
    const shrink = Math.sqrt((1 - aNext) / (1 - a));
    return combine(shrink, sample, Math.sqrt(aNext) - Math.sqrt(a) * shrink, lean);
  }
}

/** The names that a reader chooses from. */
export const SAMPLERS = {
  DDIM: DDIMScheduler,
  Euler: EulerDiscreteScheduler,
  "DPM-Solver++ 2M": DPMSolverMultistepScheduler,
};
