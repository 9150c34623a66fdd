"""Rotary embeddings, activations and biases against transformers, below and beyond the original context."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny_checkpoints import (
    CONFIGS,
    VARIANTS,
    random_weights,
    raw_config,
    transformers_model,
    write_checkpoint,
)

from llama_export.model import ATTENTION_PATHS, GrowingCache, LlamaForCausalLM, RopeConfig, StaticCache
from llama_export.model.config import ACTIVATIONS
from llama_export.model.rope import attention_factor, frequencies_for, inverse_frequencies

LIMIT = 1e-4
ORIGINAL = 40
LONGROPE = RopeConfig(
    "longrope",
    original_max_position_embeddings=ORIGINAL,
    factor=4.0,
    short_factor=tuple(1 + 0.01 * i for i in range(32)),
    long_factor=tuple(1 + 0.7 * i for i in range(32)),
)
YARN = RopeConfig("yarn", 10000.0, 8.0, original_max_position_embeddings=4096)
ROPES = {
    "linear": RopeConfig("linear", 10000.0, 2.5),
    "yarn": YARN,
    "yarn_llama2_64k": RopeConfig("yarn", 10000.0, 16.0, original_max_position_embeddings=4096),
    "yarn_given_factor": dataclasses.replace(YARN, attention_factor=1.3),
    "yarn_mscale": dataclasses.replace(YARN, mscale=1.0, mscale_all_dim=0.707),
    "yarn_mscale_alone": dataclasses.replace(YARN, mscale=0.5),
    "yarn_betas": dataclasses.replace(YARN, beta_fast=20.0, beta_slow=3.0),
    "yarn_not_truncated": dataclasses.replace(YARN, truncate=False, rope_theta=500000.0),
    "yarn_unstretched": dataclasses.replace(YARN, factor=1.0),
    "yarn_short_context": dataclasses.replace(YARN, original_max_position_embeddings=20),
    "yarn_one_ramp": dataclasses.replace(YARN, beta_fast=2.0, beta_slow=2.0, truncate=False),
    "longrope": LONGROPE,
    "longrope_given_factor": dataclasses.replace(LONGROPE, attention_factor=1.19),
    "longrope_unstretched": dataclasses.replace(LONGROPE, factor=1.0),
}


def theirs(rope, seq_len=None, **changes):
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = dataclasses.replace(CONFIGS["gqa"], rope=rope, head_dim=64, **changes)
    raw = transformers.LlamaConfig(**raw_config(config))
    return config, *ROPE_INIT_FUNCTIONS[rope.rope_type](raw, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("length", [ORIGINAL, ORIGINAL + 1])
def test_frequencies_and_attention_factor_equal_transformers(rope, length):
    config, want, factor = theirs(rope, length)
    got = frequencies_for(torch.tensor([[length]]), inverse_frequencies(config), config)
    torch.testing.assert_close(got.flatten(), want, rtol=2e-6, atol=0)
    assert attention_factor(config) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("length", [1, 39, 40, 41, 64, 159, 400, 100_000])
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_dynamic_frequencies_equal_transformers_at_every_length(length, factor):
    rope = RopeConfig("dynamic", factor=factor, original_max_position_embeddings=40)
    config, want, _ = theirs(rope, length, max_position_embeddings=40)
    unscaled = inverse_frequencies(config)
    got = frequencies_for(torch.tensor([[length]]), unscaled, config)[0, 0]
    torch.testing.assert_close(got, want, rtol=2e-6, atol=0)
    assert torch.equal(got, unscaled) == (length <= 40)


def test_each_row_has_the_frequencies_of_its_own_length():
    config = dataclasses.replace(CONFIGS["gqa"], rope=LONGROPE, head_dim=64)
    short, long = inverse_frequencies(config)
    got = frequencies_for(torch.tensor([[40], [41]]), torch.stack((short, long)), config)
    assert torch.equal(got, torch.stack((short, long)).unsqueeze(1))


def test_dynamic_alone_uses_positions_beyond_the_config():
    assert VARIANTS["dynamic"].context_length == 160
    assert VARIANTS["dynamic"].max_position_embeddings == 40
    for name in ("linear", "yarn", "longrope"):
        assert VARIANTS[name].context_length == VARIANTS[name].max_position_embeddings


# Whole models


@pytest.fixture(scope="module", params=VARIANTS)
def config(request):
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("variant") / "checkpoint", config)


@pytest.fixture(scope="module")
def reference(folder):
    """Transformers' model, made anew for every call: it remembers the longest text it has seen."""

    @torch.no_grad()
    def logits(ids, **kwargs):
        return transformers_model(folder)(ids, **kwargs).logits

    return logits


