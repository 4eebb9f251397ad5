// The form and the state: what the controls show, and what the reader changes.

import { makeEasel } from "./easel.js";
import {
  DEFAULTS,
  hasPicture,
  mixInWords,
  pictureInWords,
  stepsWalked,
  weightsInWords,
} from "./state.js";
import { showUnknown, showWeights } from "./words.js";

export const $ = (id) => document.getElementById(id);

/** Whether the settings should take little room: on a narrow page, in a frame, on a projector. */
export const isTight = () =>
  matchMedia("(max-width: 60rem)").matches ||
  document.documentElement.matches("[data-embed], [data-projector]");

/** Close all groups of settings; or, with `false`, open the first. */
export function foldSettings(fold) {
  if (!fold) $("group-drawing").open = true;
  else for (const group of $("settings").querySelectorAll("details")) group.open = false;
}

const TEXTS = ["prompt", "negative_prompt", "second"];
const SLIDERS = ["steps", "guidance_scale", "share", "strength"];

/**
 * Connect the form. `changed(key, live)` is called when the reader has changed the state; `live` if
 * it should be drawn at once, as a slider's. Returned are `state()`, `show(state, tidy)`,
 * and `showTokens(tokens, of)`.
 */
export function connectControls(changed) {
  let state = { ...DEFAULTS, weights: {} };
  let promptTokens = null;

  const change = (key, part, live) => {
    state = { ...state, ...part };
    describe();
    changed(key, live);
  };
  for (const key of TEXTS)
    $(key).addEventListener("input", () => change(key, { [key]: $(key).value }, false));
  for (const key of SLIDERS)
    $(key).addEventListener("input", () => change(key, { [key]: Number($(key).value) }, true));
  $("sampler").addEventListener("change", () =>
    change("sampler", { sampler: $("sampler").value }, true),
  );
  $("seed").addEventListener("change", () => {
    const seed = Math.min(4294967295, Math.max(0, Math.round(Number($("seed").value)) || 0));
    $("seed").value = seed;
    change("seed", { seed }, true);
  });
  $("dice").addEventListener("click", () => {
    const seed = Math.floor(1000 * Math.random()); // short enough to be called across a room
    $("seed").value = seed;
    change("seed", { seed }, true);
  });
  $("words-even").addEventListener("click", () => {
    change("weights", { weights: {} }, true);
    showWords();
  });
  const showPicture = makeEasel($("easel"), (picture) => change("picture", picture, true));

  function showWords() {
    if (promptTokens)
      showWeights($("words"), promptTokens, state.weights, (weights) =>
        change("weights", { weights }, true),
      );
  }

  // Values beside the sliders, and in the heading of each group what it does now.
  function describe() {
    $("steps-value").value = state.steps;
    $("guidance_scale-value").value = state.guidance_scale;
    $("share-value").value = `${Math.round(state.share * 100)} %`;
    $("strength-value").value = state.strength;
    const walked = stepsWalked({ ...state, drawing: "any" });
    $("strength-steps").textContent = `Now ${walked} of ${state.steps} steps.`;
    $("share").disabled = !state.second;
    $("strength").disabled = !hasPicture(state);
    $("words-even").disabled = Object.keys(state.weights).length === 0;
    const { seed, steps, guidance_scale, sampler } = state;
    $("now-drawing").textContent =
      `seed ${seed}, ${steps} steps, guidance ${guidance_scale}, ${sampler}`;
    $("now-words").textContent = weightsInWords(state);
    $("now-negative").textContent = state.negative_prompt || "none";
    $("now-mix").textContent = state.second ? mixInWords(state) : "one";
    $("now-picture").textContent = pictureInWords(state);
  }

  /** Show a state; `tidy`: close the groups that it does not use. */
  function show(next, tidy = false) {
    state = next;
    for (const key of [...TEXTS, ...SLIDERS, "seed", "sampler"]) $(key).value = state[key];
    showPicture(state);
    showWords();
    describe();
    const used = {
      words: Object.keys(state.weights).length > 0,
      negative: state.negative_prompt !== "",
      mix: state.second !== "",
      picture: hasPicture(state),
    };
    for (const [name, isUsed] of Object.entries(used))
      if (isUsed || tidy) $(`group-${name}`).open = isUsed;
    if (tidy) $("group-drawing").open = !isTight() && !Object.values(used).includes(true);
  }

  function showTokens(tokens, key) {
    if (key === "prompt") {
      promptTokens = tokens;
      showWords();
    }
    showUnknown($(`unknown-${key}`), state[key], tokens, (text) => {
      $(key).value = text;
      change(key, { [key]: text }, true);
      $(key).focus();
    });
  }

  return { state: () => state, show, showTokens };
}
