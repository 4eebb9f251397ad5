// The stage explorer: one drawing by Stable Diffusion, taken apart.
//
//   const view = mount(element, { needPicture: async (step) => picture });
//   view.show(recording);            // Again with the same object when it has grown.
//   view.go({ step: 3, word: 2 });   // As a link asks; view.state says where the reader is.
//   view.addEventListener("change", () => …);  // The reader has moved.
//
// A recording is a plain object of numbers, pictures and words; explore.py says what is in it. The
// state: `step` from 0; `word`, one of the recording's rows or null; `layer`, its number or "mean";
// `over`, "step" or "mean", which steps the heat maps are of; `panel`, what is shown large.
//
// One file without imports, since anywidget takes one. Styles are in explorer.css.

// inferno, as sdlearn.show.style.HEAT, at nine even places.
const HEAT = [
  [0, 0, 4], [33, 12, 74], [87, 16, 110], [138, 34, 106], [188, 55, 84],
  [228, 90, 49], [249, 142, 9], [249, 203, 53], [252, 255, 164],
];
const SPREAD = 3; // Latents from -3 to 3 become 0 to 255, as in show.latents_to_pil.
const HEAT_SIDE = 256; // Pixels of a heat map's longer side: more are not seen.
const THUMB_SIDE = 96;
const STAGE_SIDE = 512;
const GRID = 4; // The numbers' table has GRID × GRID parts of the picture.
const ABOUT_MAPS =
  "White is laid over all that did not listen to the word. The number is the word’s share of " +
  "attention, on average over the picture.";
const PLAY_SECONDS = 6; // From noise to picture, whatever the number of steps.

// ---------------------------------------------------------------------------------- small tools

/** Make an element: `make("p", { class: "a", onclick: f }, "text", another)`. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function raster(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Return width and height, made smaller if the longer is more than `most`. */
function fit(width, height, most) {
  const share = Math.min(1, most / Math.max(width, height));
  return [Math.max(1, Math.round(width * share)), Math.max(1, Math.round(height * share))];
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const quoted = (text) => `“${text}”`;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// ----------------------------------------------------------------------- numbers become pictures

/** Show latents, (4, h, w), in false colour: channels 0, 1, 2 are red, green, blue. */
function latentsImage({ data, shape }) {
  const [, height, width] = shape;
  const canvas = raster(width, height);
  const image = new ImageData(width, height);
  const places = width * height;
  for (let i = 0; i < places; i++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = (data[channel * places + i] / SPREAD + 1) / 2;
      image.data[4 * i + channel] = Math.round(clamp(value, 0, 1) * 255);
    }
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Where bilinear interpolation of `from` numbers to `to` looks: two places, the way between. */
function between(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const at = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    const low = Math.floor(at);
    return [low, Math.min(low + 1, from - 1), at - low];
  });
}

/** Add row `row` of maps, (rows, h, w), to `total`, enlarged to width × height. */
function addEnlarged(total, { data, shape }, row, width, height) {
  const [, h, w] = shape;
  const [across, down] = [between(w, width), between(h, height)];
  for (let y = 0, i = 0; y < height; y++) {
    const [top, bottom, lower] = down[y];
    const [a, b] = [(row * h + top) * w, (row * h + bottom) * w];
    for (let x = 0; x < width; x++, i++) {
      const [left, right, later] = across[x];
      const above = data[a + left] + (data[a + right] - data[a + left]) * later;
      const below = data[b + left] + (data[b + right] - data[b + left]) * later;
      total[i] += above + (below - above) * lower;
    }
  }
}

/** Stretch numbers so that the least is 0 and the greatest 1. */
function stretched(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const scale = 1 / Math.max(high - low, 1e-12);
  return values.map((value) => (value - low) * scale);
}

