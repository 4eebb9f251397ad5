// How the model comes: what there is to fetch, whether it is here already, and how far it is.

const NAMES = [
  [/unet/, "the U-Net"],
  [/text/, "the text encoder"],
  [/vae|decoder|encoder/, "the VAE"],
  [/merges/, "the tokenizer"],
  [/onnxruntime/, "ONNX Runtime, which runs the networks"],
];

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** What keeps this browser from running the model, in a sentence; null if nothing does. */
export function obstacle() {
  if (location.protocol === "file:")
    return "This page must come from a server: in its folder, run “python -m http.server”, and open the address that it prints.";
  if (typeof WebAssembly !== "object")
    return "This browser has no WebAssembly, or it is switched off; the model cannot run here.";
  if (typeof Worker !== "function" || typeof OffscreenCanvas !== "function")
    return "This browser is too old: it lacks what the page is made with (module workers, OffscreenCanvas).";
  return null;
}

/** Whether the browser keeps what is fetched. It does not for pages from an insecure address. */
export const keeps = () => typeof caches === "object";

const LARGE = /\.(onnx|wasm)$|^merges/; // nearly all of the weight; the page itself is here already

/** {bytes, here}: how large the model is, and whether an earlier visit has left it here. */
export async function modelFiles() {
  const response = await fetch("files.json");
  if (!response.ok) throw new Error(`The list of files could not be fetched (${response.status}).`);
  const files = (await response.json()).files.filter(({ name }) => LARGE.test(name));
  const bytes = files.reduce((sum, { size }) => sum + size, 0);
  if (!keeps()) return { bytes, here: false };
  // engine/files.js keeps them under these addresses.
  const kept = await Promise.all(files.map(({ name, hash }) => caches.match(`${name}?${hash}`)));
  return { bytes, here: kept.every(Boolean) };
}

/** What a "progress" message says, for people. */
export function progressInWords({ file, received, total }) {
  if (received >= total) return `${megabytes(total)} are here. The networks are being made ready …`;
  const name = NAMES.find(([pattern]) => pattern.test(file ?? ""))?.[1] ?? file ?? "the model";
  return `${megabytes(received)} of ${megabytes(total)}: ${name}`;
}
