/** The table of a tokenizer.json: which bytes each token stands for, by FORMAT.md's rule for decoding. */

import { PageError } from "./errors.js";

const SPACE = "\u2581";
const BYTE_TOKEN = /^<0x([0-9A-F]{2})>$/;
const PIECE_DECODERS = "Replace+ByteFallback+Fuse";
const encoder = new TextEncoder();

/**
 * @typedef {object} Vocabulary
 * @property {(token: number) => Uint8Array} tokenBytes Empty for an id that the file does not have.
 * @property {Set<number>} specialIds Ids that stand for no text.
 * @property {boolean} dropsSpace The first token of a text loses a leading space.
 * @property {boolean} replacesEachByte Invalid UTF-8 gives one U+FFFD a byte, not one a maximal subpart.
 */

/**
 * Read the table.
 *
 * @param {object} file tokenizer.json, parsed.
 * @returns {Vocabulary}
 * @throws {PageError} It decodes in a way the LLaMA family does not.
 */
export function openVocabulary(file) {
  const names = new Map(Object.entries(file.model.vocab).map(([name, id]) => [id, name]));
  const added = file.added_tokens ?? [];
  for (const token of added) names.set(token.id, token.content);
  const steps = file.decoder?.type === "Sequence" ? file.decoder.decoders : [file.decoder];
  const kind = steps.map((step) => step?.type).join("+");
  const byteLevel = kind === "ByteLevel";
  if (!byteLevel && kind !== PIECE_DECODERS && kind !== `${PIECE_DECODERS}+Strip`) {
    throw new PageError(
      `tokenizer.json: decoder is ${kind || "missing"}, needs ByteLevel or ${PIECE_DECODERS}+Strip`,
    );
  }
  const toBytes = byteLevel ? byteLevelBytes : pieceBytes;
  return {
    tokenBytes: (token) => (names.has(token) ? toBytes(names.get(token)) : new Uint8Array()),
    specialIds: new Set(added.filter((token) => token.special).map((token) => token.id)),
    dropsSpace: kind.endsWith("+Strip") && steps.at(-1).start === 1,
    replacesEachByte: !byteLevel,
  };
}

function pieceBytes(name) {
  const match = BYTE_TOKEN.exec(name);
  return match ? Uint8Array.of(parseInt(match[1], 16)) : encoder.encode(name.replaceAll(SPACE, " "));
}

function byteLevelBytes(name) {
  const bytes = Array.from(name, (character) => BYTE_OF_CHARACTER.get(character));
  return bytes.includes(undefined) ? encoder.encode(name) : Uint8Array.from(bytes); // the former for an added token
}

// GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 onwards.
const BYTE_OF_CHARACTER = new Map();
const isPrintable = (byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
for (let byte = 0, other = 0x100; byte < 256; byte++) {
  BYTE_OF_CHARACTER.set(String.fromCodePoint(isPrintable(byte) ? byte : other++), byte);
}
