/** A bundle as a text generator: prefill the prompt, then sample and decode until something ends it. */

import { PageError } from "./errors.js";
import { sample } from "./sampling.js";
import { TextStream } from "./streaming.js";

/**
 * @typedef {object} Options
 * @property {number} temperature 0 is greedy.
 * @property {number} topK 0 is all.
 * @property {number} topP 1 is all.
 * @property {bigint} seed
 * @property {number} maxNewTokens
 */

/**
 * Turn a prompt into tokens and refuse what cannot be generated, before any work.
 *
 * @param {object} manifest
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 * @param {string} prompt
 * @param {Options} options
 * @returns {number[]}
 * @throws {PageError} An option is out of range, or the prompt empty or too long.
 */
export function checkPrompt(manifest, tokenizer, prompt, options) {
  checkOptions(options);
  const tokens = tokenizer.encode(prompt);
  if (!tokens.length)
    throw new PageError("the prompt is empty, and the model has no token that opens a text");
  const limit = manifest.limits.max_position_embeddings;
  const wanted = tokens.length + options.maxNewTokens;
  if (wanted > limit) {
    const room = limit - tokens.length;
    throw new PageError(
      `${tokens.length} tokens of prompt and ${options.maxNewTokens} new ones are ${wanted}, the model has ${limit} positions`,
      room > 0 ? `ask for at most ${room} new tokens` : "shorten the prompt",
    );
  }
  return tokens;
}

/**
 * Generate, one piece a token.
 *
 * @param {import("./session.js").Session} session Its cache is started anew.
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 * @param {number[]} promptTokens From `checkPrompt`.
 * @param {Options} options
 * @yields {{token: number, text: string, finishReason: "eos" | "length" | null}}
 */
export async function* stream(session, tokenizer, promptTokens, options) {
  const { vocabulary } = tokenizer;
  const text = new TextStream(vocabulary, {
    opensText: promptTokens.every((token) => vocabulary.specialIds.has(token)),
  });
  session.newCache();
  let logits = await session.prefill(promptTokens);
  for (let index = 0; index < options.maxNewTokens; index++) {
    const token = sample(logits, options, index);
    const eos = session.manifest.tokens.eos_token_ids.includes(token);
    const last = index + 1 === options.maxNewTokens;
    const finishReason = eos ? "eos" : last ? "length" : null;
    const piece = eos ? "" : text.push(token);
    yield { token, text: finishReason ? piece + text.flush() : piece, finishReason };
    if (finishReason) return;
    logits = await session.decode(token);
  }
}

function checkOptions({ temperature, topK, topP, seed, maxNewTokens }) {
  const refused = [
    [
      !(Number.isFinite(temperature) && temperature >= 0),
      `temperature is ${temperature}, needs a number of at least 0`,
    ],
    [
      !(Number.isInteger(topK) && topK >= 0),
      `top-k is ${topK}, needs a whole number of at least 0, which is all`,
    ],
    [!(topP > 0 && topP <= 1), `top-p is ${topP}, needs more than 0 and at most 1`],
    [!(typeof seed === "bigint" && seed < 1n << 64n), `seed is ${seed}, needs 0 to 2^64 - 1`],
    [
      !(Number.isInteger(maxNewTokens) && maxNewTokens >= 1),
      `new tokens is ${maxNewTokens}, needs a whole number of at least 1`,
    ],
  ];
  for (const [broken, message] of refused) if (broken) throw new PageError(message);
}
