/** A loaded bundle that maps token ids to logits. */

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { PageError } from "./errors.js";
import { isData } from "./manifest.js";

// A prompt goes through the graph in pieces, which bounds the memory for [1, T, V] logits.
const CHUNK_TOKENS = 64;

/**
 * Open the graph.
 *
 * @param {object} manifest
 * @param {Map<string, Uint8Array>} files By the manifest's paths; the graph's bytes are given up.
 * @param {number} threads
 * @returns {Promise<Session>}
 * @throws {PageError} ONNX Runtime cannot load it.
 */
export async function openSession(manifest, files, threads) {
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", import.meta.url).href;
  const data = [...files].filter(([path]) => isData(path, manifest));
  // The graph names its data relative to its own folder.
  const externalData = data.map(([path, bytes]) => ({ path: path.split("/").at(-1), data: bytes }));
  const options = {
    executionProviders: ["wasm"],
    enableMemPattern: false, // every decode has a new shape
    externalData,
    ...(manifest.precision === "float32" ? { extra: { session: { disable_prepacking: "1" } } } : {}),
  };
  let session;
  try {
    session = await ort.InferenceSession.create(files.get(manifest.model.path), options);
  } catch (error) {
    if (/fetch|wasm streaming|import|backend/i.test(error.message)) {
      throw new PageError(
        `ONNX Runtime cannot start: ${error.message}`,
        "is onnxruntime-web there? run: make web",
      );
    }
    throw error;
  }
  return new Session(session, manifest, threads);
}

class Session {
  constructor(session, manifest, threads) {
    this.session = session;
    this.manifest = manifest;
    this.threads = threads;
    this.newCache();
  }

  /** Forget all tokens. */
  newCache() {
    const {
      num_hidden_layers: layers,
      num_key_value_heads: K,
      head_dim: D,
      key_name,
      value_name,
    } = this.manifest.cache;
    const dtype = this.manifest.cache.dtype;
    const empty = () =>
      new ort.Tensor(dtype, dtype === "float32" ? new Float32Array() : new Uint16Array(), [1, K, 0, D]);
    this.past = {};
    for (let i = 0; i < layers; i++) {
      this.past[key_name.replace("{i}", i)] = empty();
      this.past[value_name.replace("{i}", i)] = empty();
    }
    /** How many tokens are in the cache. */
    this.length = 0;
  }

  /**
   * Read a prompt, behind what is in the cache already.
   *
   * @param {number[]} tokens At least one.
   * @returns {Promise<Float32Array>} [V] the logits behind its last token.
   */
  async prefill(tokens) {
    let logits;
    const whole = this.length + tokens.length;
    for (let start = 0; start < tokens.length; start += CHUNK_TOKENS) {
      logits = await this.#run(tokens.slice(start, start + CHUNK_TOKENS), whole);
    }
    return logits;
  }

  /**
   * @param {number} token The one that was chosen.
   * @returns {Promise<Float32Array>} [V]
   */
  decode(token) {
    return this.#run([token]);
  }

  async #run(tokens, whole = 0) {
    const T = tokens.length;
    const S = this.length + T;
    // Where angles depend on the length of the text, a chunk is rotated for the whole of it.
    const ropeLength = this.manifest.rope ? { rope_length: new ort.Tensor("int64", [BigInt(whole)], [1]) } : {};
    const limit = this.manifest.limits.max_position_embeddings;
    if (S > limit) throw new PageError(`${S} tokens, the model has ${limit} positions`);
    const outputs = await this.session.run({
      input_ids: int64(tokens),
      attention_mask: int64(Array(S).fill(1)),
      position_ids: int64(tokens.map((_, t) => this.length + t)),
      ...ropeLength,
      ...this.past,
    });
    const { present_key_name, present_value_name, key_name, value_name } = this.manifest.cache;
    for (let i = 0; i < this.manifest.cache.num_hidden_layers; i++) {
      this.past[key_name.replace("{i}", i)] = outputs[present_key_name.replace("{i}", i)]; // [1, K, S, D]
      this.past[value_name.replace("{i}", i)] = outputs[present_value_name.replace("{i}", i)];
    }
    this.length = S;
    const V = this.manifest.limits.vocab_size;
    return outputs.logits.data.slice((T - 1) * V, T * V); // [1, T, V] -> [V]
  }
}

/** [1, N] */
const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
