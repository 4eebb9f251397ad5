// postcards' parts, as onnxruntime runs them: text encoder, U-Net, VAE. All in float32, one thread.

import * as ort from "../onnxruntime.js";
import { LENGTH } from "./tokens.js";

/** What must be there before the first picture; the VAE's encoder is only for pictures given. */
export const NEEDED = ["onnxruntime.wasm", "text_encoder.onnx", "unet.onnx", "vae_decoder.onnx"];

export class Model {
  #sessions = new Map();
  #running = Promise.resolve();

  /**
   * @param {object} config postcards.json: sizes, layers, the scheduler's settings
   * @param {(name: string) => Promise<Uint8Array>} read gives the bytes of a file
   */
  constructor(config, read) {
    this.config = config;
    this.read = read;
  }

  /** Start the runtime, and make ready what text to image needs, while files are still coming. */
  async load() {
    const bytes = new Map(NEEDED.map((name) => [name, this.read(name)]));
    bytes.forEach((promise) => promise.catch(() => {})); // told once, where it is awaited
    ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
    ort.env.wasm.wasmBinary = await bytes.get("onnxruntime.wasm");
    for (const part of ["vae_decoder", "text_encoder", "unet"])
      await this.#open(part, bytes.get(`${part}.onnx`));
    ort.env.wasm.wasmBinary = undefined; // 14 MB
  }

  /** Ids, a list of B lists of 77 -> what the U-Net reads, (B, 77, D). */
  async encodeText(ids) {
    const values = BigInt64Array.from(ids.flat(), BigInt);
    const input_ids = new ort.Tensor("int64", values, [ids.length, LENGTH]);
    return (await this.#run("text_encoder", { input_ids })).embeds.data;
  }

  /**
   * Predict the noise in B copies of the same latents.
   *
   * @param {Float32Array} latents x_t, (4, h, w)
   * @param {number} t the timestep
   * @param {Float32Array} embeds (B, 77, D); the last row is the prompt's
   * @param {Float32Array} weights (77,), factors for the attention of the prompt's row
   * @returns the B predictions, and for each layer the prompt's attention, (height * width, 77)
   */
  async predictNoise(latents, t, embeds, weights) {
    const { layers, latent_shape, text_width } = this.config;
    const batch = embeds.length / (LENGTH * text_width);
    const sample = new Float32Array(batch * latents.length);
    for (let row = 0; row < batch; row++) sample.set(latents, row * latents.length);
    const factors = new Float32Array(batch * LENGTH).fill(1);
    factors.set(weights, (batch - 1) * LENGTH);
    const outputs = await this.#run("unet", {
      sample: new ort.Tensor("float32", sample, [batch, ...latent_shape]),
      timestep: new ort.Tensor("float32", [t], [1]),
      encoder_hidden_states: new ort.Tensor("float32", embeds, [batch, LENGTH, text_width]),
      weights: new ort.Tensor("float32", factors, [batch, LENGTH]),
    });
    const predictions = outputs.noise_pred.data;
    const row = (i) => predictions.slice(i * latents.length, (i + 1) * latents.length);
    return {
      predictions: Array.from({ length: batch }, (_, i) => row(i)),
      maps: layers.map(({ name }) => outputs[`map:${name}`].data),
    };
  }

  /** Latents, (4, h, w) -> a picture, rounded as diffusers rounds. */
  async decode(latents) {
    const shape = [1, ...this.config.latent_shape];
    const feeds = { latents: new ort.Tensor("float32", latents, shape) };
    const { data, dims } = (await this.#run("vae_decoder", feeds)).pixels; // (1, 3, H, W)
    const [height, width] = dims.slice(2);
    const pixels = new Uint8ClampedArray(4 * height * width).fill(255);
    for (let channel = 0; channel < 3; channel++)
      for (let i = 0; i < height * width; i++)
        pixels[4 * i + channel] = (data[channel * height * width + i] / 2 + 0.5) * 255;
    return { width, height, data: pixels };
  }

  /** A picture, opaque -> mean and standard deviation of its latents, (4, h, w) each. */
  async encodeImage({ width, height, data }) {
    if (!this.#sessions.has("vae_encoder"))
      await this.#open("vae_encoder", this.read("vae_encoder.onnx"));
    const values = new Float32Array(3 * height * width);
    for (let channel = 0; channel < 3; channel++)
      for (let i = 0; i < height * width; i++)
        values[channel * height * width + i] = (data[4 * i + channel] / 255) * 2 - 1;
    const pixels = new ort.Tensor("float32", values, [1, 3, height, width]);
    const { mean, std } = await this.#run("vae_encoder", { pixels });
    return { mean: mean.data, std: std.data };
  }

  async #open(part, bytes) {
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    this.#sessions.set(part, await ort.InferenceSession.create(await bytes, options));
  }

  /** One run after the other: a step of the drawing and a picture asked for meanwhile. */
  #run(part, feeds) {
    const result = this.#running.then(() => this.#sessions.get(part).run(feeds));
    this.#running = result.catch(() => {});
    return result;
  }
}
