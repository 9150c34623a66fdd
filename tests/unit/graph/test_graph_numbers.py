"""The graph, fed by hand in ONNX Runtime, computes what the eager model does: also at the edges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from graph_candidate import Candidate
from tiny_checkpoints import CONFIGS, NARROW_HEADS, random_weights

from llama_export.errors import OptionError
from llama_export.graph.contract import check_path
from llama_export.model import ATTENTION_PATHS, GrowingCache, LlamaForCausalLM

LIMIT = 1e-4


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def reference(config):
    model = LlamaForCausalLM(config)
    model.load_state_dict(random_weights(config))
    return model.eval()


@pytest.fixture(scope="module", params=ATTENTION_PATHS)
def candidate(request, config, graph_of):
    return Candidate(graph_of(config, request.param), config)


def tokens(config, B, T):
    return np.random.default_rng(B * 100 + T).integers(0, config.vocab_size, (B, T))


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= LIMIT * np.abs(want).max()


@torch.no_grad()
def logits_of(reference, ids, **kwargs):
    return reference(torch.from_numpy(ids), **kwargs).numpy()


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 2), (3, 1), (2, 17), (1, 160)])
def test_prefill_of_every_size(candidate, reference, config, B, T):
    ids = tokens(config, B, T)
    logits, present = candidate(ids)
    assert_close(logits, logits_of(reference, ids))
    cache = GrowingCache()
    logits_of(reference, ids, cache=cache)
    for i in range(config.num_hidden_layers):
        assert_close(present[2 * i], cache.keys[i].numpy())
        assert_close(present[2 * i + 1], cache.values[i].numpy())


@pytest.mark.parametrize(("B", "P"), [(1, 1), (2, 5), (1, 159)])
def test_decode_after_every_past(candidate, reference, config, B, P):
    ids = tokens(config, B, P + 1)
    _, past = candidate(ids[:, :P])
    logits, present = candidate(ids[:, P:], past=past)
    assert_close(logits, logits_of(reference, ids)[:, P:])
    assert present[0].shape[2] == P + 1


@pytest.mark.parametrize("sizes", [(1, 6), (5, 2), (3, 3, 1, 7)])
def test_chunks_of_one_row(candidate, reference, config, sizes):
    ids, past, parts = tokens(config, 1, sum(sizes)), None, []
    for start, end in zip(np.cumsum((0, *sizes))[:-1], np.cumsum(sizes), strict=True):
        logits, past = candidate(ids[:, start:end], past=past)
        parts.append(logits)
    assert_close(np.concatenate(parts, axis=1), logits_of(reference, ids))


@pytest.mark.parametrize("left", [True, False])
def test_padded_rows_equal_single_rows(candidate, reference, config, left):
    lengths, T, steps = (9, 4, 1), 9, 4
    ids = tokens(config, len(lengths), T + steps)
    mask = np.zeros((len(lengths), T), np.int64)
    rows = []
    for row, n in enumerate(lengths):
        real = slice(T - n, T) if left else slice(0, n)
        mask[row, real] = 1
        rows.append(np.concatenate((ids[row, :T][real], ids[row, T:])))
    prefill, past = candidate(ids[:, :T], mask)
    decoded = []
    for step in range(T, T + steps):
        mask = np.concatenate((mask, np.ones((len(lengths), 1), np.int64)), axis=1)
        logits, past = candidate(ids[:, step : step + 1], mask, past)
        decoded.append(logits)
    for row, row_ids in enumerate(rows):
        got = np.concatenate((prefill[row][mask[row, :T] == 1], *(part[row] for part in decoded)))
        assert_close(got, logits_of(reference, row_ids[None])[0])


def test_a_fully_masked_row_is_finite_and_disturbs_nobody(candidate, reference, config):
    ids = tokens(config, 3, 6)
    mask = np.ones((3, 6), np.int64)
    mask[1] = 0
    logits, present = candidate(ids, mask)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(tensor).all() for tensor in present)
    assert_close(logits[[0, 2]], logits_of(reference, ids[[0, 2]]))


@pytest.mark.parametrize("keep", [0, 1, 3, 8])
def test_num_logits_to_keep(candidate, reference, config, keep):
    ids = tokens(config, 2, 8)
    logits, _ = candidate(ids, keep=keep)
    assert_close(logits, logits_of(reference, ids)[:, -keep:])


@pytest.mark.parametrize("path", ["eager", "sdpa"])
def test_heads_that_group_query_attention_cannot_take(graph_of, path):
    """head_dim 10 (OpenLLaMA 3B has 100): the paths without GroupQueryAttention take any."""
    reference = LlamaForCausalLM(NARROW_HEADS)
    reference.load_state_dict(random_weights(NARROW_HEADS))
    ids = tokens(NARROW_HEADS, 2, 7)
    logits, _ = Candidate(graph_of(NARROW_HEADS, path), NARROW_HEADS)(ids)
    assert_close(logits, logits_of(reference, ids))


@pytest.mark.parametrize("head_dim", [8, 10, 24, 100])
def test_such_heads_are_refused_on_the_flash_path_before_any_work(head_dim):
    config = dataclasses.replace(NARROW_HEADS, head_dim=head_dim)
    for path in ("eager", "sdpa"):
        check_path(config, path)
    with pytest.raises(OptionError, match=f"multiple of 16, the checkpoint's is {head_dim}") as refused:
        check_path(config, "flash")
    assert "--attention sdpa" in refused.value.hint
