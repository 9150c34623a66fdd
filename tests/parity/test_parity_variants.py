"""Variants exported and verified as a person would, and compared with transformers across their contexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity_cases import difference
from tiny_checkpoints import VARIANTS, transformers_model, write_checkpoint
from variant_cases import VARIANT_CASES

from llama_export import pipeline
from llama_export.recipe import Recipe
from llama_runtime.errors import PromptError
from llama_runtime.opening import open_session

LIMIT = 1e-4
ORIGINAL, CONTEXT = 40, 160


@pytest.fixture(scope="module", params=VARIANT_CASES)
def made(request, tmp_path_factory):
    """The variant's name, its checkpoint, and the session of its verified bundle."""
    name, path = request.param
    root = tmp_path_factory.mktemp("variant")
    checkpoint = write_checkpoint(root / "checkpoint", VARIANTS[name])
    result = pipeline.export(checkpoint, root / "bundle", recipe=Recipe(path))
    assert result.report.passed
    return name, checkpoint, open_session(root / "bundle", result.manifest, threads=1)


def tokens(made, T):
    return np.random.default_rng(T).integers(0, VARIANTS[made[0]].vocab_size, (1, T))


@pytest.mark.parametrize("chunk", [9, 512])
@pytest.mark.parametrize("T", [ORIGINAL, ORIGINAL + 1, CONTEXT])
def test_prefill_equals_transformers_whatever_the_chunks(made, T, chunk):
    _, checkpoint, session = made
    ids = tokens(made, T)
    got = session.prefill(ids, session.new_cache(capacity=T), all_logits=True, chunk_tokens=chunk)
    with torch.no_grad():
        want = transformers_model(checkpoint)(torch.from_numpy(ids)).logits.numpy()
    assert difference(got, want) <= LIMIT


@pytest.mark.parametrize("T", [ORIGINAL - 10, ORIGINAL + 10])
def test_greedy_tokens_across_the_original_context_are_those_of_generate(made, T):
    _, checkpoint, session = made
    ids, n = tokens(made, T), 30
    cache = session.new_cache(capacity=T + n)
    logits = [session.prefill(ids, cache)]
    while len(logits) < n:
        logits.append(session.decode(logits[-1].argmax(axis=1), cache))
    theirs = transformers_model(checkpoint).generate(
        torch.from_numpy(ids),
        attention_mask=torch.ones(1, T, dtype=torch.int64),
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert [int(step.argmax()) for step in logits] == theirs.sequences[0, T:].tolist()
    assert difference(np.concatenate(logits), torch.cat(theirs.logits).numpy()) <= LIMIT


def test_rows_of_a_batch_are_prefilled_in_chunks_too(made):
    _, checkpoint, session = made
    T = ORIGINAL + 20
    ids = np.concatenate((tokens(made, T), tokens(made, T)[:, ::-1]))
    cache = session.new_cache(capacity=T + 1, rows=2)
    prefill = session.prefill(ids, cache, all_logits=True, chunk_tokens=16)
    with torch.no_grad():
        want = transformers_model(checkpoint)(torch.from_numpy(ids)).logits.numpy()
    assert difference(prefill, want) <= LIMIT


def test_a_text_read_in_several_calls_is_as_long_as_it_is_said_to_be(made):
    _, checkpoint, session = made
    ids = tokens(made, ORIGINAL + 20)
    cache = session.new_cache(capacity=ids.shape[1])
    parts = [
        session.prefill(part, cache, all_logits=True, text_tokens=ids.shape[1])
        for part in np.split(ids, [25, 50], axis=1)
    ]
    with torch.no_grad():
        want = transformers_model(checkpoint)(torch.from_numpy(ids)).logits.numpy()
    assert difference(np.concatenate(parts, axis=1), want) <= LIMIT


def test_the_limit_is_the_context_that_the_rope_reaches(made):
    _, _, session = made
    assert session.manifest.limits.max_position_embeddings == CONTEXT
    with pytest.raises(PromptError, match="161 positions, the model has 160"):
        session.new_cache(capacity=CONTEXT + 1)


def test_the_manifest_says_where_the_length_of_a_text_matters(made):
    name, _, session = made
    names = [spec.name for spec in session.manifest.optional_inputs]
    assert ("rope_length" in names) == (name in ("dynamic", "longrope"))
