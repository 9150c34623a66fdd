"""The committed demo checkpoint: exact in every path, and the same 64 tokens as transformers' generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity_cases import PATHS, difference, logits_of, snapshot
from tiny_checkpoints import transformers_model

from llama_export import pipeline
from llama_export.parity import verify
from llama_export.recipe import Recipe
from llama_runtime import SamplingOptions, load

CHECKPOINT = Path(__file__).parents[2] / "recipes" / "tiny" / "checkpoint"
HELD_OUT = CHECKPOINT.parent / "heldout.txt"
PROMPTS = ("Once upon a time", "One day, a small cat", "The", "In a green garden there lived an old frog. He")
RECIPES = [*(Recipe(path) for path in PATHS), Recipe("flash", "copy", "float32")]


@pytest.fixture(scope="module")
def oracle():
    return transformers_model(CHECKPOINT)


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: f"{recipe.attention}-{recipe.weights}")
def bundle(request, tmp_path_factory):
    before = snapshot(CHECKPOINT)
    output = tmp_path_factory.mktemp("demo") / "bundle"
    pipeline.export(CHECKPOINT, output, recipe=request.param)
    assert snapshot(CHECKPOINT) == before
    return load(output)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_generate(bundle, oracle, prompt):
    ours = bundle.generate(prompt, SamplingOptions(max_new_tokens=64, ignore_eos=True))
    ids = torch.tensor([ours.prompt_tokens])
    theirs = oracle.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=-1,
    )
    assert list(ours.tokens) == theirs[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_transformers(bundle, oracle, prompt):
    ids = np.array([bundle.tokenizer.encode(prompt)])
    cache = bundle.session.new_cache(capacity=ids.shape[1])
    got = bundle.session.prefill(ids, cache, all_logits=True)
    assert difference(got, logits_of(oracle, ids)) <= 1e-4


def test_what_rounding_costs_on_the_held_out_texts(tmp_path, oracle):
    """A long file is read in part, and says so; the perplexity is transformers'."""
    texts = [line for line in HELD_OUT.read_text().splitlines() if line]
    bundle = pipeline.export(CHECKPOINT, tmp_path / "half", recipe=Recipe("flash", "copy", "float16")).output
    report = verify(bundle, CHECKPOINT, texts=texts)
    assert report.passed
    assert report.notes == (f"of {len(texts)} prompts the first 16 were read",)
    (rung,) = (rung for rung in report.rungs if rung.name == "perplexity")
    unrounded, _, rest = rung.detail.partition(" unrounded, ")
    assert rest.endswith("256 tokens of text")
    ids = torch.tensor([load(bundle).tokenizer.encode("\n".join(texts))[:256]])
    with torch.no_grad():
        perplexity = float(oracle(ids, labels=ids).loss.exp())
    assert float(unrounded) == pytest.approx(perplexity, rel=1e-3)
    assert rung.measured <= 1e-4
    assert report.tokens_compared == 16 * 64


def test_the_ladder_was_green_and_hardly_a_tie_was_near(bundle):
    parity = bundle.manifest.parity
    assert parity["passed"]
    assert parity["near_ties"] <= 0.01 * parity["tokens_compared"]
