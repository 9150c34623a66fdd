"""optimum-onnx opens the default export as it is: greedy, beams, and batches padded on the left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from asking import HERE, MAX_NEW_TOKENS, asked
from tiny_checkpoints import transformers_model

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


def test_beams(answer, ours, sources, bundle: Path):
    """The reference is transformers' own search in PyTorch, on the checkpoint."""
    model = transformers_model(sources[bundle.name], "bfloat16")
    model.generation_config.do_sample, eos = False, ours.question["eos"]
    for prompt, found in zip(ours.question["prompts"], answer["beams"], strict=True):
        made = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=4,
            num_return_sequences=2,
            pad_token_id=eos[0],
        )
        rows = [row[len(prompt) :].tolist() for row in made]
        ends = [next((i + 1 for i, token in enumerate(row) if token in eos), len(row)) for row in rows]
        assert found == [row[:end] for row, end in zip(rows, ends, strict=True)]
