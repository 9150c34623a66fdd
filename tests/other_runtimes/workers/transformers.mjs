// transformers.js under Node on a bundle of ours: greedy tokens, and texts to ids; see `asked`.

import { basename, dirname } from "node:path";
import { text } from "node:stream/consumers";
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from "@huggingface/transformers";

const question = JSON.parse(await text(process.stdin));
env.allowRemoteModels = false;
env.localModelPath = dirname(question.bundle) + "/";
const name = basename(question.bundle);

async function generate() {
  const model = await AutoModelForCausalLM.from_pretrained(name, { dtype: question.dtype });
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
}

async function tokenize() {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  return {
    "transformers.js": question.texts.map((each) => tokenizer.encode(each, { add_special_tokens: false })),
    "with special": question.texts.map((each) => tokenizer.encode(each)),
    decoded: question.ids.map((each) =>
      each.length ? tokenizer.decode(each, { skip_special_tokens: true }) : "",
    ),
  };
}

const answer = question.texts ? await tokenize() : { greedy: await generate() };
console.log(JSON.stringify(answer));
