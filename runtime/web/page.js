/** What the page shows and what a person does with it; the model itself lives in worker.js. */

import { PageError, explain } from "./errors.js";

const MAX_THREADS = 4;
// The smallest module with a vector instruction: ONNX Runtime needs those.
const VECTOR_MODULE = bytes("0061736d010000000105016000017b030201000a0a0108004100fd0ffd620b");

const $ = (id) => document.getElementById(id);
const base = new URL(new URLSearchParams(location.search).get("bundle") ?? "bundle/", location.href);
if (!base.pathname.endsWith("/")) base.pathname += "/";
const bundleName = decodeURIComponent(base.pathname.split("/").at(-2)) || "bundle";

let worker = null;

const answers = {
  started() {
    worker.postMessage({ type: "open", base: base.href, threads: threads() });
  },

  progress({ path, done, total }) {
    $("status").textContent = total > 1 ? `${path}: ${megabytes(done)} of ${megabytes(total)} MB` : path;
    $("progress").value = done;
    $("progress").max = total;
  },

  ready({ manifest, threads }) {
    const positions = manifest.limits.max_position_embeddings;
    $("name").textContent = bundleName;
    document.title = `${bundleName} - llama-export`;
    $("facts").textContent =
      `${manifest.precision} weights, ${positions} positions, ${threads} thread${threads > 1 ? "s" : ""}. It runs in this page: nothing you type leaves it.`;
    $("loading").hidden = true;
    busy(false);
  },

  piece({ text, count, prefillMs, tokensPerSecond }) {
    $("output-text").textContent += text;
    $("figures").textContent = figures({ count, prefillMs, tokensPerSecond });
  },

  done({ count, prefillMs, tokensPerSecond, promptTokens, finishReason }) {
    const ends = { eos: "the text ended", length: "as many tokens as asked for", stopped: "stopped" };
    const seed = $("result").dataset.seed;
    $("figures").textContent =
      `${figures({ count, prefillMs, tokensPerSecond, promptTokens })}; ${ends[finishReason]}${seed ? `; seed ${seed}` : ""}`;
    $("result").dataset.finish = finishReason;
    busy(false);
  },

  selftest({ answers: number, tokens, largestDifference, nearTiesTaken, differences }) {
    if (differences.length) {
      complain(
        `the known answers differ: ${differences[0]}${differences.length > 1 ? `, and ${differences.length - 1} more` : ""}`,
        "this browser computes something else than the reference",
      );
    }
    const near = nearTiesTaken ? `, ${nearTiesTaken} near ties decided otherwise` : "";
    const logits = `logits within ${largestDifference.toExponential(1)}`;
    show(
      "",
      differences.length
        ? ""
        : `This device computes what the reference computed: ${number} known answers, ${tokens} tokens, ${logits}${near}.`,
    );
    busy(false);
  },

  error({ message, hint, during }) {
    complain(message, hint);
    if (during === "open") $("loading").hidden = true;
    else busy(false);
  },
};

function start() {
  if (typeof WebAssembly !== "object") {
    throw new PageError(
      "this browser has no WebAssembly, the model cannot run",
      "use a current browser, or turn off its lockdown mode for this page",
    );
  }
  if (!WebAssembly.validate(VECTOR_MODULE)) {
    throw new PageError(
      "this browser's WebAssembly has no vector instructions, the model cannot run",
      "use a current browser",
    );
  }
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => answers[data.type](data);
  worker.onerror = (event) => {
    event.preventDefault();
    $("loading").hidden = true;
    busy(false);
    $("generate").disabled = $("check").disabled = true;
    const said = event.message ? `: ${event.message}` : "";
    complain(
      `the model's thread ended or could not start${said}`,
      "are the libraries there? run make web; else reload the page, and if that does not help, the bundle may be too large for this browser",
    );
  };
}

function submit(event) {
  event.preventDefault();
  if ($("generate").disabled) return;
  $("alert").hidden = true;
  const temperature = number("temperature");
  // Below 2^53, so that every JSON reader repeats it exactly.
  const seed = $("seed").value.trim() || String(crypto.getRandomValues(new BigUint64Array(1))[0] >> 11n);
  const options = {
    temperature,
    topK: number("top-k"),
    topP: number("top-p"),
    seed: /^\d+$/.test(seed) ? BigInt(seed) : seed,
    maxNewTokens: number("max-new-tokens"),
  };
  $("result").dataset.seed = temperature === 0 ? "" : seed;
  show($("prompt").value, "");
  busy(true);
  worker.postMessage({ type: "generate", prompt: $("prompt").value, options });
}

function busy(running) {
  $("generate").hidden = running;
  $("generate").disabled = $("check").disabled = running;
  $("stop").hidden = !running;
}

function show(prompt, text) {
  $("result").hidden = false;
  delete $("result").dataset.finish;
  $("output-prompt").textContent = prompt;
  $("output-text").textContent = text;
  $("figures").textContent = "";
  $("result").scrollIntoView({ block: "nearest" });
}

function complain(message, hint) {
  $("alert-message").textContent = message;
  $("alert-hint").textContent = hint;
  $("alert").hidden = false;
}

function figures({ count, prefillMs, tokensPerSecond, promptTokens }) {
  const prompt = promptTokens ? `${promptTokens} prompt tokens in ` : "first token after ";
  const speed = tokensPerSecond === null ? "" : `; ${tokensPerSecond.toFixed(1)} tokens/s`;
  return `${count} token${count > 1 ? "s" : ""}${speed}; ${prompt}${prefillMs.toFixed(0)} ms`;
}

function bytes(hex) {
  return Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
}

/** Threads need memory that they share, which a page has with the headers that serve.py sends. */
const threads = () =>
  globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;
const megabytes = (count) => (count / 1e6).toFixed(1);
const number = (id) => ($(id).value === "" ? NaN : Number($(id).value));

$("form").addEventListener("submit", submit);
$("stop").addEventListener("click", () => worker.postMessage({ type: "stop" }));
$("check").addEventListener("click", () => {
  $("alert").hidden = true;
  busy(true);
  worker.postMessage({ type: "selftest" });
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});

try {
  start();
} catch (error) {
  $("loading").hidden = true;
  const { message, hint } = explain(error);
  complain(message, hint);
}
