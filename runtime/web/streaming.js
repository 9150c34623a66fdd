/** Text as it is generated: whole characters only, and in sum exactly what decoding at once gives. */

const REPLACEMENT = "\ufffd";
// Lead byte: how many bytes follow, and the range of the first of them (Unicode's table 3-7).
const SEQUENCES = [
  [0xc2, 0xdf, 1, 0x80, 0xbf],
  [0xe0, 0xe0, 2, 0xa0, 0xbf],
  [0xe1, 0xec, 2, 0x80, 0xbf],
  [0xed, 0xed, 2, 0x80, 0x9f],
  [0xee, 0xef, 2, 0x80, 0xbf],
  [0xf0, 0xf0, 3, 0x90, 0xbf],
  [0xf1, 0xf3, 3, 0x80, 0xbf],
  [0xf4, 0xf4, 3, 0x80, 0x8f],
];

export class TextStream {
  /**
   * @param {import("./vocabulary.js").Vocabulary} vocabulary
   * @param {{opensText: boolean}} options False where the tokens continue a prompt, which keeps the space between.
   */
  constructor(vocabulary, { opensText }) {
    this.vocabulary = vocabulary;
    this.opensText = opensText;
    /** @type {number[]} Bytes of a character that is not complete. */
    this.held = [];
  }

  /**
   * @param {number} token
   * @returns {string} The text that it completes; empty while a character is incomplete.
   */
  push(token) {
    if (this.vocabulary.specialIds.has(token)) return "";
    let bytes = this.vocabulary.tokenBytes(token);
    if (this.opensText && this.vocabulary.dropsSpace && bytes[0] === 0x20) bytes = bytes.subarray(1);
    this.opensText = false;
    let text = "";
    for (const byte of bytes) text += this.#add(byte);
    return text;
  }

  /** End the text: what is still incomplete is invalid, and becomes U+FFFD. */
  flush() {
    return this.#replaceHeld();
  }

  #add(byte) {
    if (this.held.length) {
      const [, , following, low, high] = sequence(this.held[0]);
      const [from, to] = this.held.length === 1 ? [low, high] : [0x80, 0xbf];
      if (byte < from || byte > to) return this.#replaceHeld() + this.#add(byte);
      this.held.push(byte);
      if (this.held.length <= following) return "";
      const character = new TextDecoder().decode(Uint8Array.from(this.held));
      this.held = [];
      // The decoder takes a byte order mark for itself; here it is a character like any other.
      return character || "\ufeff";
    }
    if (byte < 0x80) return String.fromCharCode(byte);
    if (!sequence(byte)) return REPLACEMENT;
    this.held.push(byte);
    return "";
  }

  #replaceHeld() {
    const count = this.vocabulary.replacesEachByte ? this.held.length : Math.min(this.held.length, 1);
    this.held = [];
    return REPLACEMENT.repeat(count);
  }
}

const sequence = (lead) => SEQUENCES.find(([first, last]) => lead >= first && lead <= last);
