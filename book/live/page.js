// The page: it joins the controls, the Worker in which the model runs, and the view.

import { mount } from "./explorer.js";
import { Client } from "./page/client.js";
import { $, connectControls, isTight } from "./page/controls.js";
import { imageOf } from "./page/easel.js";
import { ask, inWords, showSaid, takeBack } from "./page/expect.js";
import { connectLessons } from "./page/lesson-list.js";
import { LESSONS, chapterLink } from "./page/lessons.js";
import { connectModes, followMode, isFramed, withMode } from "./page/modes.js";
import { paint, savePicture } from "./page/pictures.js";
import { keeps, modelFiles, obstacle, progressInWords } from "./page/start.js";
import {
  USUAL,
  differences,
  fileName,
  fromLink,
  same,
  stepsWalked,
  toLink,
  toRequest,
} from "./page/state.js";

const LIVE = 250; // milliseconds that a slider rests before its value is drawn

const controls = connectControls(changed);
const showLesson = connectLessons(followLesson);
let client = null; // once the model is asked for
let ready = false;
let drawing = null; // the drawing under way, {state}
let drawn = null; // {state, recording} of the last finished drawing
let lesson = null; // number of the lesson, from 1
let turn = 0; // counts what the reader asks for; the latest counts
let lastLive = null; // the control that was drawn last while it moved
let timer = 0; // of a slider that has moved
let placing = 0; // timer of the view's place in the link

const view = mount($("view"), {
  needPicture: (step) => client.picture(shown.id, step),
});
let shown = null; // the recording in the view
let frame = 0;
let staying = null; // where the view shall stay

// ---- drawing

/** Draw a state. Resolves to its recording; to null if it was stopped or failed. */
async function drawOne(state) {
  say("Drawing …");
  problem(null);
  const mine = (drawing = { state });
  $("stop").disabled = false;
  const bar = $("drawing-bar");
  bar.hidden = false;
  bar.value = 0;
  bar.max = stepsWalked(state);
  try {
    const recording = await client.draw(toRequest(state, imageOf(state)));
    if (drawing !== mine) return null; // A later drawing has taken its place.
    if (recording) drawn = { state, recording };
    say(
      recording
        ? `Drawn in ${recording.seconds.toFixed(1)} seconds.`
        : `Stopped after step ${shown?.done ?? 0} of ${stepsWalked(state)}.`,
    );
    return recording;
  } catch (error) {
    if (drawing === mine) {
      say("Not drawn.");
      problem(error.message);
    }
    return null;
  } finally {
    if (drawing === mine) {
      drawing = null;
      $("stop").disabled = true;
      bar.hidden = true;
    }
  }
}

/**
 * Draw what the reader asked for: first `from`, if there is one to compare with, then, after the
 * question of "say what you expect", the state itself. `alone`: compare it with nothing.
 */
async function perform(state, options = {}) {
  const { history = "push", from = null, alone = false, asking = true, place = null } = options;
  const mine = ++turn;
  takeBack();
  clearTimeout(timer);
  clearTimeout(placing);
  if (!ready) return;
  if (lesson && state.prompt !== LESSONS[lesson - 1].state.prompt) {
    lesson = null; // Its text is about other pictures.
    showLesson(null);
  }
  if (stepsWalked(state) < 1) {
    problem(`Strength ${state.strength} leaves none of ${state.steps} steps: take more of either.`);
    return;
  }
  if (history) remember(state, history);
  if (from && !(drawn && same(drawn.state, from))) await drawOne(from);
  if (mine !== turn) return;
  const before = alone ? null : drawn;
  const changes = before ? differences(before.state, state) : [];
  let answer = null;
  if (asking && $("expecting").checked && changes.length) {
    client.stop();
    answer = await ask($("expect"), changes);
    if (answer === undefined || mine !== turn) return;
  }
  const recording = await drawOne(state);
  if (!recording || mine !== turn) return;
  for (const id of ["copy", "save"]) $(id).disabled = false;
  if (place) view.go(placeOf(place, recording.tokens));
  await compare(before, recording, changes, answer);
  if (place && isFramed) bringUp(place);
}