/** White, and the more opaque the lower the heat: laid over a picture, it is show.map_overlay. */
function whiteWhereCold(heat, width, height) {
  const canvas = raster(width, height);
  const image = new ImageData(width, height);
  for (let i = 0; i < heat.length; i++) {
    image.data.fill(255, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255 - Math.round(heat[i] * 255);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Draw one layer's map as it is, a square to a place, in the colours of heat. */
function drawHeat(canvas, { data, shape }, row) {
  const [, h, w] = shape;
  [canvas.width, canvas.height] = [w, h];
  const image = new ImageData(w, h);
  stretched(data.subarray(row * h * w, (row + 1) * h * w)).forEach((value, i) => {
    const at = value * (HEAT.length - 1);
    const [low, high] = [HEAT[Math.floor(at)], HEAT[Math.ceil(at)]];
    low.forEach((colour, k) => (image.data[4 * i + k] = colour + (high[k] - colour) * (at % 1)));
    image.data[4 * i + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Draw a picture and what covers it; nothing if there is no picture. */
function compose(canvas, width, height, picture, smooth, cover) {
  [canvas.width, canvas.height] = [width, height]; // This also wipes it.
  if (!picture) return;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  context.imageSmoothingEnabled = true;
  if (cover) context.drawImage(cover, 0, 0, width, height);
}

// ------------------------------------------------------------------ what a recording can be asked

/** Return the maps of a step, one for each layer, or null: the reader may be ahead of the model. */
function mapsOf(recording, step) {
  return recording.maps?.[step] ?? null;
}

const means = new WeakMap(); // recording -> { done, maps }: the same until it has grown.

/** Return the mean of all steps' maps so far, one for each layer, or null. */
function meanMaps(recording) {
  if (recording.mean_maps) return recording.mean_maps;
  const known = means.get(recording);
  if (known?.done === recording.done) return known.maps;
  const steps = (recording.maps ?? []).slice(0, recording.done).filter(Boolean);
  const maps = steps.length ? steps[0].map((_, layer) => mean(steps.map((s) => s[layer]))) : null;
  means.set(recording, { done: recording.done, maps });
  return maps;
}

function mean(arrays) {
  const total = new Float32Array(arrays[0].data.length);
  for (const { data } of arrays) data.forEach((value, i) => (total[i] += value / arrays.length));
  return { data: total, shape: arrays[0].shape };
}

/** Return where the picture listened to a row, from 0 to 1: a layer, or the mean of them all. */
function heatMap(maps, row, layer, width, height) {
  const total = new Float32Array(width * height);
  for (const one of layer === "mean" ? maps : [maps[layer]])
    addEnlarged(total, one, row, width, height);
  return stretched(total);
}

/** Return a row's mean attention in each of rows × columns parts of the picture. */
function shares(maps, row, layer, rows, columns) {
  const chosen = layer === "mean" ? maps : [maps[layer]];
  const found = new Float64Array(rows * columns);
  for (const { data, shape } of chosen) {
    const [, h, w] = shape;
    const [fine, wide] = [Math.max(h, rows), Math.max(w, columns)]; // A map may have fewer places.
    const count = new Float64Array(rows * columns);
    const sum = new Float64Array(rows * columns);
    for (let y = 0; y < fine; y++)
      for (let x = 0; x < wide; x++) {
        const part = Math.floor((y * rows) / fine) * columns + Math.floor((x * columns) / wide);
        sum[part] += data[(row * h + Math.floor((y * h) / fine)) * w + Math.floor((x * w) / wide)];
        count[part]++;
      }
    found.forEach((_, part) => (found[part] += sum[part] / count[part] / chosen.length));
  }
  return found;
}

/** Return runs of positions, from 1 to before `end`, each one word: [[1], [2, 3], [4]]. */
function runs(pieces, owner, end) {
  const found = [];
  for (let p = 1; p < end; p++) {
    const goesOn = p > 1 && owner.get(p) === owner.get(p - 1) && !pieces[p - 1].endsWith("</w>");
    if (goesOn) found.at(-1).push(p);
    else found.push([p]);
  }
  return found;
}

/** Name a layer shortly: "down 1", "mid", "up 2"; with a letter where a block has several. */
function layerNames(layers) {
  const blocks = layers.map(({ name }) => {
    const [, side, block] = /^(down|mid|up)_block(?:s\.(\d+))?/.exec(name) ?? [null, name];
    return block === undefined ? side : `${side} ${Number(block) + 1}`;
  });
  return blocks.map((block, i) => {
    const before = blocks.slice(0, i).filter((other) => other === block).length;
    const several = blocks.filter((other) => other === block).length > 1;
    return several ? block + "abcdefghij"[before] : block;
  });
}

// ----------------------------------------------------------------------------- the panels' words

const size = ({ shape }) => `${shape[2]} × ${shape[1]}`;

/** What can be shown large: names, and one sentence each that says how to read it. */
function panelsOf(recording) {
  const guided = recording.steps.length === 0 || recording.noise_pred_uncond !== null;
  const scale = recording.guidance_scale;
  const other = recording.negative_prompt;
  const without = other ? `reads ${quoted(other)} instead` : "reads no prompt";
  return [
    {
      id: "latents",
      name: "Latents",
      says: `What the U-Net is given: ${size(recording.latents[0])} places of 4 numbers, three of
        them shown as red, green and blue.`,
    },
    guided && {
      id: "noise_uncond",
      name: other ? "Noise, negative prompt" : "Noise, without the prompt",
      says: `The noise that the U-Net finds in them when it ${without}.`,
    },
    {
      id: "noise_text",
      name: guided ? "Noise, with the prompt" : "Predicted noise",
      says: guided
        ? "The noise that it finds when it reads your prompt. Look for the small differences."
        : "The noise that the U-Net finds in them. Guidance is off: the prompt is read once.",
    },
    guided && {
      id: "noise",
      name: "Noise, guided",
      says: `The first of them, plus ${scale === null ? "a multiple of" : `${scale} times`} what the
        prompt changed. This is what is taken away.`,
    },
    {
      id: "predicted",
      name: "Predicted picture",
      says: "The latents without that noise, decoded: what the model expects so far.",
    },
    {
      id: "picture",
      name: "Finished picture",
      says: "The last latents, decoded. It does not change with the step.",
    },
  ].filter(Boolean);
}

// --------------------------------------------------------------------------------------- the view

let views = 0; // Several on one page: each has ids of its own.

class Explorer extends EventTarget {
  #root;
  #needPicture;
  #parts = {}; // The elements that change.
  #id = `sdx${++views}`;
  #recording = null;
  #state = { step: 0, word: null, layer: "mean", over: "mean", panel: "picture" };
  #follow = true; // Show the newest step while the drawing goes on.
  #wish = null; // A step that a link asked for, and that is not drawn yet.
  #hovered; // A word under the pointer or in focus, undefined if none.
  #lately = 1; // The row that was lit last: the layers go on showing it.
  #asked = new Set(); // Steps whose pictures were asked for.
  #ready = new WeakMap(); // Picture -> what can be drawn; null while it is being read.
  #timer = null; // Of playing.
  #speaking = null; // Of the sentence for screen readers.

  constructor(element, { needPicture = null, heading = 2 } = {}) {
    super();
    this.#needPicture = needPicture;
    this.#root = element;
    this.#build(`h${heading}`);
  }

  get state() {
    return { ...this.#state };
  }

  /** Show a recording: another one from its newest step on, the same one where the reader is. */
  show(recording) {
    if (recording !== this.#recording) this.#begin(recording);
    if (this.#follow) this.#state.step = recording.done - 1;
    if (this.#wish !== null && this.#wish < recording.done) this.#jump(this.#wish);
    this.#update();
  }

  /** Go where a link or a lesson asks: any of step, word, layer, over, panel. */
  go({ step, ...others }) {
    Object.assign(this.#state, others);
    if (step !== undefined) this.#wish = step; // It may be drawn only later.
    if (this.#recording) this.show(this.#recording);
  }

  #jump(step) {
    this.#state.step = step;
    this.#follow = false;
    this.#wish = null;
  }

  destroy() {
    this.#pause();
    clearTimeout(this.#speaking);
    this.#root.replaceChildren();
    this.#root.classList.remove("sdx");
    this.#recording = null;
  }

  // ------------------------------------------------------------------------------- what is built

  #build(heading) {
    const parts = this.#parts;
    parts.tokens = make("div", { class: "sdx-tokens", role: "group", "aria-label": "Tokens" });
    parts.notes = make("div", { class: "sdx-notes" });
    parts.stage = make("canvas", { role: "img" });
    parts.caption = make("figcaption");
    parts.panels = make("div", {
      class: "sdx-panels",
      role: "radiogroup",
      "aria-label": "What is shown large",
    });
    parts.thumbs = make("div", { class: "sdx-thumbs", role: "group", "aria-label": "Heat maps" });
    parts.over = make("div", { class: "sdx-over", role: "radiogroup", "aria-label": "Maps of" });
    parts.layers = make("div", { class: "sdx-layers", role: "radiogroup", "aria-label": "Layer" });
    parts.layersSay = make("p", { class: "sdx-says" });
    parts.numbers = make("div", { class: "sdx-numbers" });
    parts.mapsBody = make(
      "div",
      {},
      make("div", { class: "sdx-row" }, this.#says(ABOUT_MAPS), parts.over),
      parts.thumbs,
      parts.layersSay,
      parts.layers,
      make("details", {}, make("summary", {}, "The heat map in numbers"), parts.numbers),
    );
    parts.noMaps = this.#says("");
    parts.live = make("p", { class: "sdx-live", "aria-live": "polite" });
    const body = make(
      "div",
      { class: "sdx-body" },
      this.#section("prompt", heading, "The prompt becomes 77 tokens", parts.tokens, parts.notes),
      // The figure sticks, within its place in the grid: a block of its own holds it there.
      make(
        "div",
        { class: "sdx-side" },
        make("figure", { class: "sdx-stage" }, parts.stage, parts.caption),
      ),
      this.#section(
        "journey",
        heading,
        "Step by step, noise becomes a picture",
        this.#buildTime(),
        parts.panels,
      ),
      this.#section(
        "words",
        heading,
        "Where the picture listened to each word",
        parts.noMaps,
        parts.mapsBody,
      ),
      this.#keys(),
      parts.live,
    );
    this.#root.classList.add("sdx");
    this.#root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's own keys.
    this.#root.replaceChildren(body);
    for (const group of [parts.tokens, parts.thumbs]) rove(group, false);
    for (const group of [parts.panels, parts.layers, parts.over]) rove(group, true);
    body.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#state.word !== null) this.#moved({ word: null });
    });
  }

  #says(text) {
    return make("p", { class: "sdx-says" }, text);
  }

  #section(name, heading, title, ...children) {
    const id = `${this.#id}-${name}`;
    return make(
      "section",
      { class: `sdx-${name}`, "aria-labelledby": id },
      make(heading, { id, class: "sdx-title" }, title),
      ...children,
    );
  }

  #keys() {
    const keys = [
      ["← →", "a step back or on, where the noise curve is in focus; Home and End, the ends"],
      ["space", "play and pause, there"],
      ["Tab", "to the next group: tokens, large picture, curve, panels, heat maps, layers"],
      ["arrows", "within a group; a word in focus lights up"],
      ["Enter", "keep a word lit, or let it go; Escape lets it go from anywhere"],
    ];
    const listed = keys.flatMap(([key, does]) => [
      make("dt", {}, make("kbd", {}, key)),
      make("dd", {}, does),
    ]);
    return make(
      "details",
      { class: "sdx-keys" },
      make("summary", {}, "Keys"),
      make("dl", {}, ...listed),
    );
  }

  /** The noise curve, which is also the scrubber: each step is a point on it. */
  #buildTime() {
    const parts = this.#parts;
    parts.play = make("button", {
      class: "sdx-play",
      type: "button",
      onclick: () => this.#toggle(),
    });
    parts.readout = make("p", { class: "sdx-readout" });
    parts.area = document.createElementNS("http://www.w3.org/2000/svg", "path");
    parts.line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("viewBox", "0 0 1 1");
    drawing.setAttribute("preserveAspectRatio", "none");
    drawing.append(parts.area, parts.line);
    parts.ticks = make("span", { class: "sdx-ticks" });
    parts.stem = make("span", { class: "sdx-stem" });
    parts.point = make("span", { class: "sdx-point" });
    parts.handle = make("span", { class: "sdx-handle" });
    const plot = make(
      "span",
      { class: "sdx-plot", "aria-hidden": "true" },
      drawing,
      make("span", { class: "sdx-noise-label" }, "noise"),
      make("span", { class: "sdx-picture-label" }, "picture"),
      parts.stem,
      parts.point,
      parts.ticks,
      parts.handle,
    );
    parts.slider = make(
      "div",
      { class: "sdx-slider", role: "slider", tabindex: "0", "aria-label": "Step" },
      plot,
    );
    this.#listenToSlider(parts.slider, plot);
    return make(
      "div",
      { class: "sdx-time" },
      make("div", { class: "sdx-row" }, parts.play, parts.readout),
      parts.slider,
      this.#says(
        "The noise level, alpha_bar: how much of the latents’ variance is picture, and how much " +
          "still noise. Each dot is a step; drag, or use the arrow keys.",
      ),
    );
  }

  #listenToSlider(slider, plot) {
    const under = (event) => {
      const box = plot.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      const far = this.#recording.steps.map(({ t }) => Math.abs(this.#across(t) - share));
      return far.indexOf(Math.min(...far));
    };
    slider.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.#recording) return;
      slider.setPointerCapture(event.pointerId);
      this.#scrub(under(event));
    });
    slider.addEventListener("pointermove", (event) => {
      if (event.buttons & 1 && slider.hasPointerCapture(event.pointerId)) this.#scrub(under(event));
    });
    slider.addEventListener("keydown", (event) => {
      if (!this.#recording || event.ctrlKey || event.metaKey || event.altKey) return;
      const { step } = this.#state;
      const leap = Math.max(2, Math.round(this.#recording.steps.length / 10));
      const to = {
        ArrowRight: step + 1, ArrowUp: step + 1, ArrowLeft: step - 1, ArrowDown: step - 1,
        PageUp: step + leap, PageDown: step - leap, Home: 0, End: this.#recording.steps.length,
      }[event.key];
      if (to !== undefined) this.#scrub(to);
      else if (event.key === " ") this.#toggle();
      else return;
      event.preventDefault(); // The page would scroll.
      event.stopPropagation();
    });
  }

  // ------------------------------------------------------------------- what a new recording needs

  #begin(recording) {
    const before = this.#recording;
    this.#pause();
    this.#recording = recording;
    this.#asked.clear();
    this.#hovered = undefined;
    const { words } = recording.tokens;
    if (before) {
      // The word stays lit if the new prompt has it at the same place: another seed, say.
      const { word } = this.#state;
      if (before.tokens.words[word]?.text !== words[word]?.text) this.#state.word = null;
      [this.#follow, this.#wish] = [true, null];
    } // Else a link may have said where to go before there was anything to show.
    const lengths = words.map(({ text }) => text.length);
    this.#lately = words.length ? lengths.indexOf(Math.max(...lengths)) : "rest";
    compose(this.#parts.stage, ...fit(recording.width, recording.height, STAGE_SIDE), null);
    this.#fillTokens();
    this.#fillNotes();
    this.#fillCurve();
    this.#fillPanels();
    this.#fillThumbs();
    this.#fillLayers();
    this.#fillOver();
  }

  /** Make a button light a word up: under the pointer and in focus, and for good when pressed. */
  #lights(button, word) {
    button.dataset.word = word;
    const light = (row) => {
      if (this.#hovered === row) return;
      this.#hovered = row;
      this.#update(false);
    };
    // Not pointerenter: scrolled under a pointer that rests, a word is not pointed at.
    let pointedAt = false;
    button.addEventListener("pointermove", (event) => {
      if (pointedAt || event.pointerType === "touch") return; // A finger does not hover, it taps.
      pointedAt = true;
      light(word);
    });
    button.addEventListener("pointerleave", () => {
      pointedAt = false;
      light(undefined);
    });
    button.addEventListener("focus", () => {
      if (!button.matches(":focus-visible")) return;
      light(word);
      this.#speak();
    });
    button.addEventListener("blur", () => light(undefined));
    button.addEventListener("click", () => {
      this.#hovered = undefined;
      this.#moved({ word: this.#state.word === word ? null : word });
    });
    return button;
  }

  #fillTokens() {
    const { ids, pieces, words } = this.#recording.tokens;
    const owner = new Map(words.flatMap(({ positions }, k) => positions.map((p) => [p, k])));
    const end = 1 + Math.max(0, ...owner.keys());
    const chips = [this.#chip("start", ["start"], [ids[0]])];
    for (const run of runs(pieces, owner, end)) {
      const inside = run.map((p) => pieces[p].replace("</w>", ""));
      // Pieces are bytes, not letters: beyond English only the prompt's own spelling can be read.
      const row = owner.get(run[0]);
      const word = words[row]?.text ?? inside.join("");
      const spelt = inside.join("").toLowerCase() === word.toLowerCase() ? inside : [word];
      chips.push(this.#chip(row, spelt, run.map((p) => ids[p])));
    }
    const padding = ids.length - end - 1;
    const rest = this.#chip("rest", ["end"], [ids[end]]);
    if (padding > 0) {
      const squares = make("span", { class: "sdx-squares", "aria-hidden": "true" });
      for (let i = 0; i < padding; i++) squares.append(make("i"));
      rest.append(
        make("span", { class: "sdx-padding" }, squares, make("span", {}, `${padding} × padding`)),
      );
    }
    this.#parts.tokens.replaceChildren(...chips, rest);
  }

  #chip(row, pieces, ids) {
    const known = typeof row !== "number" || this.#recording.tokens.words[row].known !== false;
    const kind = typeof row === "number" ? (known ? "" : " sdx-unknown") : " sdx-special";
    const spelt = make(
      "span",
      { class: "sdx-word" },
      ...pieces.map((piece) => make("span", {}, piece)),
    );
    return this.#lights(
      make(
        "button",
        {
          class: `sdx-chip${kind}`,
          type: "button",
          "aria-pressed": "false",
          title: known ? null : "a word that the model never learnt",
        },
        spelt,
        make("span", { class: "sdx-id" }, ids.join(" · ")),
      ),
      row,
    );
  }

  #fillNotes() {
    const { ids, words, cut_off } = this.#recording.tokens;
    const notes = [
      this.#says(
        `The model reads numbers: ${ids.length} of them, always. Point at a word to see where the ` +
          "picture listened to it; press it to keep it lit.",
      ),
    ];
    const unknown = words.filter(({ known }) => known === false).map(({ text }) => quoted(text));
    if (unknown.length) {
      const { model } = this.#recording;
      const said =
        unknown.length === 1
          ? `${model} never learnt this word. To it, it means nothing in particular.`
          : `${model} never learnt these words. To it, they mean nothing in particular.`;
      notes.push(make("p", { class: "sdx-warning" }, `${unknown.join(", ")}: ${said}`));
    }
    if (cut_off.length) {
      const struck = make("s", {}, cut_off.join(" "));
      notes.push(
        make(
          "p",
          { class: "sdx-warning" },
          `Only ${ids.length} tokens fit. Cut off, and never read: `,
          struck,
        ),
      );
    }
    this.#parts.notes.replaceChildren(...notes);
  }

  #across(t) {
    const { noise_curve } = this.#recording;
    return 1 - t / noise_curve.at(-1)[0];
  }

  #fillCurve() {
    const { noise_curve, steps } = this.#recording;
    const points = noise_curve.map(
      ([t, a]) => `${this.#across(t).toFixed(4)} ${(1 - a).toFixed(4)}`,
    );
    const line = `M ${points.reverse().join(" L ")}`;
    this.#parts.line.setAttribute("d", line);
    this.#parts.area.setAttribute("d", `${line} L 1 1 L 0 1 Z`);
    const ticks = steps.map(({ t }) => make("i", { style: `left: ${100 * this.#across(t)}%` }));
    this.#parts.ticks.replaceChildren(...ticks);
  }

  #fillPanels() {
    const panels = panelsOf(this.#recording);
    const [width, height] = fit(this.#recording.width, this.#recording.height, HEAT_SIDE);
    if (!panels.some(({ id }) => id === this.#state.panel)) this.#state.panel = "picture";
    const made = panels.map(({ id, name, says }) => {
      const ids = [`${this.#id}-${id}`, `${this.#id}-${id}-says`];
      return make(
        "button",
        {
          class: "sdx-panel",
          type: "button",
          role: "radio",
          "data-panel": id,
          "aria-labelledby": ids[0],
          "aria-describedby": ids[1],
          onclick: () => this.#moved({ panel: id }),
        },
        make("canvas", { "aria-hidden": "true", width, height }),
        make(
          "span",
          {},
          make("strong", { id: ids[0] }, name),
          make("span", { id: ids[1], class: "sdx-says" }, says),
        ),
      );
    });
    this.#parts.panels.replaceChildren(...made);
  }

  #fillThumbs() {
    const { rows, tokens } = this.#recording;
    const made = rows.map((row) =>
      this.#lights(
        make(
          "button",
          { class: "sdx-thumb", type: "button", "aria-pressed": "false" },
          make("canvas", { "aria-hidden": "true" }),
          make("span", { class: "sdx-thumb-word" }, this.#rowName(row, tokens)),
          make("span", { class: "sdx-share" }),
        ),
        row,
      ),
    );
    // Words first: what start and end get is the rest, and of less interest.
    const words = made.filter((_, i) => typeof rows[i] === "number");
    const others = made.filter((_, i) => typeof rows[i] !== "number");
    this.#parts.thumbs.replaceChildren(...words, ...others);
  }

  #rowName(row, tokens = this.#recording.tokens) {
    return { start: "start", rest: "end, padding" }[row] ?? tokens.words[row].text;
  }

  #fillLayers() {
    const { layers } = this.#recording;
    const names = layerNames(layers);
    const tile = (layer, name, below, title) =>
      make(
        "button",
        {
          class: "sdx-layer",
          type: "button",
          role: "radio",
          "data-layer": layer,
          title,
          onclick: () => this.#moved({ layer }),
        },
        make("canvas", { "aria-hidden": "true" }),
        make("span", { class: "sdx-layer-name" }, name),
        make("span", { class: "sdx-id" }, below),
      );
    const tiles = layers.map(({ name, height, width }, i) =>
      tile(i, names[i], `${width} × ${height}`, name),
    );
    this.#parts.layers.replaceChildren(
      tile("mean", "all", "mean", "the mean over all layers"),
      ...tiles,
    );
  }

  #fillOver() {
    const once = this.#recording.mean_maps && !this.#recording.maps?.length;
    if (once) this.#state.over = "mean";
    const choice = (over, name) =>
      make(
        "button",
        { type: "button", role: "radio", "data-over": over, onclick: () => this.#moved({ over }) },
        name,
      );
    this.#parts.over.replaceChildren(
      ...(once ? [] : [choice("step", "this step")]),
      choice("mean", "mean over steps"),
    );
  }

  // ----------------------------------------------------------------------- the reader does things

  /** The reader has chosen something: show it, and say so to whoever listens. */
  #moved(changes) {
    Object.assign(this.#state, changes);
    this.#update();
    this.#speak();
    this.dispatchEvent(new CustomEvent("change", { detail: this.state }));
  }

  #scrub(step, playing = false) {
    if (!playing) this.#pause();
    const last = this.#recording.done - 1;
    const to = clamp(step, 0, Math.max(0, last));
    this.#jump(to);
    this.#follow = !playing && to === last && last < this.#recording.steps.length - 1;
    const { panel } = this.#state;
    // The finished picture does not change with the step, nor does the mean: show what does.
    this.#moved(panel === "picture" ? { panel: "predicted", over: "step" } : {});
  }

  #toggle() {
    if (this.#timer) return this.#pause();
    const { steps } = this.#recording;
    // Steps without fades in between, so that reduced motion asks for nothing more than slowness.
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const pause = Math.max(still ? 800 : 90, (1000 * PLAY_SECONDS) / steps.length);
    if (this.#state.step >= this.#recording.done - 1) this.#scrub(0, true);
    this.#timer = setInterval(() => {
      if (this.#state.step < this.#recording.done - 1) this.#scrub(this.#state.step + 1, true);
      if (this.#state.step >= steps.length - 1) this.#pause();
    }, pause);
    this.#update();
  }

  #pause() {
    clearInterval(this.#timer);
    const played = this.#timer !== null;
    this.#timer = null;
    if (played && this.#recording) {
      this.#update();
      this.#speak();
    }
  }

  // ------------------------------------------------------------------------------ what is redrawn

  /** The row of the maps that is lit, or null. */
  get #lit() {
    return this.#hovered === undefined ? this.#state.word : this.#hovered;
  }

  /** The maps that the reader looks at, one for each layer, or null if there are none. */
  get #maps() {
    const { over, step } = this.#state;
    return over === "mean" ? meanMaps(this.#recording) : mapsOf(this.#recording, step);
  }

  #update(all = true) {
    const { steps, layers, rows, done } = this.#recording;
    const state = this.#state;
    state.step = clamp(
      Math.round(Number(state.step) || 0),
      0,
      Math.max(0, Math.min(done, steps.length) - 1),
    );
    const possible = ["start", "rest", ...this.#recording.tokens.words.keys()];
    if (!possible.includes(state.word)) state.word = null;
    if (state.layer !== "mean" && !layers[state.layer]) state.layer = "mean";
    if (this.#lit !== null) this.#lately = this.#lit;
    if (all) this.#drawTime();
    this.#drawPanels();
    this.#drawChoices();
    if (all) this.#drawThumbs();
    this.#drawLayers();
    this.#drawNumbers();
    this.#describe();
  }

  #drawTime() {
    const { steps, done } = this.#recording;
    const { step } = this.#state;
    const { t, alpha_bar } = steps[step];
    const parts = this.#parts;
    const x = 100 * this.#across(t);
    for (const part of [parts.stem, parts.point, parts.handle]) part.style.left = `${x}%`;
    parts.point.style.top = parts.stem.style.top = `${100 * (1 - alpha_bar)}%`;
    [...parts.ticks.children].forEach((tick, i) => tick.classList.toggle("sdx-done", i < done));
    parts.readout.replaceChildren(
      make("strong", {}, `Step ${step + 1} of ${steps.length}`),
      make("span", {}, `t = ${Math.round(t)}, ${percent(alpha_bar)} picture`),
    );
    const slider = {
      min: 1,
      max: Math.max(1, Math.min(done, steps.length)),
      now: step + 1,
      text: this.#stepSaid(),
    };
    for (const [name, value] of Object.entries(slider))
      parts.slider.setAttribute(`aria-value${name}`, value);
    parts.play.setAttribute("aria-label", this.#timer ? "Pause" : "Play the steps");
    parts.play.classList.toggle("sdx-playing", this.#timer !== null);
  }

  #stepSaid() {
    const { steps } = this.#recording;
    const { t, alpha_bar } = steps[this.#state.step];
    const step = `Step ${this.#state.step + 1} of ${steps.length}, t = ${Math.round(t)}`;
    return `${step}; of what the U-Net is given, ${percent(alpha_bar)} is picture, the rest noise`;
  }

  #drawPanels() {
    const { width, height, rows } = this.#recording;
    const row = rows.indexOf(this.#lit);
    const maps = row < 0 ? null : this.#maps;
    const [w, h] = fit(width, height, HEAT_SIDE);
    const cover = maps && whiteWhereCold(heatMap(maps, row, this.#state.layer, w, h), w, h);
    for (const panel of this.#parts.panels.children) {
      const { image, smooth } = this.#imageOf(panel.dataset.panel);
      // Until a picture is there, the last one stays, faintly: nothing flickers.
      if (image) compose(panel.firstChild, w, h, image, smooth, cover);
      panel.classList.toggle("sdx-waiting", !image);
    }
    const { image, smooth } = this.#imageOf(this.#large);
    const { stage } = this.#parts;
    if (image) compose(stage, ...fit(width, height, STAGE_SIDE), image, smooth, cover);
    stage.classList.toggle("sdx-waiting", !image);
    stage.classList.toggle("sdx-smooth", smooth);
    // A small picture is enlarged by a whole number, so that its pixels stay squares.
    stage.style.setProperty("--pixels", `${stage.width}px`);
    stage.style.setProperty("--ratio", `${width} / ${height}`);
  }

  /** The panel that is large: the one chosen, or the latents as long as no picture is there. */
  get #large() {
    const { done, steps } = this.#recording;
    const { panel } = this.#state;
    const picture = panel === "picture" || panel === "predicted";
    return picture && done < steps.length && !this.#imageOf(panel).image ? "latents" : panel;
  }

  /** Return what a panel shows at this step: what to draw, or null as long as it is not there. */
  #imageOf(panel) {
    const recording = this.#recording;
    const { step } = this.#state;
    if (panel === "picture" || panel === "predicted") {
      const picture = panel === "picture" ? recording.picture : recording.pictures?.[step];
      if (!picture && panel === "predicted") this.#ask(step);
      return { image: picture ? this.#drawable(picture) : null, smooth: true };
    }
    const numbers = {
      latents: recording.latents,
      noise_uncond: recording.noise_pred_uncond,
      noise_text: recording.noise_pred_text,
      noise: recording.noise_pred,
    }[panel]?.[step];
    return { image: numbers ? this.#cached(numbers, latentsImage) : null, smooth: false };
  }

  #cached(key, compute) {
    if (!this.#ready.has(key)) this.#ready.set(key, compute(key));
    return this.#ready.get(key);
  }

  /** Return a picture as something that can be drawn; null at first, if it is a file. */
  #drawable(picture) {
    return this.#cached(picture, () => {
      if (picture.data) {
        const canvas = raster(picture.width, picture.height);
        const image = new ImageData(picture.width, picture.height);
        image.data.set(picture.data);
        canvas.getContext("2d").putImageData(image, 0, 0);
        return canvas;
      }
      createImageBitmap(picture).then((bitmap) => {
        this.#ready.set(picture, bitmap);
        if (this.#recording) this.#update();
      });
      return null;
    });
  }

  /** Ask for a predicted picture that nobody has decoded yet, once. */
  #ask(step) {
    const recording = this.#recording;
    if (!this.#needPicture || this.#asked.has(step) || step >= recording.done) return;
    if (this.#follow && recording.done < recording.steps.length) return; // It would slow it down.
    this.#asked.add(step);
    Promise.resolve(this.#needPicture(step)).then(
      (picture) => {
        if (recording !== this.#recording) return;
        (recording.pictures ??= [])[step] ??= picture;
        this.#update();
      },
      () => this.#asked.delete(step), // It may succeed another time.
    );
  }

  #drawChoices() {
    const parts = this.#parts;
    const { panel, layer, over, word } = this.#state;
    const lit = this.#lit;
    for (const group of [parts.tokens, parts.thumbs]) {
      for (const button of group.children) {
        const row = this.#rowOf(button);
        button.setAttribute("aria-pressed", row === word);
        button.classList.toggle("sdx-lit", row === lit);
      }
      group.classList.toggle("sdx-some-lit", lit !== null);
      keepOneTabStop(
        group,
        word === null ? null : [...group.children].find((b) => this.#rowOf(b) === word),
      );
    }
    check(parts.panels, (button) => button.dataset.panel === panel);
    check(parts.layers, (button) => button.dataset.layer === String(layer));
    check(parts.over, (button) => button.dataset.over === over);
  }

  #rowOf(button) {
    const { word } = button.dataset;
    return word === "start" || word === "rest" ? word : Number(word);
  }

  #drawThumbs() {
    const { rows, layers, width, height } = this.#recording;
    const maps = this.#maps;
    const any = layers.length > 0;
    this.#parts.mapsBody.hidden = !any;
    this.#parts.noMaps.hidden = any;
    this.#parts.noMaps.textContent = "No heat maps were recorded with this drawing.";
    if (!any) return;
    const [w, h] = fit(width, height, THUMB_SIDE);
    const { over, layer } = this.#state;
    const order = [over === "mean" ? "picture" : "predicted", "predicted", "latents"];
    const base = order.map((panel) => this.#imageOf(panel)).find(({ image }) => image);
    for (const thumb of this.#parts.thumbs.children) {
      const row = rows.indexOf(this.#rowOf(thumb));
      const cover = maps && whiteWhereCold(heatMap(maps, row, layer, w, h), w, h);
      compose(thumb.firstChild, w, h, maps && base?.image, base?.smooth, cover);
      thumb.lastChild.textContent = maps ? percent(shares(maps, row, layer, 1, 1)[0]) : "…";
    }
  }

  #drawLayers() {
    const { rows, width, height } = this.#recording;
    const maps = this.#maps;
    const row = rows.indexOf(this.#lately);
    if (!maps || row < 0) return;
    const [all, ...tiles] = this.#parts.layers.children;
    const [w, h] = fit(width, height, 2 * Math.max(...maps.flatMap(({ shape }) => shape.slice(1))));
    const total = new Float32Array(w * h);
    for (const one of maps) addEnlarged(total, one, row, w, h);
    drawHeat(all.firstChild, { data: total, shape: [1, h, w] }, 0);
    tiles.forEach((tile, i) => drawHeat(tile.firstChild, maps[i], row));
    const which = this.#rowName(this.#lately);
    this.#parts.layersSay.textContent =
      `The same for ${quoted(which)}, layer by layer, the more attention the brighter. ` +
      "Coarse layers find the place, fine ones the outline. Choose one to see it alone.";
  }

  #drawNumbers() {
    const { rows } = this.#recording;
    const maps = this.#maps;
    const row = rows.indexOf(this.#lately);
    if (!maps || row < 0) return this.#parts.numbers.replaceChildren();
    const found = shares(maps, row, this.#state.layer, GRID, GRID);
    const lines = ["top", "upper middle", "lower middle", "bottom"];
    const columns = ["left", "middle left", "middle right", "right"];
    const head = make(
      "tr",
      {},
      make("td"),
      ...columns.map((name) => make("th", { scope: "col" }, name)),
    );
    const body = lines.map((name, y) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, name),
        ...columns.map((_, x) => make("td", {}, percent(found[y * GRID + x]))),
      ),
    );
    const word = quoted(this.#rowName(this.#lately));
    const what = `Share of attention that each part of the picture gave to ${word}`;
    const caption = `${what}, ${this.#mapsSaid()}`;
    this.#parts.numbers.replaceChildren(
      make(
        "table",
        {},
        make("caption", {}, caption),
        make("thead", {}, head),
        make("tbody", {}, ...body),
      ),
    );
  }

  // --------------------------------------------------------------------------- what it is in words

  #mapsSaid() {
    const { layer, over, step } = this.#state;
    const { layers } = this.#recording;
    const which =
      layer === "mean" ? `mean over ${layers.length} layers` : `layer ${layerNames(layers)[layer]}`;
    return `${which}, ${over === "mean" ? "mean over the steps" : `step ${step + 1}`}`;
  }

  #shownSaid() {
    const panel = panelsOf(this.#recording).find(({ id }) => id === this.#large);
    return panel.name + (panel.id === "picture" ? "" : `, step ${this.#state.step + 1}`);
  }

  #spotSaid() {
    const lit = this.#lit;
    if (lit === null) return "";
    const name = quoted(this.#rowName(lit));
    return this.#maps && this.#recording.rows.includes(lit)
      ? `In colour where it listened to ${name}: ${this.#mapsSaid()}.`
      : `There is no heat map of ${name} yet.`;
  }

  #describe() {
    const { prompt, seed, sampler, model, guidance_scale, steps } = this.#recording;
    const settings = [
      `${steps.length} steps`,
      sampler,
      guidance_scale === null ? null : `guidance ${guidance_scale > 1 ? guidance_scale : "off"}`,
      Number.isInteger(seed) ? `seed ${seed}` : null,
      model,
    ].filter(Boolean);
    this.#parts.caption.replaceChildren(
      make("strong", {}, this.#shownSaid()),
      make("span", {}, this.#spotSaid() || `${quoted(prompt)}, ${settings.join(", ")}.`),
    );
    this.#parts.stage.setAttribute(
      "aria-label",
      `${this.#shownSaid()}, for ${quoted(prompt)}. ${this.#spotSaid()}`,
    );
  }

  /** Tell screen readers what is shown, once the reader rests; not while the steps play. */
  #speak() {
    clearTimeout(this.#speaking);
    this.#speaking = setTimeout(() => {
      if (!this.#recording || this.#timer) return;
      const large = `Shown large: ${this.#shownSaid()}. ${this.#spotSaid()}`;
      this.#parts.live.textContent = `${this.#stepSaid()}. ${large}`;
    }, 400);
  }
}

