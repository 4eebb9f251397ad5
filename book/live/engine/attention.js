// Cross-attention by word: which part of the picture reads which word, and how much a word counts.

import { LENGTH } from "./tokens.js";

/** What the rows of `mapsByWord` are: the start token, each word, and end and padding together. */
export function rowNames(words) {
  return ["start", ...words.keys(), "rest"];
}

/**
 * Add up a layer's maps over the tokens of each word.
 *
 * @param {Float32Array} probabilities (height * width, 77), which sum to 1 over the tokens
 * @param {{height: number, width: number}} layer
 * @param {{positions: number[]}[]} words
 * @returns {{data: Float32Array, shape: number[]}} (rows, height, width), which sum to 1 over rows
 */
export function mapsByWord(probabilities, { height, width }, words) {
  const rowOf = new Array(LENGTH).fill(words.length + 1);
  rowOf[0] = 0;
  words.forEach((word, k) => word.positions.forEach((position) => (rowOf[position] = k + 1)));
  const places = height * width;
  const data = new Float32Array((words.length + 2) * places);
  for (let place = 0; place < places; place++)
    for (let position = 0; position < LENGTH; position++)
      data[rowOf[position] * places + place] += probabilities[place * LENGTH + position];
  return { data, shape: [words.length + 2, height, width] };
}

/**
 * A factor for each of the 77 tokens, from factors for words: 0 blanks a word, 2 doubles it.
 *
 * The attention is multiplied after the softmax, as edit_prompt's reweight does.
 */
export function tokenWeights(tokenizer, tokens, factors) {
  const weights = new Float32Array(LENGTH).fill(1);
  for (const [word, factor] of Object.entries(factors)) {
    const positions = tokenizer.find(tokens.ids, word);
    if (!positions.length) throw new Error(`The prompt has no word “${word}” to weight.`);
    if (!Number.isFinite(factor)) throw new Error(`The weight of “${word}” must be a number.`);
    for (const position of positions) weights[position] *= factor;
  }
  return weights;
}