/** In a frame, which is low: scroll to the part of the view that the link is about. */
function bringUp({ word, step }) {
  const part = word !== null ? ".sdx-words" : step !== null ? ".sdx-side" : null;
  if (!part) return;
  // Not scrollIntoView: it would scroll the chapter, too.
  const top = scrollY + $("view").querySelector(part).getBoundingClientRect().top - 8;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  scrollTo({ top, behavior: still ? "instant" : "smooth" });
}

async function compare(before, recording, changes, answer) {
  $("compare").hidden = false;
  await paint($("after"), recording.picture);
  $("after").setAttribute("aria-label", `Now: ${recording.prompt}`);
  if (!before) $("compare").setAttribute("data-alone", "");
  if (!changes.length) return;
  $("compare").removeAttribute("data-alone");
  await paint($("before"), before.recording.picture);
  $("before").setAttribute("aria-label", `Before: ${before.recording.prompt}`);
  $("changes").textContent = inWords(changes);
  showSaid($("said"), answer);
  if (answer) $("compare").focus();
}

/** The view shows a growing recording once a frame at most. */
function showSoon(recording) {
  $("drawing-bar").value = recording.done;
  $("empty").hidden = true;
  $("view").hidden = false;
  // The same prompt drawn anew: whoever looks at a word goes on looking at it.
  if (recording !== shown && recording.prompt === shown?.prompt) {
    const { step, ...where } = view.state;
    staying = where;
  }
  shown = recording;
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    view.show(shown);
    if (staying) view.go(staying);
    staying = null;
  });
}

// ---- what the reader changes

function changed(key, live) {
  if (["prompt", "negative_prompt", "second"].includes(key)) {
    if (drawing) {
      turn++;
      client.stop();
    }
    tokenizeSoon(key);
  }
  if (!ready || !live) return;
  if ($("expecting").checked) {
    say("Press Draw: first you say what you expect.");
    return;
  }
  clearTimeout(timer);
  timer = setTimeout(() => {
    // A slider that is dragged to and fro leaves one entry in the browser's history, not twenty.
    const again = key === lastLive;
    perform(controls.state(), { history: again ? "replace" : "push" });
    lastLive = key;
  }, LIVE);
}

const waiting = {}; // field -> timer

function tokenizeSoon(key, delay = LIVE) {
  clearTimeout(waiting[key]);
  waiting[key] = setTimeout(() => tokenize(key), delay);
}

async function tokenize(key) {
  const text = controls.state()[key];
  if (!client) return; // The Worker knows words before it has the model.
  const tokens = await client.tokenize(text);
  if (text === controls.state()[key]) controls.showTokens(tokens, key);
}

function draw(options) {
  lastLive = null;
  perform(controls.state(), options);
}

$("bench").addEventListener("submit", (event) => {
  event.preventDefault();
  if (ready) draw();
  else if (!$("start").hidden) $("start-button").focus();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault(); // A prompt is one line, and Enter draws it.
  $("bench").requestSubmit();
});
$("stop").addEventListener("click", stop);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && drawing) stop();
});

function stop() {
  turn++;
  client.stop();
  $("draw").focus(); // The button is about to be disabled.
}

// ---- links, and the browser's history

function remember(state, how) {
  const link = withMode(toLink(state, { lesson }));
  // In a chapter's frame Back shall leave the chapter, not undo a slider.
  const entry = isFramed || link === location.hash ? "replace" : how;
  window.history[`${entry}State`](null, "", link);
}

/** Show what a link says, and draw it; at `first`, if it is a lesson, with what it compares. */
function open(link, { first = false } = {}) {
  const { state, place, wantsUpload } = fromLink(link);
  clearTimeout(placing);
  if (wantsUpload) state.upload = controls.state().upload;
  const number = Number(place.lesson);
  lesson = LESSONS[number - 1] ? number : null;
  showLesson(lesson);
  controls.show(state, first && lesson !== null);
  tokenizeAll();
  const told = lesson && same(state, LESSONS[lesson - 1].state) ? LESSONS[lesson - 1] : null;
  perform(state, {
    history: link ? null : "replace", // The page's bare address gets its link, too.
    from: first && told ? told.from : null,
    asking: false,
    place,
  });
  if (wantsUpload && !state.upload)
    problem("The picture that this link began with stayed on its own computer: take it again.");
}

