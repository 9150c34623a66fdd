"""Whole exports against transformers: logits, padded batches, greedy tokens, and what was left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity_cases import CASES, difference, logits_of
from tiny_checkpoints import DTYPES

from llama_export.parity.tolerances import rounding_of

LIMIT = 1e-4
NEW_TOKENS = 64


@pytest.fixture(params=CASES, ids=str)
def made(request, export_of):
    return export_of(request.param)


def tokens(made, B, T):
    return np.random.default_rng(B * 1000 + T).integers(0, made.oracle.config.vocab_size, (B, T))


def rounded(made, ids):
    return logits_of(made.rounded_oracle, ids)


def test_the_ladder_is_green_to_the_top(made):
    report = made.result.report
    assert report.passed
    assert report.rungs[0].name == "weights"
    assert all(rung.passed for rung in report.rungs if rung.needed)
    rounded = rounding_of(DTYPES[made.case.stored], made.case.rounded_to) != "exact"
    rounding = [] if rounded else ["rounded logits", "KL divergence", "top-1 agreement", "perplexity"]
    # Random checkpoints have no tokenizer.
    assert [rung.name for rung in report.rungs if not rung.needed] == ["tokenizer", *rounding]
    assert report.rungs[0].measured == 0
    assert report.tokens_compared == 2 * NEW_TOKENS
    assert report.near_ties <= 0.01 * report.tokens_compared


def test_prefill(made):
    ids = tokens(made, 1, 40)
    cache = made.session.new_cache(capacity=40)
    assert difference(made.session.prefill(ids, cache, all_logits=True), rounded(made, ids)) <= LIMIT


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunked_prefill(made, chunk):
    ids = tokens(made, 1, 20)
    cache = made.session.new_cache(capacity=20)
    got = made.session.prefill(ids, cache, all_logits=True, chunk_tokens=chunk)
    assert difference(got, rounded(made, ids)) <= LIMIT


def test_a_batch_of_equal_rows(made):
    ids = tokens(made, 3, 24)
    cache = made.session.new_cache(capacity=24, rows=3)
    got = [made.session.prefill(ids[:, :16], cache, all_logits=True)]
    got += [made.session.decode(ids[:, t], cache)[:, None] for t in range(16, 24)]
    assert difference(np.concatenate(got, axis=1), rounded(made, ids)) <= LIMIT


def test_decode_to_the_last_position(made):
    T = made.result.manifest.limits.max_position_embeddings
    ids = tokens(made, 1, T)
    cache = made.session.new_cache(capacity=T)
    got = [made.session.prefill(ids[:, :-8], cache, all_logits=True)]
    got += [made.session.decode(ids[:, t], cache)[:, None] for t in range(T - 8, T)]
    assert difference(np.concatenate(got, axis=1), rounded(made, ids)) <= LIMIT


@pytest.mark.parametrize("left", [True, False])
def test_padded_batches_fed_to_the_graph_equal_single_rows(made, left):
    """As optimum does: one batch, a mask, the present handed back as past, several steps."""
    lengths, T, steps = (11, 6, 1), 11, 3
    c, names = made.oracle.config, [spec.name for spec in made.result.manifest.outputs]
    ids = tokens(made, 3, T + steps)
    mask = np.zeros((3, T), np.int64)
    for row, n in enumerate(lengths):
        mask[row, T - n :] = left
        mask[row, :n] |= not left
    empty = np.zeros((3, c.num_key_value_heads, 0, c.head_dim), np.float32)
    past = {name.replace("present", "past_key_values"): empty for name in names[1:]}
    logits, fed = [], ids[:, :T]
    for step in range(steps + 1):
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -fed.shape[1] :]
        feeds = {"input_ids": fed, "attention_mask": mask, "position_ids": positions}
        outputs = made.session.run(feeds | past)
        logits.append(outputs["logits"])
        past = {name.replace("present", "past_key_values"): outputs[name] for name in names[1:]}
        mask = np.concatenate((mask, np.ones((3, 1), np.int64)), axis=1)
        fed = ids[:, T + step : T + step + 1]
    for row in range(3):
        real = mask[row, :T] == 1
        alone = np.concatenate((ids[row, :T][real], ids[row, T:]))[None]
        got = np.concatenate((logits[0][row][real], *(part[row] for part in logits[1:])))
        assert difference(got, rounded(made, alone)[0]) <= LIMIT


@pytest.mark.parametrize("T", [1, 9, 96])
def test_greedy_tokens_are_those_of_generate(made, T):
    """A token may differ only where the reference's top two are nearer than twice the measured error."""
    prompt = tokens(made, 1, T)
    cache = made.session.new_cache(capacity=T + NEW_TOKENS)
    logits = made.session.prefill(prompt, cache)
    chosen = [int(logits[0].argmax())]
    seen = [logits]
    while len(chosen) < NEW_TOKENS:
        seen.append(made.session.decode(np.array(chosen[-1:]), cache))
        chosen.append(int(seen[-1][0].argmax()))
    whole = np.concatenate((prompt, np.array([chosen])), axis=1)
    want = rounded(made, whole[:, :-1])[0, T - 1 :]
    error = float(np.abs(np.concatenate(seen) - want).max())
    second, first = np.sort(want, axis=1)[:, -2:].T
    near = first - second < 2 * error
    differs = want.argmax(axis=1) != chosen
    assert not (differs & ~near).any()
    assert near.sum() <= 0.01 * NEW_TOKENS
    if not near.any():
        theirs = made.rounded_oracle.generate(
            torch.from_numpy(prompt),
            attention_mask=torch.ones(1, T, dtype=torch.int64),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        assert chosen == theirs[0, T:].tolist()


def test_known_answers_are_transformers_too(made):
    for answer in made.result.manifest.known_answers:
        ids = np.array([[*answer.prompt_tokens, *answer.tokens[:-1]]])
        want = rounded(made, ids)[0, len(answer.prompt_tokens) - 1 :]
        for probe in answer.probes:
            top = want[probe.position]
            assert np.abs(top[list(probe.token_ids)] - probe.logits).max() <= LIMIT * np.abs(want).max()


def test_the_checkpoint_is_untouched(made):
    assert made.before == made.after


def test_linked_weights_add_no_bytes(made):
    data = sorted((made.result.output / "onnx").glob("*.onnx_data*"))
    if made.case.weights == "copy":
        assert made.result.placed_as == "written"
        assert len(data) == 1
        return
    assert made.result.placed_as in ("reflink", "hard link")
    for placed, file in zip(data, sorted(made.checkpoint.glob("*.safetensors")), strict=True):
        assert placed.read_bytes() == file.read_bytes()
        assert not placed.is_symlink()
        if made.result.placed_as == "hard link":
            assert placed.samefile(file)
