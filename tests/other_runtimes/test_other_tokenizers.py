"""A text's ids in each runtime are ours; genai's differ as often as runtime/OTHER_RUNTIMES.md says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from asking import HERE, REPO, asked
from llama3_checkpoint import real_tokenizer, write_llama3_checkpoint
from texts import fuzz_texts, real_vocabulary, vector_ids, vector_texts
from tiny_checkpoints import write_checkpoint

import llama_export
import llama_runtime
from llama_export.model import LlamaConfig
from llama_export.recipe import Recipe

pytestmark = pytest.mark.long
WORKERS = HERE / "workers"
DOCUMENT = REPO / "runtime/OTHER_RUNTIMES.md"
# What a checkpoint of Llama 2 says of its tokenizer.
LLAMA2_SETTINGS = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": False,
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}


LLAMA2_SHAPE = LlamaConfig(
    vocab_size=32000,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)


@dataclass(frozen=True)
class Vocabulary:
    """A bundle, texts, and our ids of them.

    Attributes:
        bundle: Its folder.
        texts: What to encode.
        ids: Without special tokens.
        with_special: As a prompt, BOS in front.
        decoded: The text that the ids stand for.
    """

    bundle: Path
    texts: list[str]
    ids: list[list[int]]
    with_special: list[list[int]]
    decoded: list[str]

    @property
    def question(self) -> dict[str, Any]:
        return {"bundle": str(self.bundle), "texts": self.texts, "ids": self.ids}


def real_llama2(folder: Path) -> Path:
    """A random checkpoint with Llama 2's vocabulary, as Meta's conversion has it: tokenizer.model alone."""
    model = real_vocabulary("llama2_tokenizer.model")
    write_checkpoint(folder / "source", LLAMA2_SHAPE, eos_token_id=2)
    (folder / "source" / "tokenizer.model").write_bytes(model.read_bytes())
    (folder / "source" / "tokenizer_config.json").write_text(json.dumps(LLAMA2_SETTINGS))
    return folder / "source"


def real_llama3(folder: Path) -> Path:
    """A random checkpoint with Llama 3's vocabulary."""
    return write_llama3_checkpoint(
        folder / "source", real_tokenizer(real_vocabulary("llama3_tokenizer.model.gz"))
    )


REAL = {"llama-2": (real_llama2, "llama-spm"), "llama-3": (real_llama3, "llama-bpe")}


@pytest.fixture(scope="module", params=["demo", "llama3", *REAL])
def vocabulary(request, bundles, tmp_path_factory) -> Vocabulary:
    name, texts = request.param, []
    bundle = bundles.get(name)
    if bundle is None:
        make, vectors = REAL[name]
        folder = tmp_path_factory.mktemp(name)
        bundle = llama_export.export(make(folder), folder / name, recipe=Recipe(verify=False)).output
        texts = vector_texts(vectors)
    manifest = llama_runtime.read_manifest(bundle)
    ours = llama_runtime.open_tokenizer(bundle, manifest.tokenizer, manifest.tokens)
    texts += fuzz_texts(ours, manifest.limits.vocab_size)
    ids = [ours.encode(text, add_special=False) for text in texts]
    return Vocabulary(
        bundle, texts, ids, [ours.encode(text) for text in texts], [ours.decode(row) for row in ids]
    )


def differing(vocabulary: Vocabulary, found: list[Any], expected: list[Any]) -> list[tuple[Any, ...]]:
    return [row for row in zip(vocabulary.texts, found, expected, strict=True) if row[1] != row[2]]


@pytest.mark.parametrize("name", REAL)
def test_ours_are_the_published_ids(name, tmp_path):
    make, vectors = REAL[name]
    bundle = llama_export.export(make(tmp_path), tmp_path / name, recipe=Recipe(verify=False)).output
    manifest = llama_runtime.read_manifest(bundle)
    ours = llama_runtime.open_tokenizer(bundle, manifest.tokenizer, manifest.tokens)
    assert [ours.encode(text, add_special=False) for text in vector_texts(vectors)] == vector_ids(vectors)


@pytest.mark.parametrize("version", ["transformers 5", "transformers 4.57"])
def test_transformers_and_tokenizers(vocabulary, version, request):
    python = request.getfixturevalue({"5": "oracle", "4.57": "optimum"}[version.split()[1]])
    answer = asked([python, WORKERS / "tokenize_transformers.py"], vocabulary.question)
    assert answer["version"].startswith(version.split()[1] + ".")
    assert differing(vocabulary, answer["tokenizers"], vocabulary.ids) == []
    assert differing(vocabulary, answer["transformers"], vocabulary.ids) == []
    assert differing(vocabulary, answer["file alone"], vocabulary.ids) == []
    assert differing(vocabulary, answer["with special"], vocabulary.with_special) == []


def test_transformers_js(vocabulary, node):
    answer = asked([node, WORKERS / "transformers.mjs"], vocabulary.question)
    assert differing(vocabulary, answer["transformers.js"], vocabulary.ids) == []
    assert differing(vocabulary, answer["with special"], vocabulary.with_special) == []


def test_web_page(vocabulary, node, web_page):
    answer = asked([node, WORKERS / "tokenize_page.mjs"], vocabulary.question)
    assert differing(vocabulary, answer["encoded"], vocabulary.with_special) == []
    assert differing(vocabulary, answer["decoded"], vocabulary.decoded) == []


def test_genai_is_as_inexact_as_we_say(vocabulary, genai):
    """Its tokenizer is its own. A smaller number is good news, and a reason to correct the table."""
    answer = asked([genai, WORKERS / "tokenize_genai.py"], vocabulary.question)["genai"]
    wrong = differing(vocabulary, answer, vocabulary.ids)
    text = DOCUMENT.read_text(encoding="utf-8")
    row = re.search(rf"^\| `{vocabulary.bundle.name}` .*\| (\d+) of (\d+) \|$", text, re.MULTILINE)
    assert row is not None
    assert (len(wrong), len(vocabulary.texts)) == (int(row[1]), int(row[2])), wrong[:5]