// Where the view shall go: {step, word, layer, over, panel}, as far as the link says. A word is
// named in a link, "word=fox"; the view counts the words.
function placeOf({ lesson, ...place }, { words }) {
  const given = Object.entries(place).filter(([, text]) => text !== null);
  const asked = Object.fromEntries(
    given.map(([name, text]) => [name, /^\d+$/.test(text) ? Number(text) : text]),
  );
  const named = words.findIndex(({ text }) => text === asked.word);
  return named < 0 ? asked : { ...asked, word: named };
}

function placeInLink({ step, word, ...rest }, { words, steps }) {
  const text = words[word]?.text;
  const plain = text && !/^\d+$/.test(text) && words.findIndex((one) => one.text === text) === word;
  // At the last step one is anyway.
  return { step: step < steps - 1 ? step : null, word: plain ? text : word, ...rest };
}

function tokenizeAll() {
  for (const key of ["prompt", "negative_prompt", "second"]) tokenizeSoon(key, 0);
}

addEventListener("popstate", () => {
  followMode();
  open(location.hash);
});
view.addEventListener("change", () => {
  if (!drawn || drawing) return;
  clearTimeout(placing);
  placing = setTimeout(() => {
    const { tokens, steps } = drawn.recording;
    const place = placeInLink(view.state, { words: tokens.words, steps: steps.length });
    const link = withMode(toLink(drawn.state, { lesson, ...place }));
    if (!drawing) window.history.replaceState(null, "", link);
  }, LIVE);
});

$("copy").addEventListener("click", async () => {
  const without = drawn.state.upload ? " The picture that you uploaded is not in it." : "";
  try {
    await navigator.clipboard.writeText(location.href);
    say(`Link copied.${without}`);
  } catch {
    prompt(`Copy this link.${without}`, location.href); // No clipboard at insecure addresses.
  }
});
$("save").addEventListener("click", async () => {
  const name = fileName(drawn.state);
  await savePicture(drawn.recording.picture, name);
  say(`Saved as ${name}.`);
});

// ---- lessons

function followLesson(number) {
  lesson = number;
  const { state, from } = LESSONS[number - 1];
  controls.show(state, true);
  view.go(USUAL);
  tokenizeAll();
  lastLive = null;
  if (ready) perform(state, { from, alone: !from });
  else remember(state, "push");
}

// ---- words to the reader

function say(text) {
  $("status").textContent = text;
}

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text ?? "";
}

// ---- the model

async function start() {
  const trouble = obstacle();
  if (trouble) return problem(trouble);
  try {
    const { bytes, here } = await modelFiles();
    if (here) return fetchModel();
    const kept = keeps()
      ? "They are fetched once and kept by your browser: the next visit needs no network."
      : "Your browser keeps nothing for this address, which is not https, so they may be fetched anew at each visit.";
    $("start-text").textContent =
      `The model and what runs it are ${Math.ceil(bytes / 1e6)} MB, from this site. ${kept} ` +
      `Then it draws “${controls.state().prompt}”.`;
    $("start").hidden = false;
  } catch (error) {
    problem(error.message);
  }
}

async function fetchModel() {
  $("start").hidden = false;
  $("start-button").disabled = true;
  $("fetching").hidden = false;
  problem(null);
  client = new Client();
  tokenizeAll();
  client.addEventListener("progress", ({ detail }) => {
    $("fetching-bar").max = detail.total;
    $("fetching-bar").value = detail.received;
    $("fetching-text").textContent = progressInWords(detail);
  });
  client.addEventListener("grown", ({ detail }) => showSoon(detail));
  try {
    const seconds = await client.load();
    ready = true;
    $("start").hidden = true;
    $("draw").disabled = false;
    say(`The model is ready, after ${seconds.toFixed(1)} seconds.`);
    // What the link says, unless the reader has changed it while the model came.
    const changedSince = !same(fromLink(location.hash).state, controls.state());
    if (changedSince) perform(controls.state());
    else open(location.hash, { first: true });
  } catch (error) {
    client.end();
    $("start-button").disabled = false;
    $("start-button").textContent = "Try again";
    $("fetching").hidden = true;
    problem(error.message);
  }
}

$("start-button").addEventListener("click", fetchModel);
for (const link of document.querySelectorAll("[data-chapter]"))
  chapterLink(link.dataset.chapter, link);
connectModes();
$("group-drawing").open = !isTight();
open(location.hash, { first: true }); // Shown already, drawn when the model is here.
start();
if (navigator.serviceWorker) navigator.serviceWorker.register("offline.js").catch(() => {});
