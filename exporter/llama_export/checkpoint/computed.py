"""Tensors made of others: joined shards, transposed kernels, rotary pairs in another order.

All are exact: they move values and round none. Each yields its rows in order, in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from llama_export.checkpoint.tensor import (
    ComputedTensor,
    LazyTensor,
    Read,
    StoredTensor,
    gather,
    rows_in_a_piece,
)


def join_rows(name: str, parts: Sequence[LazyTensor]) -> ComputedTensor:
    """Put [R_i, ...] parts below each other: [sum of R_i, ...].

    Args:
        name: Of the result.
        parts: All of one dtype and the same trailing dimensions.
    """
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return _made_of(name, shape, parts, "joined from shards", partial(_below_each_other, parts))


def join_columns(name: str, parts: Sequence[StoredTensor]) -> ComputedTensor:
    """Put [R, C_i] parts beside each other: [R, sum of C_i].

    Args:
        name: Of the result.
        parts: All of one dtype and the same number of rows.
    """
    shape = (parts[0].shape[0], sum(part.shape[1] for part in parts))
    return _made_of(name, shape, parts, "joined from shards", partial(_beside_each_other, parts, shape))


def transpose(name: str, source: LazyTensor) -> ComputedTensor:
    """Turn [in, out] into [out, in]; the whole of it is in memory while it is read."""
    return _made_of(name, source.shape[::-1], [source], "transposed", partial(_transposed, source))


def interleaved_to_half(name: str, source: StoredTensor, head_dim: int) -> ComputedTensor:
    """Bring the rows of each head from Meta's rotary order into Hugging Face's.

    Meta turns the neighbours 2i and 2i + 1 by angle i, Hugging Face i and i + head_dim / 2.

    Args:
        name: Of the result.
        source: [heads * head_dim, hidden_size], a whole number of heads.
        head_dim: Rows of one head.
    """
    compute = partial(_half_by_half, source, head_dim)
    return _made_of(name, source.shape, [source], "permuted for rotary embedding", compute)


def join_flat(name: str, parts: Sequence[StoredTensor], shape: tuple[int, ...]) -> ComputedTensor:
    """Put [n_i] parts behind each other and call the whole [*shape]; it is in memory while it is read."""
    return _made_of(name, shape, parts, "joined from chunks", partial(_reshaped, parts, shape))


def _made_of(
    name: str,
    shape: tuple[int, ...],
    parts: Sequence[LazyTensor],
    how: str,
    compute: partial[Iterator[torch.Tensor]],
) -> ComputedTensor:
    stored = tuple(inner for part in parts for inner in part.stored)
    return ComputedTensor(name, parts[0].dtype, shape, stored, how, compute)


def _below_each_other(parts: Sequence[LazyTensor], read: Read) -> Iterator[torch.Tensor]:
    for part in parts:
        yield from part.pieces(read)


def _beside_each_other(
    parts: Sequence[StoredTensor], shape: tuple[int, ...], read: Read
) -> Iterator[torch.Tensor]:
    step = rows_in_a_piece(shape, parts[0].dtype)
    for begin in range(0, shape[0], step):
        end = min(begin + step, shape[0])
        yield torch.cat([part.rows(begin, end, read) for part in parts], dim=1)


def _transposed(source: LazyTensor, read: Read) -> Iterator[torch.Tensor]:
    whole = gather(source, read).T  # [out, in]
    for rows in torch.split(whole, rows_in_a_piece(tuple(whole.shape), whole.dtype)):
        yield rows.contiguous()


def _half_by_half(source: StoredTensor, head_dim: int, read: Read) -> Iterator[torch.Tensor]:
    for rows in source.pieces(read, multiple=head_dim):
        pairs = rows.view(-1, head_dim // 2, 2, rows.shape[1])  # [heads, pair, member, hidden_size]
        yield pairs.transpose(1, 2).reshape(rows.shape)


def _reshaped(parts: Sequence[StoredTensor], shape: tuple[int, ...], read: Read) -> Iterator[torch.Tensor]:
    whole = gather(join_rows("", parts), read).view(shape)
    yield from torch.split(whole, rows_in_a_piece(shape, whole.dtype))
