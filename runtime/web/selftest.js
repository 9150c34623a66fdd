/** Replay a bundle's known answers: does this browser compute what the reference computed? */

import { PageError } from "./errors.js";
import { greedy } from "./sampling.js";

/**
 * @param {import("./session.js").Session} session
 * @param {import("./tokenizer.js").Tokenizer | null} tokenizer
 * @returns {Promise<{answers: number, tokens: number, nearTiesTaken: number, largestDifference: number, differences: string[]}>}
 * @throws {PageError} The bundle has no known answers.
 */
export async function selftest(session, tokenizer) {
  const answers = session.manifest.known_answers;
  if (!answers.length)
    throw new PageError("the bundle has no known answers", "export it again with verification");
  const report = {
    answers: answers.length,
    tokens: 0,
    nearTiesTaken: 0,
    largestDifference: 0,
    differences: [],
  };
  for (const [index, answer] of answers.entries()) {
    const where = `known answer ${index}`;
    if (
      tokenizer &&
      answer.prompt !== null &&
      String(tokenizer.encode(answer.prompt)) !== String(answer.prompt_tokens)
    ) {
      report.differences.push(`${where}: the prompt's tokens differ`);
    }
    await replay(session, answer, where, report);
  }
  return report;
}

async function replay(session, answer, where, report) {
  session.newCache();
  let logits = await session.prefill(answer.prompt_tokens);
  for (const [position, expected] of answer.tokens.entries()) {
    const got = greedy(logits);
    if (got !== expected && answer.near_ties.includes(position)) report.nearTiesTaken++;
    else if (got !== expected)
      report.differences.push(`${where}, position ${position}: token ${got}, should be ${expected}`);
    for (const probe of answer.probes.filter((each) => each.position === position)) {
      probe.token_ids.forEach((token, k) => {
        const difference = Math.abs(logits[token] - probe.logits[k]);
        report.largestDifference = Math.max(report.largestDifference, difference);
        if (!(difference <= answer.tolerance)) {
          report.differences.push(
            `${where}, position ${position}: logit of token ${token} is ${logits[token]}, should be ${probe.logits[k]}`,
          );
        }
      });
    }
    // The reference's token, whatever ours was: one difference does not hide the next.
    if (position + 1 < answer.tokens.length) logits = await session.decode(expected);
  }
  report.tokens += answer.tokens.length;
}
