"""The module as others see it: its names, its gradients, its rotary numbers."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tiny_checkpoints import CONFIGS, random_weights, raw_config

from llama_export.model import LlamaForCausalLM, RopeConfig
from llama_export.model.rope import cos_sin, inverse_frequencies, rotate


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def theirs(config):
    import transformers

    raw = raw_config(config)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**raw))


def test_state_dict_is_hugging_faces(config, theirs):
    ours = {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).state_dict().items()}
    want = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    if config.tie_word_embeddings:
        del want["lm_head.weight"]  # transformers lists it twice and stores it once
    assert ours == want == config.tensor_shapes()


def test_training_reaches_every_weight(config):
    model = LlamaForCausalLM(config, "sdpa").train()
    model.load_state_dict(random_weights(config))
    ids = torch.randint(0, config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(3))

    def loss():
        logits = model(ids)[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())

    before = loss()
    before.backward()
    for name, parameter in model.named_parameters():
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
        assert loss() < before


def test_gradients_equal_transformers(config, theirs):
    ours = LlamaForCausalLM(config, "sdpa")
    ours.load_state_dict(random_weights(config))
    theirs.load_state_dict(random_weights(config), strict=not config.tie_word_embeddings)
    ids = torch.arange(15).view(1, -1) * 5
    ours(ids).square().mean().backward()
    theirs(ids).logits.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = float(grads[name].abs().max())
        assert float((parameter.grad - grads[name]).abs().max()) <= 1e-4 * scale, name


def test_a_copy_is_independent(config):
    model = LlamaForCausalLM(config)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.norm.weight.zero_()
    assert bool(model.model.norm.weight.any())


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(),
        RopeConfig(rope_theta=500000.0),
        RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 8192),  # Llama 3.1
        RopeConfig("llama3", 500000.0, 32.0, 1.0, 4.0, 8192),  # Llama 3.2
        RopeConfig("llama3", 5000.0, 3.0, 1.5, 2.5, 32),
    ],
)
@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_inverse_frequencies_equal_transformers(rope, head_dim):
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = dataclasses.replace(CONFIGS["gqa"], rope=rope, head_dim=head_dim)
    raw = transformers.LlamaConfig(**raw_config(config))
    if rope.rope_type == "llama3":
        want, scale = ROPE_INIT_FUNCTIONS["llama3"](raw, torch.device("cpu"))
    else:
        module = LlamaRotaryEmbedding(raw)
        want, scale = module.inv_freq, module.attention_scaling
    assert scale == 1.0
    torch.testing.assert_close(inverse_frequencies(config), want, rtol=1e-6, atol=0)


def test_llama3_leaves_short_waves_and_stretches_long_ones():
    rope = RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 8192)
    scaled = inverse_frequencies(dataclasses.replace(CONFIGS["gqa"], rope=rope, head_dim=128))
    plain = inverse_frequencies(
        dataclasses.replace(CONFIGS["gqa"], rope=RopeConfig(rope_theta=500000.0), head_dim=128)
    )
    ratio = plain / scaled
    assert ratio[0] == 1
    assert ratio[-1] == 8
    assert bool((ratio.diff() >= 0).all())
    assert bool(((ratio > 1) & (ratio < 8)).any())


@pytest.mark.parametrize("position", [0, 1, 4095, 131071, 1_048_575])
def test_angles_stay_exact_at_long_positions(position):
    """What float32 angles can give: within a few ulp of the angle of the true cosine."""
    inv_freq = inverse_frequencies(CONFIGS["mha_tied"])
    cos, sin = cos_sin(torch.tensor([position]), inv_freq)
    angle = position * inv_freq.double()
    limit = 2.0**-23 * max(1, position)
    torch.testing.assert_close(cos[0].double(), angle.cos(), rtol=0, atol=limit)
    torch.testing.assert_close(sin[0].double(), angle.sin(), rtol=0, atol=limit)


def test_rotation_keeps_length_and_depends_on_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))
    inv_freq = inverse_frequencies(CONFIGS["gqa"])

    def turned(states, position):
        return rotate(states, *cos_sin(torch.tensor([[position]]), inv_freq))

    torch.testing.assert_close(turned(query, 37).norm(), query.norm())
    near = (turned(query, 9) * turned(key, 4)).sum()
    far = (turned(query, 109) * turned(key, 104)).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)
