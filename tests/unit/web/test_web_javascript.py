"""The page's modules repeat the Python runtime: random numbers, choice of a token, text, manifest."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from llama_runtime import SamplingOptions
from llama_runtime.random_numbers import splitmix64, uniform
from llama_runtime.sampling import sample
from llama_runtime.streaming import TextStream
from llama_runtime.tokenizer import Tokenizer
from llama_runtime.vocabulary import open_tokenizers

REPO = Path(__file__).parents[3]
WEB = REPO / "runtime/web"
# The modules have no state, so one Node.js answers a list of calls: [module, function, arguments].
NODE = """
import { readFileSync } from "node:fs";
const [web] = process.argv.slice(1);
const revive = (key, value) => {
  if (value?.bigint !== undefined) return BigInt(value.bigint);
  return value?.logits ? Float32Array.from(value.logits) : value;
};
const show = (key, value) => (typeof value === "bigint" ? String(value) : value);
const { openVocabulary } = await import(web + "/vocabulary.js");
const { TextStream } = await import(web + "/streaming.js");
const local = {
  texts(file, ids, opensText) {
    const vocabulary = openVocabulary(JSON.parse(readFileSync(file)));
    return ids.map((row) => {
      const stream = new TextStream(vocabulary, { opensText });
      return [...row.map((id) => stream.push(id)), stream.flush()];
    });
  },
  special: (file) => [...openVocabulary(JSON.parse(readFileSync(file))).specialIds],
};
const answers = [];
for (const [module, name, parameters] of JSON.parse(readFileSync(0), revive)) {
  const call = module ? (await import(`${web}/${module}.js`))[name] : local[name];
  try {
    answers.push(call(...parameters));
  } catch (error) {
    answers.push({ error: error.message, hint: error.hint });
  }
}
console.log(JSON.stringify(answers, show));
"""


def node(*calls: tuple[str | None, str, list[object]]) -> list[object]:
    program = shutil.which("node")
    if program is None:
        pytest.skip("no Node.js here: install node")
    command = [program, "--input-type=module", "--eval", NODE, "--", str(WEB)]
    done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def big(value: int) -> dict[str, str]:
    return {"bigint": str(value)}


def test_random_numbers():
    pairs = [(seed, n) for seed in (0, 1, 1234567, 2**53, 2**64 - 1) for n in (0, 1, 2, 1000)]
    numbers = node(*(("random_numbers", "splitmix64", [big(seed), n]) for seed, n in pairs))
    assert [int(number) for number in numbers] == [splitmix64(seed, n) for seed, n in pairs]
    fractions = node(*(("random_numbers", "uniform", [big(seed), n]) for seed, n in pairs))
    assert fractions == [uniform(seed, n) for seed, n in pairs]


def test_the_formats_own_examples():
    text = (REPO / "runtime/FORMAT.md").read_text(encoding="utf-8")
    # The page has no min_p, so these are the rows without.
    row = r"^\| ([\d.]+) \| (\d+) \| ([\d.]+) \| 0\.0 \| [\d ]+ \| ([\d ]+) \|$"
    rows = re.findall(row, text, re.MULTILINE)
    assert len(rows) >= 3
    logits = {"logits": [1.0, 2.5, -1.0, 2.5, 0.5, 2.0]}
    calls, expected = [], []
    for temperature, top_k, top_p, tokens in rows:
        options = {"temperature": float(temperature), "topK": int(top_k), "topP": float(top_p)}
        for n, token in enumerate(tokens.split()):
            calls.append(("sampling", "sample", [logits, options | {"seed": big(42)}, n]))
            expected.append(int(token))
    assert node(*calls) == expected


def test_choice_of_a_token():
    rng, calls, expected = np.random.default_rng(5), [], []
    for n in range(120):
        logits = np.round(rng.normal(0, 3, 200), 1).astype(np.float32)  # rounded, so that some are equal
        temperature = float(rng.choice([0, 0.3, 0.7, 1.0, 3.0]))
        top_k, top_p = int(rng.choice([0, 1, 5, 50])), float(rng.choice([0.1, 0.5, 0.9, 1.0]))
        seed = int(rng.integers(2**63))
        options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        expected.append(sample(logits, options, seed, n))
        asked = {"temperature": temperature, "topK": top_k, "topP": top_p, "seed": big(seed)}
        calls.append(("sampling", "sample", [{"logits": logits.tolist()}, asked, n]))
    assert node(*calls) == expected
    assert len(set(expected)) > 60


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Path:
    """A vocabulary whose tokens are single bytes, every byte there is, and one special token."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    library = tokenizers.Tokenizer(models.BPE({name: byte for byte, name in names.items()}, []))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|eot_id|>"])
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.mark.parametrize("kind", ["pieces", "byte level"])
@pytest.mark.parametrize("opens_text", [True, False])
def test_text_comes_in_the_same_pieces(kind, opens_text, byte_level):
    """Random tokens, so mostly invalid UTF-8, and good text cut into bytes, a byte order mark in it."""
    path = REPO / "recipes/tiny/checkpoint/tokenizer.json" if kind == "pieces" else byte_level
    tokenizer = Tokenizer(open_tokenizers(path), path, None, None)
    first_byte, count = (3, 1024) if kind == "pieces" else (0, 257)
    rng, rows = random.Random(9), []
    for length in range(1, 80):
        rows.append([rng.randrange(count) for _ in range(length)])
        hard = (0x80, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xED, 0xA0)
        rows.append([first_byte + rng.choice(hard) for _ in range(length)])
    rows.append([count, count + 5, 10**6])  # beyond the vocabulary
    invalid = len(rows)
    for text in ("\ufeffGrüße 🦙", "a\ufeffb", "東京", "\U0010ffff"):
        rows.append([first_byte + byte for byte in text.encode()])

    expected = []
    for row in rows:
        stream = TextStream(tokenizer, opens_text=opens_text)
        expected.append([*(stream.push(token) for token in row), stream.flush()])
    found, special = node((None, "texts", [str(path), rows, opens_text]), (None, "special", [str(path)]))
    # How early an invalid sequence is given up is not specified, what it becomes is.
    assert ["".join(pieces) for pieces in found] == ["".join(pieces) for pieces in expected]
    assert found[invalid:] == expected[invalid:]
    assert set(special) == tokenizer.vocabulary.special_ids


