/** Fetch a bundle's files, as large as the manifest says and with its hash. */

import { PageError } from "./errors.js";
import { MANIFEST_NAME, neededFiles, parseManifest } from "./manifest.js";

const COPY_AGAIN = "copy the bundle again, as a whole";

/**
 * Fetch everything that the page needs of a bundle.
 *
 * @param {string} base The bundle's address, ending in "/".
 * @param {(progress: {path: string, done: number, total: number}) => void} onProgress Bytes of all files together.
 * @returns {Promise<{manifest: object, files: Map<string, Uint8Array>}>}
 * @throws {PageError} A file is missing, or not what the manifest says.
 */
export async function fetchBundle(base, onProgress) {
  const manifest = parseManifest(await (await request(base, MANIFEST_NAME)).text());
  const needed = neededFiles(manifest);
  const total = needed.reduce((sum, entry) => sum + entry.size_bytes, 0);
  const files = new Map();
  let before = 0;
  for (const entry of needed) {
    const bytes = await fetchFile(base, entry, (read) =>
      onProgress({ path: entry.path, done: before + read, total }),
    );
    await checkHash(entry, bytes);
    files.set(entry.path, bytes);
    before += entry.size_bytes;
  }
  return { manifest, files };
}

async function fetchFile(base, entry, onRead) {
  const response = await request(base, entry.path);
  const bytes = new Uint8Array(entry.size_bytes);
  const reader = response.body.getReader();
  let read = 0;
  try {
    for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
      if (read + chunk.value.length <= bytes.length) bytes.set(chunk.value, read);
      read += chunk.value.length;
      onRead(Math.min(read, entry.size_bytes));
    }
  } catch (error) {
    throw new PageError(
      `${entry.path}: the connection broke after ${read} of ${entry.size_bytes} bytes (${error.message})`,
      "reload the page",
    );
  }
  if (read !== entry.size_bytes) {
    throw new PageError(
      `${entry.path}: has ${read} bytes, the manifest says ${entry.size_bytes}`,
      COPY_AGAIN,
    );
  }
  return bytes;
}

async function request(base, path) {
  let response;
  try {
    response = await fetch(new URL(path, base));
  } catch (error) {
    throw new PageError(
      `${path}: no answer from the server (${error.message})`,
      "is it still running? start it again and reload the page",
    );
  }
  if (response.ok) return response;
  if (path === MANIFEST_NAME) {
    throw new PageError(
      `no bundle at ${base} (${path}: status ${response.status})`,
      "start the server with the bundle's folder: python runtime/web/serve.py BUNDLE",
    );
  }
  throw new PageError(`${path}: missing from the bundle (status ${response.status})`, COPY_AGAIN);
}

async function checkHash(entry, bytes) {
  // Browsers hash in secure contexts alone: https, and localhost.
  if (!globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== entry.sha256) {
    throw new PageError(
      `${entry.path}: its SHA-256 is ${hex.slice(0, 12)}..., the manifest says ${entry.sha256.slice(0, 12)}...`,
      COPY_AGAIN,
    );
  }
}
