"""Attention alone, on tensors: what a query may see, and what becomes of a query that may see nothing."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoints import CONFIGS

from llama_export.model import ATTENTION_PATHS
from llama_export.model.attention import ATTENTION
from llama_export.model.step import make_fused_step, make_step

H, K, D = 6, 2, 8


def draw(B, T, S, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B * 100 + T * 10 + S)
    shapes = (B, H, T, D), (B, K, S, D), (B, K, S, D)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def step_of(mask, T):
    positions = torch.zeros(mask.shape[0], T, dtype=torch.int64)
    return make_step(mask, positions, torch.ones(D // 2), CONFIGS["gqa"])


def by_hand(query, keys, values, visible):
    """One dot product at a time, in float64."""
    B, _, T, _ = query.shape
    context = torch.zeros(B, H, T, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = [s for s in range(keys.shape[2]) if visible[b, 0, t, s]]
                if not seen:
                    continue
                k, v = keys[b, h // (H // K), seen].double(), values[b, h // (H // K), seen].double()
                weights = ((k @ query[b, h, t].double()) / D**0.5).softmax(0)
                context[b, h, t] = weights @ v
    return context.float()


@pytest.mark.parametrize("path", ATTENTION_PATHS)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 7), (3, 7), (7, 7), (5, 6)])
def test_equals_sums_by_hand(path, T, S):
    query, keys, values = draw(2, T, S)
    step = step_of(torch.ones(2, S, dtype=torch.int64), T)
    got = ATTENTION[path](query, keys, values, step)
    torch.testing.assert_close(got, by_hand(query, keys, values, step.visible), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ATTENTION_PATHS)
def test_padding_anywhere_is_not_seen(path):
    T, S = 3, 7
    query, keys, values = draw(4, T, S)
    mask = torch.ones(4, S, dtype=torch.int64)
    mask[0, :2] = 0  # in front
    mask[1, 2:4] = 0  # between a right-padded prompt and what follows
    mask[2, 5:] = 0  # behind
    step = step_of(mask, T)
    got = ATTENTION[path](query, keys, values, step)
    want = by_hand(query, keys, values, step.visible)
    real = mask[:, -T:, None, None].bool().transpose(1, 2)  # queries of tokens; a pad's are nobody's
    torch.testing.assert_close(got.where(real, 0), want.where(real, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ATTENTION_PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_sees_nothing_gets_zero(path, dtype):
    query, keys, values = draw(2, 4, 4, dtype)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    context = ATTENTION[path](query, keys, values, step_of(mask, 4))
    assert torch.equal(context[0], torch.zeros_like(context[0]))
    assert bool((context[1] != 0).any())


def test_the_causal_diagonal_is_lower_right():
    visible = step_of(torch.ones(1, 5, dtype=torch.int64), 2).visible[0, 0]
    assert visible.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_the_fused_step_counts_from_the_leading_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]])
    step = make_fused_step(mask, 2, torch.ones(9, 4), torch.ones(9, 4))
    assert step.seqlens_k.tolist() == [4, 2, 2, 4]
    assert step.seqlens_k.dtype == step.total_length.dtype == torch.int32
    assert int(step.total_length) == 5
    assert step.bias.shape == (4, 1, 2, 5)
    assert (step.bias[0, 0, 1] / -1e9).tolist() == [1, 1, 0, 0, 0]
    assert not bool(step.bias[1:].any())


@pytest.mark.parametrize("path", ["eager", "sdpa"])
def test_gradients_flow_to_every_input(path):
    tensors = [tensor.requires_grad_() for tensor in draw(2, 3, 3)]
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    ATTENTION[path](*tensors, step_of(mask, 3)).square().sum().backward()
    for tensor in tensors:
        assert bool(torch.isfinite(tensor.grad).all())
        assert bool(tensor.grad.any())