GRAPH = ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data_1"]


def manifest(**changes: object) -> str:
    document = {
        "format": "llama-export",
        "version": 1,
        "task": "text-generation",
        "precision": "float32",
        "attention": "flash",
        "weights": "copy",
        "model": {"path": "onnx/model.onnx"},
        "cache": {
            "num_hidden_layers": 1,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "dtype": "float32",
            "key_name": "k{i}",
            "value_name": "v{i}",
            "present_key_name": "pk{i}",
            "present_value_name": "pv{i}",
        },
        "limits": {"max_position_embeddings": 8, "vocab_size": 8},
        "tokens": {"bos_token_id": None, "eos_token_ids": []},
        "tokenizer": None,
        "files": [
            {"path": path, "size_bytes": 1, "sha256": ""}
            for path in (
                "onnx/model.onnx",
                "onnx/model.onnx_data",
                "onnx/model.onnx_data_1",
                "onnx/model.onnx_datax",
            )
        ],
        "known_answers": [],
    }
    return json.dumps(document | changes)


NO_MANIFESTS = {
    "{": "manifest.json: not JSON",
    "[]": 'manifest.json: format is not "llama-export"',
    manifest(format="other"): 'manifest.json: format is not "llama-export"',
    manifest(version=2): "manifest.json: the bundle has format version 2, this page reads up to 1",
    manifest(version="1"): "manifest.json: the bundle has format version 1",
    manifest(task="fill-mask"): 'manifest.json: the bundle\'s task is "fill-mask"',
    manifest(weights="beside"): "the bundle's weights stay in its checkpoint's files",
    manifest(embed_tokens="onnx/embed_tokens.onnx"): "the bundle takes embeddings, this page feeds token ids",
    manifest(soft_prompt={"path": "a", "positions": 1}): "the bundle has a learned prompt, this page would",
    manifest(limits={"vocab_size": 8}): "manifest.json: limits.max_position_embeddings is missing, needs int",
    manifest(precision=4): "manifest.json: precision is 4, needs string",
    manifest(model={"path": "../x"}): 'manifest.json: model.path is "../x", needs path',
    manifest(files=[{"path": "a"}]): 'manifest.json: {"path":"a"} in files has no path, size_bytes',
}


def test_what_is_no_manifest():
    answers = node(*(("manifest", "parseManifest", [text]) for text in NO_MANIFESTS))
    for answer, said in zip(answers, NO_MANIFESTS.values(), strict=True):
        assert answer["error"].startswith(said)


def test_which_files_are_fetched():
    """The graph and its data files, and no others; the tokenizer where there is one."""
    document = json.loads(manifest())
    parsed, needed, missing = node(
        ("manifest", "parseManifest", [manifest()]),
        ("manifest", "neededFiles", [document]),
        ("manifest", "neededFiles", [document | {"tokenizer": {}}]),
    )
    assert parsed == document
    assert [entry["path"] for entry in needed] == [
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/model.onnx_data_1",
    ]
    assert missing["error"] == "manifest.json: files does not list tokenizer.json"
