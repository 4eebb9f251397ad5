// The canvas of painter.py: paints places of a grid over a picture.

const SIDE = 384; // Pixels of the page, for the longer side.

function render({ model, el }) {
  const rows = model.get("rows");
  const columns = model.get("columns");
  const size = Math.max(4, Math.round(SIDE / Math.max(rows, columns)));
  const painted = new Set(model.get("painted"));
  const width = Math.max(1, Math.round(Math.max(rows, columns) / 6));
  const brush = { row: Math.floor(rows / 2), column: Math.floor(columns / 2), width };

  const canvas = document.createElement("canvas");
  canvas.width = columns * size;
  canvas.height = rows * size;
  canvas.tabIndex = 0;
  canvas.style.cssText = "max-width: 100%; cursor: crosshair; touch-action: none";
  canvas.setAttribute("role", "application");
  canvas.setAttribute(
    "aria-label",
    "Paint a mask. Arrow keys move the brush, space paints, backspace rubs out, plus and minus " +
      "change the brush's width.",
  );
  const said = document.createElement("div");
  said.setAttribute("aria-live", "polite");
  const picture = new Image();
  picture.onload = draw;
  picture.src = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));

  function underBrush() {
    const low = (brush.width - 1) >> 1;
    const places = [];
    for (let row = brush.row - low; row < brush.row - low + brush.width; row++)
      for (let column = brush.column - low; column < brush.column - low + brush.width; column++)
        if (row >= 0 && row < rows && column >= 0 && column < columns)
          places.push(row * columns + column);
    return places;
  }

  function draw() {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "rgba(213, 94, 0, 0.6)";
    for (const place of painted)
      context.fillRect((place % columns) * size, Math.floor(place / columns) * size, size, size);
    for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour; // Seen on dark and on light ground.
      context.lineWidth = width;
      const low = (brush.width - 1) >> 1;
      const side = brush.width * size;
      context.strokeRect((brush.column - low) * size, (brush.row - low) * size, side, side);
    }
    said.textContent = `${painted.size} of ${rows * columns} places painted`;
  }

  function mark(rub) {
    for (const place of underBrush()) rub ? painted.delete(place) : painted.add(place);
  }

  function paint(rub) {
    mark(rub);
    draw();
  }

  function send() {
    model.set("painted", [...painted].sort((a, b) => a - b));
    model.save_changes();
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    return [
      Math.floor(((event.clientY - box.top) / box.height) * rows),
      Math.floor(((event.clientX - box.left) / box.width) * columns),
    ];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    [brush.row, brush.column] = under(event);
    paint(rubber.checked);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [row, column] = under(event);
    const from = [brush.row, brush.column];
    // A quick hand moves by several places from one event to the next.
    const far = Math.max(Math.abs(row - from[0]), Math.abs(column - from[1]));
    const count = event.buttons & 1 ? far : 0;
    for (let i = 1; i <= count; i++) {
      brush.row = Math.round(from[0] + ((row - from[0]) * i) / count);
      brush.column = Math.round(from[1] + ((column - from[1]) * i) / count);
      mark(rubber.checked);
    }
    [brush.row, brush.column] = [row, column];
    draw();
  });
  canvas.addEventListener("pointerup", send);
  canvas.addEventListener("pointercancel", send);
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // The browser's own.
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key in moves) {
      brush.row = Math.min(rows - 1, Math.max(0, brush.row + moves[event.key][0]));
      brush.column = Math.min(columns - 1, Math.max(0, brush.column + moves[event.key][1]));
      draw();
    } else if (event.key === " " || event.key === "Backspace") {
      paint(event.key === "Backspace");
      send();
    } else if (event.key === "+" || event.key === "-") {
      widen(event.key === "+" ? 1 : -1);
    } else {
      return;
    }
    event.preventDefault(); // The page would scroll, and the notebook take the key.
    event.stopPropagation();
  });

  function widen(by) {
    brush.width = Math.min(Math.max(rows, columns), Math.max(1, brush.width + by));
    draw();
  }

  function button(name, act) {
    const made = document.createElement("button");
    made.textContent = name;
    made.className = "jupyter-widgets jupyter-button widget-button";
    made.style.width = "auto";
    made.addEventListener("click", act);
    return made;
  }

  const rubber = document.createElement("input");
  rubber.type = "checkbox";
  const rubberLabel = document.createElement("label");
  rubberLabel.append(rubber, " rub out ");
  const bar = document.createElement("div");
  bar.append(
    button("smaller brush", () => widen(-1)),
    button("larger brush", () => widen(1)),
    rubberLabel,
    button("clear", () => {
      painted.clear();
      draw();
      send();
    }),
  );

  function changed() {
    painted.clear();
    for (const place of model.get("painted")) painted.add(place);
    draw();
  }

  model.on("change:painted", changed);
  el.append(canvas, bar, said);
  return () => {
    model.off("change:painted", changed);
    URL.revokeObjectURL(picture.src);
  };
}

export default { render };
