"""Greedy with every processor, and beam search, equal to transformers' ``generate`` token for token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_cases import Case
from tiny_checkpoints import transformers_model

from llama_export import pipeline
from llama_export.recipe import Recipe
from llama_runtime import Generator, SamplingOptions, Session, load

CHECKPOINT = Path(__file__).parents[2] / "recipes" / "tiny" / "checkpoint"
PROMPTS = ("Once upon a time", "One day, a small cat", "In a green garden there lived an old frog. He")
# The demo's weights are bfloat16, which the flash and the sdpa path widen alike.
RANDOM = [Case("gqa"), Case("gqa", attention="sdpa"), Case("mha_tied"), Case("mqa_llama3", attention="eager")]
RANDOM_PROMPTS = [[1, 5, 9], [1, *range(20, 60)]]
LOGPROB_TOLERANCE = 1.5e-4  # Absolute, on log-probabilities down to -15; measured 4e-5.

GREEDY = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"logit_bias": {13: 2.0, 40: -3.0}},
    {"min_new_tokens": 30},
    {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "logit_bias": {33: 1.5}, "min_new_tokens": 25},
]
BEAMS = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True, "num_return_sequences": 4},
    {"num_beams": 5, "early_stopping": True, "no_repeat_ngram_size": 2, "num_return_sequences": 2},
    {"num_beams": 3, "repetition_penalty": 1.2, "min_new_tokens": 10},
]


@pytest.fixture(scope="module")
def demo_oracle():
    return transformers_model(CHECKPOINT)


@pytest.fixture(scope="module", params=["flash", "sdpa"])
def demo(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "bundle"
    pipeline.export(CHECKPOINT, output, recipe=Recipe(request.param, verify=False))
    return load(output)


def theirs(oracle, prompt, options, eos):
    """Transformers' sequences without prompt and padding, their scores, and greedy's raw logits."""
    asked = {key: value for key, value in options.items() if key != "logit_bias"}
    if "logit_bias" in options:
        asked["sequence_bias"] = {(token,): bias for token, bias in options["logit_bias"].items()}
    done = oracle.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        pad_token_id=0,
        eos_token_id=list(eos),
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **{"max_new_tokens": 40, **asked},
    )
    rows = [_until_eos(row[len(prompt) :].tolist(), eos) for row in done.sequences]
    scores = done.sequences_scores.tolist() if "num_beams" in options else None
    return rows, scores, done.logits


def _until_eos(tokens, eos):
    ends = [i + 1 for i, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0]] if ends else tokens


@pytest.mark.parametrize("options", GREEDY, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_of_the_demo(demo, demo_oracle, prompt, options):
    ours = demo.generate(prompt, SamplingOptions(max_new_tokens=40, logprobs=3, **options))
    eos = demo.manifest.tokens.eos_token_ids
    rows, _, logits = theirs(demo_oracle, ours.prompt_tokens, options, eos)
    assert list(ours.tokens) == rows[0]
    want = torch.log_softmax(torch.cat(logits).double(), -1).numpy()
    for step, told in enumerate(ours.logprobs):
        assert told.logprob == pytest.approx(want[step, told.token], abs=LOGPROB_TOLERANCE)
        top = np.sort(want[step])[::-1][:3]
        np.testing.assert_allclose([logprob for _, logprob in told.top], top, rtol=0, atol=LOGPROB_TOLERANCE)


@pytest.mark.parametrize("options", BEAMS, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_beams_of_the_demo(demo, demo_oracle, prompt, options):
    ours = demo.generate_sequences(prompt, SamplingOptions(max_new_tokens=40, **options))
    eos = demo.manifest.tokens.eos_token_ids
    rows, scores, _ = theirs(demo_oracle, ours[0].prompt_tokens, options, eos)
    assert [list(generation.tokens) for generation in ours] == rows
    assert [generation.score for generation in ours] == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize("case", RANDOM, ids=str)
@pytest.mark.parametrize("options", [*GREEDY[::2], *BEAMS], ids=str)
def test_random_checkpoints(export_of, case, options):
    """Flat distributions, where beams change places all the time; every third token ends a text."""
    export = export_of(case)
    manifest, beams = export.result.manifest, "num_beams" in options
    eos = tuple(range(2, manifest.limits.vocab_size, 3)) if beams else (2,)
    manifest = replace(manifest, tokens=replace(manifest.tokens, eos_token_ids=eos))
    generator = Generator(Session(export.session._inference, manifest), None)
    asked = {"max_new_tokens": 30, "min_new_tokens": 3, **options}
    for prompt in RANDOM_PROMPTS:
        ours = generator.generate_sequences(prompt, SamplingOptions(**asked))
        rows, scores, _ = theirs(export.oracle, prompt, asked, eos)
        assert [list(generation.tokens) for generation in ours] == rows
        if beams:
            assert [generation.score for generation in ours] == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize("prompt", ["Once upon a time", [1, 300, 301, 302]])
def test_the_full_text_is_prompt_and_continuation(demo, prompt):
    options = SamplingOptions(max_new_tokens=12)
    alone = demo.generate(prompt, options)
    whole = demo.generate(prompt, SamplingOptions(max_new_tokens=12, return_full_text=True))
    opening = prompt if isinstance(prompt, str) else demo.tokenizer.decode(prompt)
    assert opening and whole.text == opening + alone.text
    assert whole.tokens == alone.tokens
