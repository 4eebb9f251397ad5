// torch.randn on the CPU, number for number: the same seed gives the same noise as the notebooks.
//
// Source: Matsumoto and Nishimura (1998), "Mersenne Twister"; Box and Muller (1958); PyTorch's
// normal_fill, which takes them in blocks of 16.

const WORDS = 624;

/** torch.Generator().manual_seed(seed): the Mersenne Twister MT19937. */
export class Generator {
  #state = new Uint32Array(WORDS);
  #next = WORDS;

  constructor(seed) {
    const state = this.#state;
    state[0] = seed; // its lowest 32 bits, as PyTorch does
    for (let i = 1; i < WORDS; i++)
      state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  }

  /** A whole number from 0 to 2^32 - 1. */
  random() {
    if (this.#next === WORDS) this.#twist();
    let y = this.#state[this.#next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** A number in [0, 1) in steps of 2^-24, as many as a float32 has room for. */
  uniform() {
    return (this.random() & 0xffffff) / 0x1000000;
  }

  #twist() {
    const state = this.#state;
    for (let i = 0; i < WORDS; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % WORDS] & 0x7fffffff);
      state[i] = state[(i + 397) % WORDS] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.#next = 0;
  }
}

/** `count` numbers from N(0, 1), a Float32Array; below 16 PyTorch has another way. */
export function randn(count, generator) {
  if (count < 16) throw new RangeError(`randn draws 16 numbers or more, got ${count}`);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = generator.uniform();
  for (let i = 0; i + 16 <= count; i += 16) boxMuller(values, i);
  if (count % 16) {
    // What is left over: the last 16 are drawn again, some of them a second time.
    for (let i = count - 16; i < count; i++) values[i] = generator.uniform();
    boxMuller(values, count - 16);
  }
  return values;
}

/** Turn 16 uniform numbers into normal ones: radius from the first 8, angle from the others. */
function boxMuller(values, start) {
  for (let i = start; i < start + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
    const angle = 2 * Math.PI * values[i + 8];
    values[i] = radius * Math.cos(angle);
    values[i + 8] = radius * Math.sin(angle);
  }
}
