// The page's own tokenizer under Node: texts to ids and back; see `asked`.

import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { Tokenizer } from "../../../runtime/web/tokenizer.js";

const question = JSON.parse(await text(process.stdin));
const manifest = JSON.parse(readFileSync(`${question.bundle}/manifest.json`));
const tokenizer = new Tokenizer(readFileSync(`${question.bundle}/tokenizer.json`), manifest);
console.log(
  JSON.stringify({
    encoded: question.texts.map((each) => tokenizer.encode(each)),
    decoded: question.ids.map((each) => tokenizer.decode(each)),
  }),
);
