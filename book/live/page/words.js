// Words: those that the model never learnt, and how loud each one is.

// What a postcard can show, as in sdlearn/postcards/world.py; a test compares them.
export const KNOWN = {
  things: [
    "cat", "dog", "rabbit", "elephant", "horse", "cow", "pig", "fox", "bear", "frog", "bird",
    "duck", "owl", "penguin", "fish", "whale", "turtle", "butterfly", "dragon", "unicorn",
    "dinosaur", "robot", "ghost", "car", "bus", "train", "boat", "rocket", "house", "castle",
    "tree", "cactus", "tulip", "mushroom", "apple", "cake",
  ],
  colours: ["red", "orange", "yellow", "green", "blue", "purple", "pink", "black"],
  places: ["beach", "meadow", "desert", "snow", "sea", "space", "city", "forest"],
  times: ["morning", "day", "sunset", "night"],
};

/** A prompt with one word in another's place, and the article that it takes. */
export function replaced(prompt, word, other) {
  const article = /^[aeio]/.test(other) ? "an" : "a"; // "a unicorn"
  const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const found = new RegExp(`(\\ban? +)?(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "giu");
  return prompt.replace(found, (_, before) => (before ? `${article} ${other}` : other));
}

const isWord = ({ text }) => /[\p{L}\p{N}]/u.test(text);

/**
 * Name in `element` the words that the model never learnt, and offer some that it knows.
 * `put(prompt)` is called with the mended prompt.
 */
export function showUnknown(element, prompt, { unknown, cut_off }, put) {
  element.hidden = unknown.length === 0 && cut_off.length === 0;
  element.replaceChildren();
  if (cut_off.length)
    element.append(paragraph(`Only 77 tokens fit. Never read: “${beginning(cut_off.join(" "))}”.`));
  if (unknown.length === 0) return;
  element.append(sentence(unknown.map(({ word }) => word)));
  for (const { word, nearest } of unknown)
    if (nearest)
      element.append(
        offer(`Write ${nearest} for ${word}`, () => put(replaced(prompt, word, nearest))),
      );
  // One word to change, if there are several: a long one, which is rather a thing than an article.
  const strange = unknown.filter(({ nearest }) => !nearest);
  const { word } = (strange.length ? strange : unknown).reduce((one, other) =>
    other.word.length > one.word.length ? other : one,
  );
  element.append(vocabulary(word, (other) => put(replaced(prompt, word, other))));
}

const beginning = (text) => (text.length > 70 ? `${text.slice(0, 70).replace(/ \S*$/, "")} …` : text);

function sentence(names) {
  const made = paragraph("postcards never learnt ");
  names.forEach((name, i) => {
    if (i) made.append(i === names.length - 1 ? " and " : ", ");
    const word = document.createElement("em");
    word.textContent = name;
    made.append(word);
  });
  const they = names.length > 1 ? "they mean" : "it means";
  made.append(`: to the model ${they} nothing, and something is drawn all the same.`);
  return made;
}

function vocabulary(word, put) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = `It knows ${KNOWN.things.length} things, by their English names. Put one in the place of “${word}”`;
  const things = document.createElement("p");
  things.className = "offers";
  things.append(...KNOWN.things.map((thing) => offer(thing, () => put(thing))));
  const { colours, places, times } = KNOWN;
  const rest = [["Colours", colours], ["Places", places], ["Times of day", times]];
  const lists = rest.map(([name, all]) => paragraph(`${name}: ${all.join(", ")}.`));
  details.append(summary, things, ...lists);
  return details;
}

function offer(name, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = name;
  made.addEventListener("click", act);
  return made;
}

function paragraph(text) {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}

/**
 * A slider for each word of the prompt. `change(weights)` is called with all factors but the ones.
 */
export function showWeights(list, tokens, weights, change) {
  const words = [...new Set(tokens.words.filter(isWord).map(({ text }) => text))];
  const now = list.dataset.words === words.join(" ") ? [...list.children] : null;
  if (now) {
    // The same words: only move the sliders, so that the focus stays.
    now.forEach((item, i) => setSlider(item, weights[words[i]] ?? 1));
    return;
  }
  list.dataset.words = words.join(" ");
  list.replaceChildren(...words.map((word, i) => slider(word, i, weights[word] ?? 1, tell)));

  function tell() {
    const inputs = [...list.querySelectorAll("input")];
    const factors = words.map((word, i) => [word, Number(inputs[i].value)]);
    change(Object.fromEntries(factors.filter(([, factor]) => factor !== 1)));
  }
}

function slider(word, number, factor, tell) {
  const item = document.createElement("li");
  const id = `weight-${number}`;
  const label = Object.assign(document.createElement("label"), { htmlFor: id, textContent: word });
  const value = document.createElement("output");
  value.htmlFor = id;
  const input = Object.assign(document.createElement("input"), {
    type: "range", id, min: 0, max: 3, step: 0.1,
  });
  const blank = document.createElement("button");
  blank.type = "button";
  blank.textContent = "blank";
  blank.setAttribute("aria-label", `Blank ${word}`);
  item.append(label, input, value, blank);
  setSlider(item, factor);
  input.addEventListener("input", () => {
    setSlider(item, Number(input.value));
    tell();
  });
  blank.addEventListener("click", () => {
    setSlider(item, Number(input.value) === 0 ? 1 : 0);
    tell();
  });
  return item;
}

function setSlider(item, factor) {
  const [, input, value, blank] = item.children;
  input.value = factor;
  input.setAttribute("aria-valuetext", factor === 0 ? "blanked" : `times ${factor}`);
  value.textContent = factor === 0 ? "0" : `× ${factor}`;
  item.classList.toggle("blanked", factor === 0);
  blank.setAttribute("aria-pressed", String(factor === 0));
}
