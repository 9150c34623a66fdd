"""GPTQ: what is taken back pays where inputs are correlated, and never leaves the bound of a block."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_checkpoints import CONFIGS, random_weights

from llama_export.model import GrowingCache, make_step
from llama_export.model.layer import DecoderLayer
from llama_export.model.rope import inverse_frequencies
from llama_export.quantize import METHODS, Blocks, dequantize, gptq, quantize, within_bound
from llama_export.quantize.calibration import Calibration
from llama_export.quantize.gptq import error_feedback

LAYOUTS = [Blocks(4, size, symmetric) for size in (32, 128) for symmetric in (True, False)]
CONFIG = dataclasses.replace(CONFIGS["gqa"], num_hidden_layers=2)


def correlated(columns=200, rows=60, count=600):
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -1.5, columns)
    inputs = torch.randn(count, columns, generator=generator) @ mix.T
    return inputs, torch.randn(rows, columns, generator=generator) * 0.02


def test_the_factor_is_that_of_the_inverse():
    inputs, _ = correlated(columns=40)
    gram = inputs.T @ inputs
    feedback = error_feedback(gram).double()
    damped = (gram + 0.01 * gram.diagonal().mean() * torch.eye(40)).double()
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert torch.allclose(feedback, upper / upper.diagonal()[:, None], rtol=1e-2, atol=1e-3)
    assert torch.equal(feedback.triu(), feedback) and (feedback.diagonal() == 1).all()


@pytest.mark.parametrize(
    "gram",
    [torch.zeros(8, 8), torch.eye(8) * 1e-38, torch.ones(8, 8) * 1e6],
    ids=["no input", "hardly any", "one direction"],
)
def test_inputs_that_never_vary_are_no_error(gram):
    feedback = error_feedback(gram)
    assert feedback.isfinite().all()


@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_products_are_closer_than_those_of_a_search(blocks):
    inputs, weight = correlated()
    exact = inputs @ weight.T

    def error(found):
        return (inputs @ dequantize(found, blocks, weight.shape[1]).T - exact).norm() / exact.norm()

    calibrated = gptq(weight, blocks, error_feedback(inputs.T @ inputs))
    assert error(calibrated) < 0.7 * error(quantize(weight, blocks, METHODS["search"]))
    values = dequantize(calibrated, blocks, weight.shape[1])
    assert within_bound(values, weight, blocks).all()


@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_without_correlation_it_is_the_search(blocks):
    _, weight = correlated()
    found, searched = gptq(weight, blocks, torch.eye(200)), quantize(weight, blocks, METHODS["search"])
    assert torch.equal(found.scales, searched.scales)
    # A value half way between two codes may go either way, since the scale was fitted in between.
    assert (found.codes.int() - searched.codes.int()).abs().max() <= 1


def test_a_block_that_is_led_too_far_is_rounded_by_itself():
    _, weight = correlated()
    wild = torch.eye(200) + torch.triu(torch.full((200, 200), 3.0), 1)
    blocks = Blocks(4, 32)
    values = dequantize(gptq(weight, blocks, wild), blocks, 200)
    assert within_bound(values, weight, blocks).all()


def test_a_row_does_not_depend_on_the_others():
    inputs, weight = correlated()
    feedback, blocks = error_feedback(inputs.T @ inputs), Blocks(4, 32, symmetric=False)
    whole, alone = gptq(weight, blocks, feedback), gptq(weight[7:8], blocks, feedback)
    # Sums over many rows and over one may end in another last bit.
    assert torch.allclose(whole.scales[7], alone.scales[0], rtol=1e-5)
    assert (whole.codes[7] != alone.codes[0]).float().mean() < 0.01


def test_calibration_sees_what_each_matrix_reads():
    weights = random_weights(CONFIG)
    windows = [list(range(1, 30)), list(range(50, 79))]
    calibration = Calibration(CONFIG, weights.__getitem__, windows)
    assert calibration.feedback("model.embed_tokens.weight") is None
    seen = {"self_attn.q_proj": [], "mlp.down_proj": []}
    layer = DecoderLayer(CONFIG, 0, "eager")
    prefix = "model.layers.0."
    layer.load_state_dict({n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)})
    for name, inputs in seen.items():
        layer.get_submodule(name).register_forward_pre_hook(lambda _, read, kept=inputs: kept.append(read[0]))
    positions = torch.arange(29)[None]
    step = make_step(torch.ones_like(positions), positions, inverse_frequencies(CONFIG), CONFIG)
    with torch.no_grad():
        for ids in windows:
            layer(weights["model.embed_tokens.weight"][torch.tensor(ids)], step, GrowingCache())
    for name, inputs in seen.items():
        gram = sum(states.T @ states for states in inputs)
        assert torch.allclose(calibration.feedback(f"{prefix}{name}.weight"), error_feedback(gram), atol=1e-4)
    joined = calibration.feedback("model.layers.1.self_attn.qkv_proj.weight")
    assert torch.equal(joined, calibration.feedback("model.layers.1.self_attn.v_proj.weight"))
    assert calibration.feedback("lm_head.weight").shape == (42, 42)
    with pytest.raises(AssertionError, match="in their order"):
        calibration.feedback("model.layers.0.mlp.up_proj.weight")
