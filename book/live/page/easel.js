// The picture to start from: a scribble of large pixels, or a picture of the reader's own.
// A scribble is short enough for a link: "n40r3" is forty cells of night, then three red ones.

const SIDE = 32; // cells
const PIXELS = 128; // of the picture that the model draws

// Letter in the link -> name and colour. The first three are those of chapter 12's scribble.
export const COLOURS = {
  n: ["night", [60, 60, 140]],
  s: ["snow", [230, 235, 245]],
  r: ["red", [200, 60, 60]],
  o: ["orange", [240, 140, 40]],
  y: ["yellow", [250, 215, 80]],
  g: ["green", [80, 160, 70]],
  f: ["forest green", [35, 85, 55]],
  b: ["blue", [60, 130, 210]],
  l: ["light blue", [150, 205, 245]],
  p: ["purple", [130, 80, 170]],
  i: ["pink", [240, 150, 180]],
  e: ["earth", [140, 95, 60]],
  k: ["black", [35, 35, 40]],
};
const EMPTY = "l".repeat(SIDE * SIDE);

/** Letters, one a cell, as runs: "nnnr" is "n3r1". */
export function packed(cells) {
  return cells.replace(/(.)\1*/g, (run, letter) => letter + run.length);
}

/** The reverse; what is missing is left empty, and unknown letters too. */
export function unpacked(runs) {
  let cells = "";
  for (const [, letter, length] of runs.matchAll(/([a-z])(\d{1,4})/g))
    cells += (letter in COLOURS ? letter : EMPTY[0]).repeat(length);
  return (cells + EMPTY).slice(0, SIDE * SIDE);
}

/** What the model starts from: {width, height, data: RGBA}, or null for noise alone. */
export function imageOf({ upload, drawing }) {
  if (upload) return { width: upload.width, height: upload.height, data: upload.data.slice() };
  if (!drawing) return null;
  const cells = unpacked(drawing);
  const data = new Uint8ClampedArray(PIXELS * PIXELS * 4);
  const size = PIXELS / SIDE;
  for (let y = 0; y < PIXELS; y++)
    for (let x = 0; x < PIXELS; x++) {
      const letter = cells[Math.floor(y / size) * SIDE + Math.floor(x / size)];
      data.set([...COLOURS[letter][1], 255], (y * PIXELS + x) * 4);
    }
  return { width: PIXELS, height: PIXELS, data };
}

/** The middle of a picture file, a square of the model's size. */
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = new OffscreenCanvas(PIXELS, PIXELS);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind a picture with see-through parts
  context.fillRect(0, 0, PIXELS, PIXELS);
  context.imageSmoothingQuality = "high";
  const [left, top] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  context.drawImage(bitmap, left, top, side, side, 0, 0, PIXELS, PIXELS);
  const { data } = context.getImageData(0, 0, PIXELS, PIXELS);
  return { width: PIXELS, height: PIXELS, data, name: file.name };
}

/**
 * The easel: buttons to draw, to upload and to take the picture away, and a canvas.
 *
 * `change({drawing, upload})` is called when the reader has changed the picture. Returned is a
 * function that shows a picture.
 */
