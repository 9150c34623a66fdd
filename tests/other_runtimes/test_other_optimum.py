"""optimum-onnx opens the default export as it is: greedy, beams, and batches padded on the left."""

from __future__ import annotations

import pytest
from asking import HERE, MAX_NEW_TOKENS, asked

import llama_runtime

pytestmark = pytest.mark.long
WORKER = HERE / "workers" / "generate_optimum.py"


@pytest.fixture(scope="module")
def answer(optimum, ours):
    return asked([optimum, WORKER], ours.question)


def test_greedy(answer, ours):
    assert answer["greedy"] == ours.greedy


def test_left_padded_batch(answer, ours):
    lengths = {len(prompt) for prompt in ours.question["prompts"]}
    assert len(lengths) > 1
    assert answer["batch"] == ours.greedy


def test_beams(answer, ours):
    """Ours are transformers' own, which tests/parity compares."""
    options = llama_runtime.SamplingOptions(
        max_new_tokens=MAX_NEW_TOKENS, num_beams=4, num_return_sequences=2
    )
    for prompt, found in zip(ours.question["prompts"], answer["beams"], strict=True):
        beams = ours.generator.generate_sequences(prompt, options)
        assert found == [list(beam.tokens) for beam in beams]
