"""transformers.js under Node opens the exports as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import HERE, Ours, asked

import llama_export
from llama_export.recipe import Recipe

pytestmark = pytest.mark.long
WORKER = HERE / "workers" / "transformers.mjs"


def test_default_export(node, ours):
    assert asked([node, WORKER], ours.question | {"dtype": "fp32"})["greedy"] == ours.greedy


def test_float16(node, sources, bundle: Path, tmp_path: Path):
    """`--precision float16` writes the file that transformers.js takes for dtype fp16."""
    half = tmp_path / bundle.name
    llama_export.export(sources[bundle.name], half, recipe=Recipe(weights="copy", precision="float16"))
    ours = Ours(half)
    assert asked([node, WORKER], ours.question | {"dtype": "fp16"})["greedy"] == ours.greedy