// -------------------------------------------------------------------------------------- keyboard

/** Let arrow keys walk through a group's buttons, and in one of choices also choose. */
function rove(group, chooses) {
  group.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const buttons = [...group.children];
    const here = buttons.indexOf(event.target.closest("button"));
    const to = {
      ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1,
      Home: 0, End: buttons.length - 1,
    }[event.key];
    if (to === undefined || here < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const next = buttons[(to + buttons.length) % buttons.length];
    if (chooses) next.click();
    keepOneTabStop(group, next);
    next.focus();
  });
}

/** A group is one stop of the Tab key: the button given, or the one that was, or the first. */
function keepOneTabStop(group, button) {
  const buttons = [...group.children];
  const stop =
    button ?? buttons.find(({ tabIndex, dataset }) => dataset.stop && tabIndex === 0) ?? buttons[0];
  for (const one of buttons) {
    one.tabIndex = one === stop ? 0 : -1;
    one.dataset.stop = "yes"; // A new button has tabIndex 0 without having been chosen.
  }
}

function check(group, isIt) {
  for (const button of group.children) button.setAttribute("aria-checked", isIt(button));
  keepOneTabStop(group, [...group.children].find(isIt));
}

export function mount(element, options = {}) {
  return new Explorer(element, options);
}

// ------------------------------------------------------------------------ in a notebook: anywidget

