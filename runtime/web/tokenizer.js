/**
 * Text to token ids and back, by the rules of FORMAT.md: BOS and EOS as the manifest says, and text is text,
 * so that a special token's name inside it is encoded like any other characters.
 */

import { Tokenizer as Library } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";
import { PageError } from "./errors.js";
import { TextStream } from "./streaming.js";
import { openVocabulary } from "./vocabulary.js";

export class Tokenizer {
  /**
   * @param {Uint8Array} bytes tokenizer.json.
   * @param {object} manifest
   * @throws {PageError} The file is corrupt, or decodes in a way the LLaMA family does not.
   */
  constructor(bytes, manifest) {
    let file;
    try {
      file = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
      this.vocabulary = openVocabulary(file);
      // A special token that the library does not know cannot be read into a person's text.
      const added = (file.added_tokens ?? []).filter((token) => !token.special);
      this.library = new Library({ ...file, added_tokens: added }, {});
    } catch (error) {
      if (error instanceof PageError) throw error;
      throw new PageError(`tokenizer.json: cannot be read (${error.message})`, "copy the bundle again");
    }
    const { add_bos: addBos, add_eos: addEos } = manifest.tokenizer;
    this.prefix = addBos ? [manifest.tokens.bos_token_id] : [];
    this.suffix = addEos ? manifest.tokens.eos_token_ids.slice(0, 1) : [];
  }

  /**
   * @param {string} text
   * @returns {number[]}
   * @throws {PageError} The text has a lone surrogate, which UTF-8 cannot hold.
   */
  encode(text) {
    if (/\p{Surrogate}/u.test(text))
      throw new PageError("the text is not valid Unicode: it has half a character");
    return [...this.prefix, ...this.library.encode(text, { add_special_tokens: false }).ids, ...this.suffix];
  }

  /**
   * @param {number[]} ids Special ones are left out.
   * @returns {string}
   */
  decode(ids) {
    const stream = new TextStream(this.vocabulary, { opensText: true });
    return ids.map((id) => stream.push(id)).join("") + stream.flush();
  }
}
