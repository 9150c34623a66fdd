"""Bundles of other kinds: weights beside, angles that depend on the length, special tokens put behind."""

from __future__ import annotations

import json

import pytest
from talking_checkpoint import write_talking_checkpoint
from tiny_checkpoints import VARIANTS

import llama_export
import llama_runtime
from llama_export.recipe import Recipe
from llama_runtime import SamplingOptions

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.mark.parametrize("attention", ["flash", "eager"])
def test_weights_beside(open_model, tmp_path, attention):
    folder = write_talking_checkpoint(tmp_path / "fox")
    recipe = Recipe(weights="beside", attention=attention, verify=False)
    bundle = llama_export.export(folder, recipe=recipe).output
    wanted = llama_runtime.load(bundle, threads=1).generate("the sea", SamplingOptions(max_new_tokens=16))
    assert open_model(bundle).generate("the sea", max_new_tokens=16).tokens == wanted.tokens


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
@pytest.mark.parametrize("attention", ["flash", "sdpa"])
def test_angles_that_depend_on_the_length(open_model, tmp_path, rope, attention):
    """A prompt that ends beyond the original context, in one run and in chunks; decoding across its end."""
    config = VARIANTS[rope]
    original = config.rope.original_max_position_embeddings
    folder = write_talking_checkpoint(tmp_path / "fox", config=config)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1}))
    (folder / "tokenizer.model").unlink()
    bundle = llama_export.export(
        folder, tmp_path / "bundle", recipe=Recipe(attention=attention, verify=False)
    ).output
    python = llama_runtime.load(bundle, threads=1)
    assert python.manifest.rope is not None
    V = python.manifest.limits.vocab_size
    for length in (original - 4, original + 5):
        prompt = [1, *(3 + i * 7 % (V - 3) for i in range(length - 1))]
        wanted = python.generate(prompt, SamplingOptions(max_new_tokens=10)).tokens
        for chunk_tokens in (0, 7):
            got = open_model(bundle, chunk_tokens=chunk_tokens).generate(prompt, max_new_tokens=10)
            assert got.tokens == wanted, (length, chunk_tokens)


def test_eos_behind_a_text(open_model, tmp_path):
    folder = write_talking_checkpoint(tmp_path / "fox")
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "add_eos_token": True}))
    bundle = llama_export.export(folder, tmp_path / "bundle", recipe=Recipe(verify=False)).output
    tokenizer, cpp = llama_runtime.load(bundle, threads=1).tokenizer, open_model(bundle)
    assert cpp.encode("the sea") == tokenizer.encode("the sea")
    assert cpp.encode("the sea")[-1] == 2
