// transformers.js in a browser on a bundle of ours: greedy tokens for the question that the driver sets.
import {
  AutoModelForCausalLM,
  Tensor,
  env,
} from "/node_modules/@huggingface/transformers/dist/transformers.min.js";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "/bundle/";
// The plain build: the one for WebGPU, which is the default, cannot read bfloat16.
const runtime = "/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded";
env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };

window.generate = async (question) => {
  const model = await AutoModelForCausalLM.from_pretrained(question.name, { dtype: "fp32", device: "wasm" });
  const greedy = [];
  for (const prompt of question.prompts) {
    const ids = new Tensor("int64", BigInt64Array.from(prompt, BigInt), [1, prompt.length]);
    const mask = new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), [1, prompt.length]);
    const made = await model.generate({
      input_ids: ids,
      attention_mask: mask,
      max_new_tokens: question.max_new_tokens,
      do_sample: false,
    });
    greedy.push(made.tolist()[0].map(Number).slice(prompt.length));
  }
  return greedy;
};
