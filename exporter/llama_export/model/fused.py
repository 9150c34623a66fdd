"""Operators that exist in exported graphs only: what the tracer writes in place of our own lines.

``torch.onnx.ops`` gives them no values (GroupQueryAttention) or no gradient (RotaryEmbedding), so they are
reached through ``torch.compiler.is_exporting()`` alone, at one place in ``layer.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_export.model.step import FusedStep


def rotary_embedding(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Standard ``RotaryEmbedding`` (opset 23) of [B, H, T, D] by [B, T, D / 2] angles, in their dtype."""
    rotated: Tensor = torch.onnx.ops.rotary_embedding(states.to(cos.dtype), cos, sin)
    return rotated.to(states.dtype)


class ScatteredCache:
    """One layer's cache of a fixed capacity: written by index, read up to a bucket.

    The one pattern that TensorRT turns into an update in place: ``TensorScatter`` (opset 24) directly on a
    graph input, and a ``Slice`` whose end is a graph input too.

    Args:
        keys: [B, K, C, D], the graph's input.
        values: [B, K, C, D].
        write_indices: [B] int64: the slot of each row's first new token.
        bucket: [1] int64: how many slots are read.
        slots: The same number, as a dim.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, write_indices: Tensor, bucket: Tensor, slots: int
    ) -> None:
        self.keys, self.values = keys, values
        self._write_indices, self._bucket, self._slots = write_indices, bucket, slots

    @property
    def length(self) -> int:
        """Not known to a graph: its inputs say where the new tokens go."""
        raise NotImplementedError

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, K, T, D] keys and values; return the bucket's slots, [B, K, bucket, D] each."""
        self.keys, self.values = self._scatter(self.keys, keys), self._scatter(self.values, values)
        return self._read(self.keys), self._read(self.values)

    def _scatter(self, past: Tensor, new: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "::TensorScatter",
            (past, new, self._write_indices),
            {"axis": 2, "mode": "linear"},
            dtype=past.dtype,
            shape=past.shape,
            version=24,
        )

    def _read(self, cache: Tensor) -> Tensor:
        first, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2, dtype=torch.int64)
        B, K, _, D = cache.shape
        return torch.onnx.ops.symbolic(
            "::Slice",
            (cache, first, self._bucket, axis),
            dtype=cache.dtype,
            shape=[B, K, self._slots, D],
            version=13,
        )


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
