// What the page says: the chapters, the lessons, and the questions of "say what you expect".

import { DEFAULTS } from "./state.js";

// The only place that knows the chapters' addresses.
const CHAPTERS = {
  "00": "start-here",
  "01": "there-and-back-again",
  "02": "vae-round-trip",
  "03": "clip-tokens",
  "04": "clip-meaning",
  "05": "forward-noising",
  "06": "u-net-noise-prediction",
  "07": "cross-attention-and-guidance",
  "08": "the-scheduler-loop",
  "09": "the-whole-pipeline-by-hand",
  "11": "train-a-latent-diffusion-model",
  "12": "image-to-image",
  "16": "prompt-to-prompt",
};

export function chapterLink(number, link = document.createElement("a")) {
  link.href = `../chapters/${number}-${CHAPTERS[number]}.html`;
  link.textContent = `Chapter ${number}`;
  return link;
}

const CAR = { prompt: "a car", seed: 1, guidance_scale: 4 };
const MIX = { prompt: "a red apple in the desert by day", second: "a blue boat in the sea at night" };
const CASTLE = { prompt: "a castle in the forest at sunset", seed: 3 };
const TURTLE = { prompt: "a pink turtle in a meadow at night", seed: 7 };
// Chapter 12's scribble: a night sky, a moon, snow, three red walls.
const SCRIBBLE =
  "n101s3n28s5n27s5n27s5n28s3n134r3n6r3n20r3n6r3n20r3n6r3n20r12n20r12n20r12n6s14r12s20r12s2" +
  "0r12s20r12s20r12s20r12s20r12s20r12s20r12s198";
const OVER = { prompt: "a red castle in the snow at night", seed: 0, drawing: SCRIBBLE };

// In the order of the book. Each is drawn as `from` first, if it has one, and then as `state`.
export const LESSONS = [
  {
    title: "The first picture",
    chapter: "00",
    state: {},
    text: "Ten steps lead from noise to a fox. Drag the point on the curve back to step 1: the guess made there is soft and too strong, and yet there is a fox in it.",
  },
  {
    title: "Another seed",
    chapter: "00",
    from: {},
    state: { seed: 27 },
    text: "The same words, other noise. What the words leave open, here which hills and where the moon, the noise decides.",
  },
  {
    title: "A word it never learnt",
    chapter: "03",
    from: {},
    state: { prompt: "an orange lion in the snow at night" },
    text: "Lion is one token, as fox is, but this model never learnt it. The page says so, and the model draws something orange all the same.",
  },
  {
    title: "Two prompts, halfway",
    chapter: "04",
    from: { ...MIX, share: 0 },
    state: { ...MIX, share: 0.5 },
    text: "Halfway between a red apple by day and a blue boat at night lies something purple at sunset, for which neither asked. Move “Share of the second”: where does the apple give way?",
  },
  {
    title: "Blank the word night",
    chapter: "07",
    from: {},
    state: { weights: { night: 0 } },
    text: "Of all the attention, night gets some two per cent. Blank it all the same, and see what it decided.",
  },
  {
    title: "Guidance 2 and 15",
    chapter: "07",
    from: {},
    state: { guidance_scale: 15 },
    text: "Guidance exaggerates what the words change. Up to 8 or so this fox stays itself; at 15 it is yellow and coarse.",
  },
  {
    title: "Away from sunset",
    chapter: "07",
    from: CAR,
    state: { ...CAR, negative_prompt: "at sunset" },
    text: "A negative prompt forbids nothing: each step is led away from it, and away is somewhere. This car ends in space, where no sun sets.",
  },
  {
    title: "Two steps and ten",
    chapter: "08",
    from: { ...CASTLE, steps: 2 },
    state: CASTLE,
    text: "Two long strides walk straight past the bends of the way, and the castle is a heap. Ten short ones ask anew after each.",
  },
  {
    title: "From a scribble",
    chapter: "12",
    from: { ...OVER, strength: 0.2 },
    state: { ...OVER, strength: 0.6 },
    text: "Under a little noise much of the scribble stays: white snow, blunt towers. Under more, the coarse is kept, and a castle is drawn where the boxes stood.",
  },
  {
    title: "A word three times as loud",
    chapter: "16",
    from: TURTLE,
    state: { ...TURTLE, weights: { turtle: 3 } },
    text: "Three times the attention makes no better turtle, only more of it. Move its slider to 0: what stands there then?",
  },
].map((lesson) => ({
  ...lesson,
  state: { ...DEFAULTS, ...lesson.state },
  from: lesson.from && { ...DEFAULTS, ...lesson.from },
}));

// For each control: what to ask before it is drawn, and what the book says.
export const QUESTIONS = {
  prompt: {
    ask: "What will the new words change?",
    choices: ["What they name; much of the rest stays", "Everything", "Nothing that one can see"],
    says: "The new word changes what it names. Much of the rest stays, because the noise is the same, but not all.",
    chapter: "00",
  },
  seed: {
    ask: "What will another seed change?",
    choices: ["Where things stand, and how large", "Which things there are", "Only small details"],
    says: "What was asked for stays. What was not, how large, where, which hills, is left to the noise.",
    chapter: "00",
  },
  steps: {
    ask: "What will the other number of steps change?",
    choices: ["The same picture, finer or coarser", "Another picture", "Only how long it takes"],
    says: "From the same noise a smooth sampler goes the same way, however often it asks. Few long strides cut the bends, and the picture is a blur; beyond ten or so little is gained.",
    chapter: "08",
  },
  guidance_scale: {
    ask: "What will guidance do?",
    choices: [
      "The picture follows the words more closely",
      "It follows them less closely",
      "It stays the same thing",
    ],
    says: "Guidance decides what was in doubt, and overshoots. On postcards 1 to 8 are hardly apart where the words are clear; at 15 colours no longer fit.",
    chapter: "07",
  },
  sampler: {
    ask: "What will the other sampler draw?",
    choices: ["Nearly the same picture", "Another picture", "A better picture"],
    says: "DDIM, Euler and DPM-Solver++ draw nearly the same picture: the start decides the end, and all ask the same U-Net.",
    chapter: "08",
  },
  negative_prompt: {
    ask: "What will the negative prompt do?",
    choices: [
      "What it names goes; all else stays",
      "What it names becomes rarer; other things move, too",
      "It does nothing here",
    ],
    says: "Nothing is forbidden or removed. Each step leads away from what the negative prompt names, and from all that usually goes with it. At guidance 1 it does nothing.",
    chapter: "07",
  },
  mix: {
    ask: "What lies between the two prompts?",
    choices: ["A blend of both", "One of the two", "Something that is neither"],
    says: "Between them the colour mixes, the place and the light jump, each somewhere, and the thing is for a while neither of the two.",
    chapter: "04",
  },
  weights: {
    ask: "What will the picture lose, or gain?",
    choices: ["Only what the word names", "Much more than that", "Nothing that one can see"],
    says: "Without attention the word’s thing is gone; with more it grows, and at last comes apart. How much a word is looked at does not say what it decides: of its attention night gets hardly any, and yet it decides the sky.",
    chapter: "16",
  },
  picture: {
    ask: "What will be left of the picture?",
    choices: ["Its layout, drawn anew", "Nearly everything", "Nothing"],
    says: "Little noise keeps nearly everything, most of the faults too. Much noise keeps little. In between the coarse is kept and the fine is drawn anew.",
    chapter: "12",
  },
};
