"""Operators that exist in exported graphs only: what the tracer writes in place of our own lines.

``torch.onnx.ops`` gives them no values (GroupQueryAttention) or no gradient (RotaryEmbedding), so they are
reached through ``torch.compiler.is_exporting()`` alone, at one place in ``layer.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_export.model.step import FusedStep


def rotary_embedding(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Standard ``RotaryEmbedding`` (opset 23) of [B, H, T, D] by [B, T, D / 2] angles."""
    rotated: Tensor = torch.onnx.ops.rotary_embedding(states, cos, sin)
    return rotated


def group_query_attention(
    query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor] | None, step: FusedStep, D: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``com.microsoft::GroupQueryAttention``: rotary embedding, cache and attention in one node.

    Args:
        query: [N, H * D], not rotated.
        key: [N, K * D], not rotated.
        value: [N, K * D].
        past: [B, K, P, D] rotated keys, and values; None where nothing is cached.
        step: Lengths, angles and bias.
        D: head_dim.

    Returns:
        Context [N, H * D], present keys [B, K, S, D] and present values [B, K, S, D].
    """
    B, _, T, S = step.bias.shape
    H, K = query.shape[1] // D, key.shape[1] // D
    present = [B, K, S, D]
    query, key = query.view(B, T, H * D), key.view(B, T, K * D)
    tables: tuple[Tensor | None, Tensor | None] = step.cos, step.sin
    rotates_here = step.cos.dim() == 2
    if not rotates_here:  # the operator knows one table for all rows, and here each token has its own angles
        query = torch.onnx.ops.rotary_embedding(query, step.cos, step.sin, num_heads=H)
        key = torch.onnx.ops.rotary_embedding(key, step.cos, step.sin, num_heads=K)
        tables = None, None
    inputs = [
        query,
        key,
        value.view(B, T, K * D),
        *(past or (None, None)),
        step.seqlens_k,
        step.total_length,
        *tables,
        None,  # position_ids, of which the operator would read the first row's alone
        step.bias,
    ]
    context, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        attrs={"num_heads": H, "kv_num_heads": K, "do_rotary": int(rotates_here), "rotary_interleaved": 0},
        dtypes=[query.dtype] * 3,
        shapes=[[B, T, H * D], present, present],
        version=1,
    )
    return context.reshape(B * T, H * D), keys, values
