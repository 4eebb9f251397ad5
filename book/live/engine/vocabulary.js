// Which words postcards knows: all that its captions were made of. As postcards/vocabulary.py.

const WORD = /[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu;
const CLOSE = 0.7; // how alike a word must be to count as near to another, 0 to 1

export class Vocabulary {
  /** @param {{known: string[], small: string[]}} words of captions, and others no picture shows */
  constructor({ known, small }) {
    this.known = new Set([...known, ...small]);
    this.candidates = known.filter((word) => !small.includes(word)); // in order
  }

  /** The words of a text that postcards never learnt: word -> the nearest it knows, or null. */
  unknown(text) {
    const words = text.toLowerCase().match(WORD) ?? [];
    const missing = words.filter((word) => !this.known.has(word));
    return new Map(missing.map((word) => [word, this.nearest(word)]));
  }

  /**
   * Say of each of a tokenizer's words whether it was learnt; signs between words count as known.
   * `unknown` names the words that were not, each with the nearest that was, or null.
   */
  mark({ text, words, ...rest }) {
    const unknown = [...text.matchAll(WORD)]
      .filter((match) => !this.known.has(match[0].toLowerCase()))
      .map((match) => [match.index, match.index + match[0].length]);
    const learnt = ([from, to]) => !unknown.some(([start, end]) => start < to && from < end);
    const marked = words.map(({ places, ...word }) => ({ ...word, known: places.some(learnt) }));
    const near = Array.from(this.unknown(text), ([word, nearest]) => ({ word, nearest }));
    return { ...rest, words: marked, unknown: near };
  }

  /** The known word most like this one, or null; of several, the last in the alphabet. */
  nearest(word) {
    let best = { likeness: CLOSE, candidate: null };
    for (const candidate of this.candidates) {
      const likeness = ratio(candidate, word);
      if (likeness >= best.likeness) best = { likeness, candidate };
    }
    return best.candidate;
  }
}

/** How alike two words are, 0 to 1: the share of letters in common runs. Python's difflib.ratio. */
function ratio(a, b) {
  return (2 * inCommon(a, b)) / (a.length + b.length);
}

/** Letters in the longest common run, and in those to the left and to the right of it. */
function inCommon(a, b) {
  let best = { size: 0, inA: 0, inB: 0 };
  for (let i = 0; i < a.length; i++)
    for (let j = 0; j < b.length; j++) {
      let size = 0;
      while (i + size < a.length && a[i + size] === b[j + size]) size++;
      if (size > best.size) best = { size, inA: i, inB: j };
    }
  const { size, inA, inB } = best;
  if (size === 0) return 0;
  const left = inCommon(a.slice(0, inA), b.slice(0, inB));
  return size + left + inCommon(a.slice(inA + size), b.slice(inB + size));
}