export function makeEasel(element, change) {
  let cells = EMPTY;
  let upload = null;
  const brush = { row: SIDE / 2, column: SIDE / 2, width: 4, colour: "r" };

  const canvas = Object.assign(document.createElement("canvas"), {
    width: 2 * PIXELS,
    height: 2 * PIXELS,
    tabIndex: 0,
    id: "easel-canvas",
  });
  canvas.setAttribute("role", "application");
  canvas.setAttribute(
    "aria-label",
    "Canvas. Arrow keys move the brush, space paints, plus and minus change the brush’s width.",
  );
  const said = document.createElement("p");
  said.className = "hint";
  said.setAttribute("aria-live", "polite");

  const start = button("Draw one");
  const fromFile = button("Take one of yours …");
  const away = button("None");
  const file = Object.assign(document.createElement("input"), {
    type: "file",
    accept: "image/*",
    hidden: true,
    id: "easel-file",
  });
  const tools = document.createElement("div");
  tools.className = "tools";
  const fill = button("Fill");
  const [thinner, wider] = [button("Thinner"), button("Wider")];
  tools.append(palette(), inLine(fill, thinner, wider));
  const board = document.createElement("div");
  board.className = "board";
  board.append(canvas, tools, said);
  element.append(inLine(start, fromFile, away), file, board);

  function show(picture) {
    upload = picture.upload;
    const had = !board.hidden;
    cells = picture.drawing ? unpacked(picture.drawing) : EMPTY;
    board.hidden = !upload && !picture.drawing;
    tools.hidden = Boolean(upload);
    away.disabled = board.hidden;
    canvas.tabIndex = upload ? -1 : 0;
    if (!had) said.textContent = "";
    draw();
  }

  function draw() {
    const context = canvas.getContext("2d");
    const image = imageOf({ upload, drawing: packed(cells) });
    context.imageSmoothingEnabled = false;
    const small = new OffscreenCanvas(PIXELS, PIXELS);
    small.getContext("2d").putImageData(new ImageData(image.data, PIXELS), 0, 0);
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    if (upload) return;
    const [size, low] = [canvas.width / SIDE, (brush.width - 1) >> 1];
    for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour; // Seen on dark and on light ground.
      context.lineWidth = width;
      const side = brush.width * size;
      context.strokeRect((brush.column - low) * size, (brush.row - low) * size, side, side);
    }
  }

  function paint() {
    const painted = [...cells];
    const low = (brush.width - 1) >> 1;
    for (let row = brush.row - low; row < brush.row - low + brush.width; row++)
      for (let column = brush.column - low; column < brush.column - low + brush.width; column++)
        if (row >= 0 && row < SIDE && column >= 0 && column < SIDE)
          painted[row * SIDE + column] = brush.colour;
    cells = painted.join("");
  }

  function changed() {
    change({ drawing: packed(cells), upload: null });
  }

  function tell() {
    const under = COLOURS[cells[brush.row * SIDE + brush.column]][0];
    said.textContent = `Row ${brush.row + 1} of ${SIDE}, column ${brush.column + 1}: ${under}`;
  }

  start.addEventListener("click", () => {
    show({ drawing: packed(EMPTY), upload: null });
    changed();
    canvas.focus();
  });
  fromFile.addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    if (!file.files.length) return;
    try {
      const taken = await readPicture(file.files[0]);
      show({ drawing: "", upload: taken });
      change({ drawing: "", upload: taken });
    } catch {
      board.hidden = false;
      said.textContent = `${file.files[0].name} is no picture that this browser can read.`;
    }
    file.value = ""; // The same file may be chosen again.
  });
  away.addEventListener("click", () => {
    show({ drawing: "", upload: null });
    change({ drawing: "", upload: null });
    start.focus();
  });
  fill.addEventListener("click", () => {
    cells = brush.colour.repeat(SIDE * SIDE);
    draw();
    changed();
  });
  thinner.addEventListener("click", () => widen(-1));
  wider.addEventListener("click", () => widen(1));

  function widen(by) {
    brush.width = Math.min(SIDE, Math.max(1, brush.width + by));
    said.textContent = `The brush is ${brush.width} wide`;
    draw();
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const place = (at, from, size) =>
      Math.min(SIDE - 1, Math.max(0, Math.floor(((at - from) / size) * SIDE)));
    return [place(event.clientY, box.top, box.height), place(event.clientX, box.left, box.width)];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || upload) return;
    canvas.setPointerCapture(event.pointerId);
    [brush.row, brush.column] = under(event);
    paint();
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (upload) return;
    const [row, column] = under(event);
    const from = [brush.row, brush.column];
    // A quick hand moves by several cells from one event to the next.
    const far = Math.max(Math.abs(row - from[0]), Math.abs(column - from[1]));
    const count = event.buttons & 1 ? far : 0;
    for (let i = 1; i <= count; i++) {
      brush.row = Math.round(from[0] + ((row - from[0]) * i) / count);
      brush.column = Math.round(from[1] + ((column - from[1]) * i) / count);
      paint();
    }
    [brush.row, brush.column] = [row, column];
    draw();
  });
  canvas.addEventListener("pointerup", () => upload || changed());
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || upload) return; // The browser's own.
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key in moves) {
      brush.row = Math.min(SIDE - 1, Math.max(0, brush.row + moves[event.key][0]));
      brush.column = Math.min(SIDE - 1, Math.max(0, brush.column + moves[event.key][1]));
      draw();
      tell();
    } else if (event.key === " ") {
      paint();
      draw();
      tell();
      changed();
    } else if (event.key === "+" || event.key === "-") {
      widen(event.key === "+" ? 1 : -1);
    } else {
      return;
    }
    event.preventDefault(); // The page would scroll.
  });

  function palette() {
    const set = document.createElement("fieldset");
    set.className = "palette";
    const legend = document.createElement("legend");
    legend.textContent = "Colour";
    set.append(legend);
    for (const [letter, [name, rgb]] of Object.entries(COLOURS)) {
      const radio = Object.assign(document.createElement("input"), {
        type: "radio",
        name: "colour",
        value: letter,
        checked: letter === brush.colour,
        title: name,
      });
      radio.setAttribute("aria-label", name);
      radio.style.backgroundColor = `rgb(${rgb})`;
      radio.addEventListener("change", () => (brush.colour = letter));
      set.append(radio);
    }
    return set;
  }

  show({ drawing: "", upload: null });
  return show;
}

function button(name) {
  return Object.assign(document.createElement("button"), { type: "button", textContent: name });
}

function inLine(...children) {
  const made = document.createElement("p");
  made.className = "row";
  made.append(...children);
  return made;
}
