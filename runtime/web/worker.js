/**
 * The model, away from the page's thread, so that the page never stands still.
 *
 * It is told {type: "open", base, threads}, {type: "generate", prompt, options}, {type: "selftest"} or
 * {type: "stop"}, and answers with {type: "progress" | "ready" | "prefilled" | "piece" | "done" | "selftest" | "error"}.
 */

import { explain, PageError } from "./errors.js";
import { fetchBundle } from "./files.js";
import { checkPrompt, stream } from "./generate.js";
import { selftest } from "./selftest.js";
import { openSession } from "./session.js";
import { Tokenizer } from "./tokenizer.js";

let session = null;
let tokenizer = null;
let stopped = false;

const answer = (type, fields = {}) => self.postMessage({ type, ...fields });

const commands = {
  async open({ base, threads }) {
    const { manifest, files } = await fetchBundle(base, (progress) => answer("progress", progress));
    if (!manifest.tokenizer) throw new PageError("the bundle has no tokenizer, this page needs one");
    tokenizer = new Tokenizer(files.get("tokenizer.json"), manifest);
    answer("progress", { path: "starting ONNX Runtime", done: 1, total: 1 });
    session = await openSession(manifest, files, threads);
    answer("ready", { manifest, threads: session.threads });
  },

  async generate({ prompt, options }) {
    stopped = false;
    const promptTokens = checkPrompt(session.manifest, tokenizer, prompt, options);
    const start = performance.now();
    let first = 0;
    let count = 0;
    let finishReason = "stopped";
    for await (const piece of stream(session, tokenizer, promptTokens, options)) {
      first ||= performance.now();
      count++;
      answer("piece", { ...piece, count, ...rates(start, first, count) });
      finishReason = piece.finishReason ?? finishReason;
      await messages();
      if (stopped) break;
    }
    answer("done", { count, finishReason, promptTokens: promptTokens.length, ...rates(start, first, count) });
  },

  async selftest() {
    answer("selftest", await selftest(session, tokenizer));
  },

  async stop() {
    stopped = true;
  },
};

/** Milliseconds to the first token, and tokens a second after it. */
function rates(start, first, count) {
  const decodeMs = performance.now() - first;
  return { prefillMs: first - start, tokensPerSecond: count > 1 ? ((count - 1) / decodeMs) * 1000 : null };
}

/** Let messages in: generation runs from promise to promise, between which none arrives. */
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

self.onmessage = async ({ data }) => {
  try {
    await commands[data.type](data);
  } catch (error) {
    console.error(error);
    answer("error", { during: data.type, ...explain(error) });
  }
};
answer("started");