/** Turn what explore.py packed into a recording. */
export async function unpack(header, packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(stream).arrayBuffer();
  const part = (where) => bytes.slice(where.at, where.at + where.bytes);
  const numbers = (where) => where && frames(where, part(where));
  const picture = (where) => new Blob([part(where)], { type: "image/webp" });
  const layers = header.maps?.map(numbers);
  return {
    ...header,
    latents: numbers(header.latents),
    noise_pred_uncond: numbers(header.noise_pred_uncond),
    noise_pred_text: numbers(header.noise_pred_text),
    noise_pred: numbers(header.noise_pred),
    maps: layers ? header.steps.map((_, step) => layers.map((layer) => layer[step])) : [],
    mean_maps: header.mean_maps?.map((where) => numbers(where)[0]),
    pictures: header.pictures.map(picture),
    picture: picture(header.picture),
  };
}

/** Undo Pack.numbers: each frame is a difference of whole levels from the one before. */
function frames({ shape, bits, low, high }, buffer) {
  const [count, channels, height, width] = shape;
  const Levels = bits === 16 ? Uint16Array : Uint8Array;
  const changes = new Levels(buffer);
  const levels = new Levels(channels * height * width); // It wraps around, as NumPy's does.
  return Array.from({ length: count }, (_, frame) => {
    const data = new Float32Array(levels.length);
    for (let i = 0; i < levels.length; i++) {
      levels[i] += changes[frame * levels.length + i];
      const channel = Math.floor(i / (height * width));
      data[i] = low[channel] + (levels[i] * (high[channel] - low[channel])) / (2 ** bits - 1);
    }
    return { data, shape: [channels, height, width] };
  });
}

function render({ model, el }) {
  const view = mount(el, { heading: 4 });
  unpack(model.get("header"), model.get("data")).then((recording) => view.show(recording));
  return () => view.destroy();
}

export default { render };
