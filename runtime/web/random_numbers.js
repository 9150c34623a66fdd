/** SplitMix64 as a function of seed and index, as FORMAT.md specifies it: the same draws in every runtime. */

const GOLDEN_GAMMA = 0x9e3779b97f4a7c15n;
const MASK = (1n << 64n) - 1n;

/**
 * Number `index` (from 0) of the sequence that starts at `seed`.
 *
 * @param {bigint} seed
 * @param {number} index
 * @returns {bigint} Below 2**64.
 */
export function splitmix64(seed, index) {
  let z = (seed + BigInt(index + 1) * GOLDEN_GAMMA) & MASK;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}

/**
 * Number `index` in [0, 1): the upper 53 bits, exact in a double.
 *
 * @param {bigint} seed
 * @param {number} index
 */
export function uniform(seed, index) {
  return Number(splitmix64(seed, index) >> 11n) * 2 ** -53;
}
