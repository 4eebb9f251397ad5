// CLIP's tokenizer: a prompt becomes 77 whole numbers, the entries of a vocabulary of pieces.
//
// Source: Radford et al. (2021), "Learning Transferable Visual Models From Natural Language
// Supervision"; Sennrich et al. (2016), "Neural Machine Translation of Rare Words with Subword
// Units", for byte-pair encoding. The same as sdlearn.tokenize, which tests compare.

export const LENGTH = 77;
const START = "<|startoftext|>";
const END = "<|endoftext|>";
const SPECIAL = /<\|startoftext\|>|<\|endoftext\|>/u;
// A word is a run of letters, one digit, or a run of anything else but spaces.
const RUNS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/u;
const WORD = new RegExp(`${SPECIAL.source}|${RUNS.source}`, "gu");

/** One character for each of the 256 bytes: its own where that can be seen, else one further up. */
function byteCharacters() {
  const between = (first, last) => Array.from({ length: last - first + 1 }, (_, i) => first + i);
  const seen = [...between(33, 126), ...between(161, 172), ...between(174, 255)];
  const others = between(0, 255).filter((byte) => !seen.includes(byte));
  const characters = new Array(256);
  seen.forEach((byte) => (characters[byte] = String.fromCharCode(byte)));
  others.forEach((byte, i) => (characters[byte] = String.fromCharCode(256 + i)));
  return { characters, inOrder: [...seen, ...others].map((byte) => characters[byte]) };
}

export class Tokenizer {
  /** @param {string} merges the lines of merges.txt, which pairs to join, the commonest first */
  constructor(merges) {
    const { characters, inOrder } = byteCharacters();
    const pairs = merges.split("\n").slice(1).filter(Boolean); // the first line names the version
    this.characters = characters;
    this.ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
    // The vocabulary follows from the pairs: bytes, bytes that end a word, and what is joined.
    const ends = inOrder.map((character) => `${character}</w>`);
    this.pieces = [...inOrder, ...ends, ...pairs.map((pair) => pair.replace(" ", "")), START, END];
    this.idOf = new Map(this.pieces.map((piece, id) => [piece, id]));
    this.known = new Map(); // word -> ids, so that each is joined once
  }

  /**
   * Cut a prompt into 77 tokens.
   *
   * words: each word in the prompt's spelling, with its positions among the 77, and `places`, where
   * it stands in `text`, [from, to] each time. cut_off: words that did not fit, wholly or in part.
   */
  tokenize(prompt) {
    const text = prompt.toWellFormed().normalize("NFC"); // an accent and its letter as one
    const found = new Map();
    const ids = [this.idOf.get(START)];
    const cut_off = [];
    for (const { from, to, ids: parts } of this.#cut(text)) {
      const spelling = text.slice(from, to);
      const kept = parts.slice(0, Math.max(0, LENGTH - 1 - ids.length));
      if (kept.length) {
        const word = found.get(spelling) ?? { text: spelling, positions: [], places: [] };
        found.set(spelling, word);
        kept.forEach((id) => word.positions.push(ids.push(id) - 1));
        word.places.push([from, to]);
      }
      if (kept.length < parts.length) cut_off.push(spelling);
    }
    while (ids.length < LENGTH) ids.push(this.idOf.get(END)); // and padding, which is the same
    const pieces = ids.map((id) => this.pieces[id]);
    return { text, ids, pieces, words: [...found.values()], cut_off };
  }

  /** The ids of a text alone, without start, end and padding. */
  encode(text) {
    return [...this.#cut(text.toWellFormed().normalize("NFC"))].flatMap((word) => word.ids);
  }

  /** Where a word, or several that follow each other, stand among 77 ids; none: []. */
  find(ids, word) {
    const wanted = this.encode(word);
    const complete = [this.idOf.get(START), this.idOf.get(END)];
    const ends = (id) => this.pieces[id].endsWith("</w>") || complete.includes(id);
    const positions = new Set();
    for (let i = 1; wanted.length && i + wanted.length <= ids.length; i++)
      if (ends(ids[i - 1]) && wanted.every((id, k) => ids[i + k] === id))
        wanted.forEach((_, k) => positions.add(i + k));
    return [...positions].sort((a, b) => a - b);
  }

  /** Yield the words of a text: where each stands in it, and the ids of its pieces. */
  *#cut(text) {
    let at = 0;
    for (const part of text.split(new RegExp(`(${SPECIAL.source})`, "u"))) {
      if (SPECIAL.test(part)) yield { from: at, to: at + part.length, ids: [this.idOf.get(part)] };
      else yield* this.#words(part, at);
      at += part.length;
    }
  }

  *#words(text, offset) {
    const { small, from, to } = inSmallLetters(text);
    for (const match of small.matchAll(WORD))
      // Start and end written in capitals are no tokens: they fall apart.
      for (const piece of match[0].matchAll(SPECIAL.test(match[0]) ? /\p{L}+|\P{L}+/gu : /.+/gsu)) {
        const first = match.index + piece.index;
        const last = first + piece[0].length - 1;
        yield { from: offset + from[first], to: offset + to[last], ids: this.#join(piece[0]) };
      }
  }

  /** Byte-pair encoding: join the pair that comes first in the list, until none is in it. */
  #join(word) {
    if (this.known.has(word)) return this.known.get(word);
    const bytes = new TextEncoder().encode(word);
    const parts = Array.from(bytes, (byte) => this.characters[byte]);
    parts[parts.length - 1] += "</w>";
    const rank = (i) => this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
    const ranks = parts.map((_, i) => (i + 1 < parts.length ? rank(i) : Infinity));
    while (parts.length > 1) {
      let best = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
      if (ranks[best] === Infinity) break;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
      ranks.splice(best, 1);
      for (const i of [best - 1, best])
        if (i >= 0) ranks[i] = i + 1 < parts.length ? rank(i) : Infinity;
    }
    const ids = parts.map((part) => this.idOf.get(part));
    this.known.set(word, ids);
    return ids;
  }
}

/** A text in small letters, and for each unit of it the place in the text that it comes from. */
function inSmallLetters(text) {
  const from = [];
  const to = [];
  let small = "";
  let at = 0;
  for (const character of text) {
    const lower = character.toLowerCase(); // one by one, as the tokenizer: İ becomes two
    for (let i = 0; i < lower.length; i++) {
      from.push(at);
      to.push(at + character.length);
    }
    small += lower;
    at += character.length;
  }
  return { small, from, to };
}