@pytest.fixture(scope="module", params=ATTENTION_PATHS)
def model(request, config):
    model = LlamaForCausalLM(config, request.param)
    model.load_state_dict(random_weights(config))
    return model.eval()


def tokens(config, B, T):
    return torch.randint(0, config.vocab_size, (B, T), generator=torch.Generator().manual_seed(T))


def assert_close(got, want):
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert float((got - want).abs().max()) <= LIMIT * float(want.abs().max())


def test_transformers_has_the_same_weights(config, folder):
    """Nothing was left at its random start, biases included."""
    theirs, ours = transformers_model(folder).state_dict(), random_weights(config)
    assert set(ours) == set(theirs) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())
    assert json.loads((folder / "config.json").read_text())["hidden_act"] == config.hidden_act


@pytest.mark.parametrize("T", [1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 100, 160])
@torch.no_grad()
def test_prefill_below_and_above_the_original_context(model, config, reference, T):
    ids = tokens(config, 2, T)
    assert_close(model(ids), reference(ids))


@torch.no_grad()
def test_decoding_across_the_original_context_is_what_generate_computes(model, config, folder):
    """Both rotate each token for the text as it was when the token was read, and keep the cache."""
    import transformers

    ids = tokens(config, 1, ORIGINAL + 8)
    oracle, past = transformers_model(folder), transformers.DynamicCache()
    cache = GrowingCache()
    for part in (ids[:, : ORIGINAL - 4], *ids[:, ORIGINAL - 4 :].split(1, dim=1)):
        assert_close(model(part, cache=cache), oracle(part, past_key_values=past).logits)


@pytest.mark.parametrize("chunk", [7, 64])
@torch.no_grad()
def test_chunks_of_a_long_text_equal_one_pass(model, config, reference, chunk):
    ids = tokens(config, 1, 100)
    cache = StaticCache(config, 1, 100)
    parts = [model(part, cache=cache, rope_length=100) for part in ids.split(chunk, dim=1)]
    assert_close(torch.cat(parts, dim=1), reference(ids))


@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_a_short_row_beside_a_long_one_is_as_alone(model, config, reference, left):
    lengths, T = (ORIGINAL + 30, ORIGINAL - 10, 5), ORIGINAL + 30
    ids = tokens(config, 3, T)
    mask = torch.zeros(3, T, dtype=torch.int64)
    for row, n in enumerate(lengths):
        mask[row, T - n :] = mask[row, T - n :] | int(left)
        mask[row, :n] = mask[row, :n] | int(not left)
    logits = model(ids, attention_mask=mask)
    for row in range(3):
        real = mask[row] == 1
        assert_close(logits[row][real], reference(ids[row][real][None])[0])


@pytest.mark.parametrize("name", ACTIVATIONS)
@torch.no_grad()
def test_activations_are_transformers(name):
    from transformers.activations import ACT2FN

    config = dataclasses.replace(CONFIGS["gqa"], hidden_act=name)
    act_fn = LlamaForCausalLM(config).model.layers[0].mlp.act_fn
    values = torch.linspace(-12, 12, 4001)
    torch.testing.assert_close(act_fn(values), ACT2FN[name](values), rtol=1e-6, atol=2e-6)
