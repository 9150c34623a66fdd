/** manifest.json: what the page must know of a bundle, checked before anything else is fetched. */

import { PageError } from "./errors.js";

export const MANIFEST_NAME = "manifest.json";
const FORMAT = "llama-export";
const NEWEST_VERSION = 1;
const TASK = "text-generation";

// What this runtime reads: a path into the manifest, and its type ("?" where null is allowed).
const FIELDS = {
  precision: "string",
  attention: "string",
  weights: "string",
  "model.path": "path",
  "cache.num_hidden_layers": "integer",
  "cache.num_key_value_heads": "integer",
  "cache.head_dim": "integer",
  "cache.dtype": "string",
  "cache.key_name": "string",
  "cache.value_name": "string",
  "cache.present_key_name": "string",
  "cache.present_value_name": "string",
  "limits.max_position_embeddings": "integer",
  "limits.vocab_size": "integer",
  "tokens.bos_token_id": "integer?",
  "tokens.eos_token_ids": "list",
  tokenizer: "object?",
  files: "list",
  known_answers: "list",
};

const CHECKS = {
  string: (value) => typeof value === "string",
  integer: (value) => Number.isInteger(value) && value >= 0,
  list: Array.isArray,
  object: (value) => typeof value === "object" && value !== null && !Array.isArray(value),
  path: isPath,
};

/**
 * Check a manifest's fields.
 *
 * @param {string} text The file's contents.
 * @returns {object} The manifest.
 * @throws {PageError} Not a bundle, a newer version, another task, or a field that is missing or of a wrong type.
 */
export function parseManifest(text) {
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch (error) {
    throw new PageError(`${MANIFEST_NAME}: not JSON (${error.message})`, "copy the bundle again");
  }
  if (!CHECKS.object(manifest) || manifest.format !== FORMAT) {
    throw new PageError(
      `${MANIFEST_NAME}: format is not "${FORMAT}"`,
      "name the folder of a bundle that llama-export wrote",
    );
  }
  if (!Number.isInteger(manifest.version) || manifest.version > NEWEST_VERSION) {
    throw new PageError(
      `${MANIFEST_NAME}: the bundle has format version ${manifest.version}, this page reads up to ${NEWEST_VERSION}`,
      "serve the page of the llama-export that wrote the bundle",
    );
  }
  if (manifest.task !== TASK) {
    throw new PageError(
      `${MANIFEST_NAME}: the bundle's task is ${JSON.stringify(manifest.task)}, this page needs "${TASK}"`,
    );
  }
  for (const [path, type] of Object.entries(FIELDS)) checkField(manifest, path, type);
  if (manifest.weights === "beside") {
    throw new PageError(
      "the bundle's weights stay in its checkpoint's files, which a page cannot open",
      "export with --weights copy or link",
    );
  }
  if (manifest.soft_prompt) {
    throw new PageError(
      "the bundle has a learned prompt, this page would leave it out",
      "export without the adapter that has it",
    );
  }
  if (manifest.embed_tokens) {
    throw new PageError("the bundle takes embeddings, this page feeds token ids", "export without --inputs-embeds");
  }
  for (const entry of manifest.files) {
    if (!isPath(entry?.path) || !CHECKS.integer(entry.size_bytes) || !CHECKS.string(entry.sha256)) {
      throw new PageError(
        `${MANIFEST_NAME}: ${JSON.stringify(entry)} in files has no path, size_bytes and sha256`,
        "copy the bundle again",
      );
    }
  }
  return manifest;
}

/**
 * The files that the page needs, those of the graph's data last.
 *
 * @param {object} manifest
 * @returns {{path: string, size_bytes: number, sha256: string}[]}
 * @throws {PageError} The manifest does not list one of them.
 */
export function neededFiles(manifest) {
  const listed = new Map(manifest.files.map((entry) => [entry.path, entry]));
  const wanted = [...(manifest.tokenizer ? ["tokenizer.json"] : []), manifest.model.path];
  for (const path of wanted) {
    if (!listed.has(path))
      throw new PageError(`${MANIFEST_NAME}: files does not list ${path}`, "copy the bundle again");
  }
  return [
    ...wanted.map((path) => listed.get(path)),
    ...manifest.files.filter((entry) => isData(entry.path, manifest)),
  ];
}

/**
 * Whether a file holds the graph's external data: `<graph>_data`, `<graph>_data_1` and so on.
 *
 * @param {string} path
 * @param {object} manifest
 */
export function isData(path, manifest) {
  const data = `${manifest.model.path}_data`;
  return path === data || (path.startsWith(`${data}_`) && /^\d+$/.test(path.slice(data.length + 1)));
}

function checkField(manifest, path, type) {
  let value = manifest;
  for (const key of path.split(".")) value = value?.[key];
  if (value === null && type.endsWith("?")) return;
  if (!CHECKS[type.replace("?", "")](value)) {
    throw new PageError(
      `${MANIFEST_NAME}: ${path} is ${JSON.stringify(value) ?? "missing"}, needs ${type.replace("?", " or null")}`,
      "copy the bundle again",
    );
  }
}

/** FORMAT.md's rule: relative, "/" between parts, none of them empty, "." or "..". */
function isPath(value) {
  if (typeof value !== "string" || /[\\:\x00-\x1f\x7f]/.test(value)) return false;
  return value.split("/").every((part) => part !== "" && part !== "." && part !== "..");
}
