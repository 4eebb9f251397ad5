// The page's files: fetched once, then kept in the browser's cache under the hash of each.
//
// A new edition of a file has a new hash, so an old one is never shown in its place. offline.js
// serves the page itself from the same cache.

const CACHE = "sdlearn-live";

export class Files {
  #base;
  #listed; // the address of the list
  #text; // the list, as it came
  #entries; // name -> {name, size, hash}
  #cache;

  /** @param {URL} base the folder of files.json */
  constructor(base) {
    this.#base = base;
    this.#listed = new URL("files.json", base).href;
  }

  /** Read the list of files from the server, or without one that of the edition kept here. */
  async open() {
    this.#cache = await openCache();
    const list = await fetch(this.#listed, { cache: "no-cache" }).catch(() => null);
    const response = list?.ok ? list : await this.#cache?.match(this.#listed);
    if (!response) throw new Error("The list of the model's files cannot be read.");
    this.#text = await response.text();
    this.#entries = new Map(JSON.parse(this.#text).files.map((file) => [file.name, file]));
    return this;
  }

  /** How many bytes these files have together. */
  size(names) {
    return names.reduce((total, name) => total + this.#entry(name).size, 0);
  }

  /**
   * The bytes of a file.
   *
   * @param {string} name as in files.json
   * @param {(bytes: number) => void} arrived told of every piece that comes, with its size
   */
  async read(name, arrived = () => {}) {
    const { size } = this.#entry(name);
    const address = this.#address(name);
    const cached = await this.#cache?.match(address);
    const response = cached ?? (await fetch(address).catch(() => null));
    if (!response?.ok) throw new Error(`The file ${name} cannot be had from the server.`);
    const bytes = new Uint8Array(size);
    let received = 0;
    for await (const chunk of chunks(response.body)) {
      if (received + chunk.length > size) break;
      bytes.set(chunk, received);
      received += chunk.length;
      arrived(chunk.length);
    }
    if (received !== size) throw new Error(`The file ${name} did not come whole; try again.`);
    if (!cached) await this.#keep(address, bytes, response.headers.get("Content-Type"));
    return bytes;
  }

  /** Keep all files, so that the next visit needs no net; then drop those of older editions. */
  async keepAll() {
    if (!this.#cache) return;
    const addresses = new Set([this.#listed]);
    for (const name of this.#entries.keys()) {
      const address = this.#address(name);
      addresses.add(address);
      if (!(await this.#cache.match(address))) await this.read(name);
    }
    await this.#cache.put(this.#listed, new Response(this.#text)); // now all that it names is here
    for (const { url } of await this.#cache.keys())
      if (!addresses.has(url)) await this.#cache.delete(url);
  }

  #entry(name) {
    const entry = this.#entries.get(name);
    if (!entry) throw new Error(`The site was built without the file ${name}.`);
    return entry;
  }

  #address(name) {
    return new URL(`${name}?${this.#entry(name).hash}`, this.#base).href;
  }

  /** A full disk or a private window is no reason to stop. */
  #keep(address, bytes, type) {
    const response = new Response(bytes, type ? { headers: { "Content-Type": type } } : {});
    return this.#cache?.put(address, response).catch(() => {});
  }
}

/** The cache; null where there is none: without https, but on this machine itself. */
async function openCache() {
  try {
    return await caches.open(CACHE);
  } catch {
    return null;
  }
}

async function* chunks(stream) {
  const reader = stream.getReader(); // Safari's streams are no iterators
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
