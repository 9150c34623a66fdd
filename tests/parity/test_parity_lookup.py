"""Prompt lookup on the demo model: the tokens of plain decoding, at every precision and on every path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import llama_runtime
from llama_export import pipeline
from llama_export.recipe import Recipe
from llama_runtime import SamplingOptions

DEMO = Path(__file__).parents[2] / "recipes/tiny/checkpoint"
TEXTS = (
    "Once upon a time there was a little girl.",
    "Once there was a dog. The dog had a ball. Once there was a dog. The dog had",
    'The cat said: "Hello". The cat said:',
)
CASES = [("bfloat16", "flash"), ("float32", "sdpa"), ("int8", "flash"), ("int4", "flash"), ("int4", "eager")]


@pytest.mark.parametrize("kernels", ["", "off"], ids=["own kernels", "ONNX Runtime's kernels"])
@pytest.mark.parametrize(("precision", "attention"), CASES)
def test_reading_ahead_changes_no_token(tmp_path, monkeypatch, precision, attention, kernels):
    if kernels:
        monkeypatch.setenv("LLAMA_EXPORT_KERNELS", kernels)
    recipe = Recipe(attention=attention, precision=precision, weights="copy")
    pipeline.export(DEMO, tmp_path / "bundle", recipe=recipe)
    generator = llama_runtime.load(tmp_path / "bundle")
    for text in TEXTS:
        for seed in range(4):
            options = SamplingOptions(
                temperature=0.7 if seed else 0, seed=seed, top_p=0.9 if seed % 3 else 1.0,
                repetition_penalty=1.1 if seed % 4 == 3 else 1.0, max_new_tokens=70, ignore_eos=True,
            )  # fmt: skip
            plain = generator.generate(text, options).tokens
            ahead = replace(options, prompt_lookup_num_tokens=2 + 6 * (seed % 2))
            assert generator.generate(text, ahead).tokens == plain, (text, seed)
