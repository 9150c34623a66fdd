"""onnxruntime-genai opens the default export as it is, with one buffer for past and present."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asking import HERE, asked

pytestmark = pytest.mark.long
WORKER = HERE / "workers" / "generate_genai.py"


@pytest.fixture(scope="module")
def answer(genai, ours):
    return asked([genai, WORKER], ours.question)


def test_greedy(answer, ours):
    assert answer["greedy"] == ours.greedy


def test_batch(answer, ours):
    prompts = ours.question["prompts"]
    shortest = min(map(len, prompts))
    assert answer["batch"] == [ours.tokens(prompt[:shortest]) for prompt in prompts]


def test_the_buffer_is_shared(bundle: Path):
    assert json.loads((bundle / "genai_config.json").read_text())["search"]["past_present_share_buffer"]
