"""A batch's rows against their single-prompt runs on the demo checkpoint, on every path.

Where the kernels sum in the same order for one row and for many, rows are equal bit for bit: on x86-64 those
are the flash path's with weights that ONNX Runtime has packed (16-bit ones, widened at load). Elsewhere the
tokens may part where the two best logits are too close to tell: a near tie.
"""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from llama_export import pipeline
from llama_export.recipe import Recipe
from llama_runtime import SamplingOptions, load
from llama_runtime.ragged import ragged_rows

CHECKPOINT = Path(__file__).parents[2] / "recipes" / "tiny" / "checkpoint"
PROMPTS = [
    "Once upon a time",
    "One day, a small cat",
    "The",
    "In a green garden there lived an old frog. He",
    "Once upon a time there was a quiet girl named Lily. She had a wagon and loved to pull it. But one",
    "A",
]
NEAR_TIE = 1e-4  # Of the largest logit, which is 27; measured 7e-7.
RECIPES = [
    Recipe("flash", verify=False),
    Recipe("flash", "copy", "float32", verify=False),
    Recipe("sdpa", verify=False),
    Recipe("eager", verify=False),
]
BIT_EQUAL = RECIPES[:1] if platform.machine() == "x86_64" else []


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: f"{recipe.attention}-{recipe.weights}")
def demo(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "bundle"
    pipeline.export(CHECKPOINT, output, recipe=request.param)
    return load(output, threads=2), request.param


def test_a_rows_logits_are_those_of_the_row_alone(demo):
    generator, recipe = demo
    session, prompts = generator.session, [generator.tokenizer.encode(prompt) for prompt in PROMPTS]
    singles = []
    for prompt in prompts:
        cache = session.new_cache(capacity=80)
        logits = [session.prefill(np.array([prompt]), cache)[0]]
        for _ in range(24):
            logits.append(session.decode(np.array([logits[-1].argmax()]), cache)[0])
        singles.append(np.array(logits))  # [25, V]
    ragged = ragged_rows(session, len(prompts), 80)
    for prompt, single in zip(prompts, singles, strict=True):
        cache = ragged.new_row()
        assert (session.prefill(np.array([prompt]), cache)[0] == single[0]).all()
        ragged.join(cache)
    for step in range(24):
        got = ragged.decode([int(single[step].argmax()) for single in singles])
        want = np.array([single[step + 1] for single in singles])
        assert np.abs(got - want).max() <= NEAR_TIE * np.abs(want).max()
        if recipe in BIT_EQUAL:
            assert (got == want).all()


@pytest.mark.parametrize(
    "sampled", [{}, {"temperature": 0.8, "top_p": 0.9, "min_p": 0.02, "seed": 11}], ids=str
)
def test_texts_are_those_of_the_prompts_alone(demo, sampled):
    generator, _ = demo
    options = SamplingOptions(max_new_tokens=60, logprobs=2, repetition_penalty=1.05, **sampled)
    results = generator.generate_batch(PROMPTS, options, rows=4)
    alone = [generator.generate(prompt, options) for prompt in PROMPTS]
    for got, want in zip(results, alone, strict=True):
        if got.tokens == want.tokens:
            assert (got.text, got.finish_reason) == (want.text, want.finish_reason)
            continue
        assert not sampled, "a draw parts only where its random number falls between two sums 1e-6 apart"
        parted = next(
            i for i, pair in enumerate(zip(got.tokens, want.tokens, strict=False)) if pair[0] != pair[1]
        )
        (_, best), (_, second) = want.logprobs[parted].top
        assert best - second <= 2 * NEAR_TIE * 30
    # Near ties are rare: most rows are equal whatever the kernels do.
    assert sum(got.tokens == want.tokens for got, want in zip(results, alone, strict=True)) >= 5
