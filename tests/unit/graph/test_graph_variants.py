"""Every rotary embedding, bias and activation on every path, in ONNX Runtime, against transformers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from graph_candidate import Candidate
from tiny_checkpoints import VARIANTS, transformers_model, write_checkpoint
from variant_cases import VARIANT_CASES

from llama_export.graph import contract
from llama_export.model.rope import attention_factor

LIMIT = 1e-4
ORIGINAL = 40  # where the original context of all of them ends, but linear's, which has none


@pytest.fixture(scope="module", params=VARIANT_CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def config(case):
    return VARIANTS[case[0]]


@pytest.fixture(scope="module")
def path(case):
    return case[1]


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("variant") / "checkpoint", config)


@pytest.fixture(scope="module")
def candidate(config, path, graph_of):
    return Candidate(graph_of(config, path), config)


def one_pass(folder, ids):
    """By a model made anew: transformers' dynamic scaling remembers the longest text it has seen."""
    with torch.no_grad():
        return transformers_model(folder)(torch.from_numpy(ids)).logits.numpy()


def cached(folder, parts):
    """Logits of each part in turn, with transformers' own cache."""
    import transformers

    model, past = transformers_model(folder), transformers.DynamicCache()
    with torch.no_grad():
        return [model(torch.from_numpy(part), past_key_values=past).logits.numpy() for part in parts]


def tokens(config, B, T):
    return np.random.default_rng(B * 100 + T).integers(0, config.vocab_size, (B, T))


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= LIMIT * np.abs(want).max()


@pytest.mark.parametrize("T", [1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 160])
def test_prefill_below_and_above_the_original_context(candidate, config, folder, T):
    ids = tokens(config, 2, T)
    assert_close(candidate(ids)[0], one_pass(folder, ids))


@pytest.mark.parametrize("T", [ORIGINAL - 3, ORIGINAL + 60])
def test_decoding_across_and_beyond_it(candidate, config, folder, T):
    ids = tokens(config, 1, T + 6)
    parts, past = [ids[:, :T], *np.split(ids[:, T:], 6, axis=1)], None
    for part, want in zip(parts, cached(folder, parts), strict=True):
        logits, past = candidate(part, past=past)
        assert_close(logits, want)


def test_padded_rows_on_both_sides_of_it_equal_single_rows(candidate, config, folder):
    """Long rows beside short ones, then one more token to each."""
    lengths, T = (ORIGINAL + 20, ORIGINAL, 5), ORIGINAL + 20
    ids = tokens(config, 3, T + 1)
    for left in (True, False):
        mask = np.zeros((3, T), np.int64)
        for row, n in enumerate(lengths):
            mask[row, slice(T - n, T) if left else slice(0, n)] = 1
        prefill, past = candidate(ids[:, :T], mask)
        decode, _ = candidate(ids[:, T:], np.concatenate((mask, np.ones((3, 1), np.int64)), axis=1), past)
        for row in range(3):
            real = mask[row] == 1
            want = cached(folder, [ids[row : row + 1, :T][:, real], ids[row : row + 1, T:]])
            assert_close(np.concatenate((prefill[row][real], decode[row])), np.concatenate(want, axis=1)[0])


def test_chunks_equal_one_pass_where_the_length_is_told(candidate, config, folder):
    ids, past, parts = tokens(config, 1, 100), None, []
    told = 100 if config.rope.depends_on_length else None
    for chunk in np.split(ids, [33, 50], axis=1):
        logits, past = candidate(chunk, past=past, rope_length=told)
        parts.append(logits)
    assert_close(np.concatenate(parts, axis=1), one_pass(folder, ids))


def test_rope_length_is_an_input_only_where_it_matters(graph_of, config, path):
    model = graph_of(config, path)
    names = [value.name for value in model.graph.inputs]
    declared = [spec.name for spec in (*contract.inputs(config), *contract.optional_inputs(config))]
    assert names == declared
    assert ("rope_length" in names) == (config.rope.rope_type in ("dynamic", "longrope"))
    for spec in contract.optional_inputs(config):
        assert model.graph.initializers[spec.name].const_value.numpy().tolist() == [0]


def test_the_flash_graph_rotates_by_itself_or_in_its_attention_node(graph_of, config, path):
    if path != "flash":
        return
    model = graph_of(config, "flash")
    ops = Counter(node.op_type for node in model.graph)
    apart = config.rope.depends_on_length
    assert ops["RotaryEmbedding"] == (2 * config.num_hidden_layers if apart else 0)
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            assert node.attributes["do_rotary"].as_int() == (not apart)
            assert (node.inputs[7] is None) == apart
    if not apart:
        cos, sin = (model.graph.initializers[f"rope.{name}"].const_value.numpy() for name in ("cos", "sin"))
        assert cos.shape == (config.context_length, config.head_dim // 2)
        np.testing.assert_allclose(np.hypot(cos, sin), attention_factor(config), rtol=1e-6)
