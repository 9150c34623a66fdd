/** From logits to a token, in the order that FORMAT.md specifies: temperature, top_k, top_p, draw. */

import { PageError } from "./errors.js";
import { uniform } from "./random_numbers.js";

// exp(-40) is below half an ulp of 1, and sums start at 1: such a candidate changes no bit of them.
const NEGLIGIBLE = 40;

/**
 * The token with the largest logit, the lowest id among equals.
 *
 * @param {Float32Array} logits [V]
 * @throws {PageError} The largest logit is NaN or infinite.
 */
export function greedy(logits) {
  let token = 0;
  for (let i = 0; i < logits.length; i++) {
    if (Number.isNaN(logits[i])) throw new PageError(`the logit of token ${i} is NaN, needs a number`);
    if (logits[i] > logits[token]) token = i;
  }
  if (!Number.isFinite(logits[token]))
    throw new PageError(`the logit of token ${token} is ${logits[token]}, needs a finite number`);
  return token;
}

/**
 * What may be drawn, best first.
 *
 * @param {Float32Array} logits [V]
 * @param {{temperature: number, topK: number, topP: number}} options `temperature` above 0; `topK` 0 is all.
 * @returns {{ids: number[], cumulative: number[]}} Running sums of exp((logit - largest) / temperature).
 */
export function candidates(logits, { temperature, topK, topP }) {
  const largest = logits[greedy(logits)];
  const scaled = (id) => (logits[id] - largest) / temperature;
  let ids = [];
  for (let id = 0; id < logits.length; id++) if (scaled(id) >= -NEGLIGIBLE) ids.push(id);
  ids.sort((a, b) => scaled(b) - scaled(a) || a - b);
  if (topK) ids = ids.slice(0, topK);
  let sum = 0;
  const cumulative = ids.map((id) => (sum += Math.exp(scaled(id))));
  if (topP < 1) {
    const kept = cumulative.findIndex((running) => running >= topP * sum) + 1;
    return { ids: ids.slice(0, kept), cumulative: cumulative.slice(0, kept) };
  }
  return { ids, cumulative };
}

/**
 * Choose the next token.
 *
 * @param {Float32Array} logits [V]
 * @param {{temperature: number, topK: number, topP: number, seed: bigint}} options `temperature` 0 is greedy.
 * @param {number} index How many tokens this generation has drawn before.
 * @returns {number}
 */
export function sample(logits, options, index) {
  if (options.temperature === 0) return greedy(logits);
  const { ids, cumulative } = candidates(logits, options);
  const threshold = uniform(options.seed, index) * cumulative.at(-1);
  return ids[cumulative.findIndex((running) => running > threshold)];
}
