"""LoRA and DoRA merged into a base weight, in float32, piece by piece (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llama_export.checkpoint.tensor import ComputedTensor, LazyTensor, Read, StoredTensor


@dataclass(frozen=True)
class Factors:
    """What an adapter holds for one module.

    Attributes:
        first: A, [r, in].
        second: B, [out, r].
        magnitude: DoRA's lengths: [out] of a linear layer's rows, [hidden_size] of an embedding's columns.
        scaling: What B A is multiplied by.
    """

    first: StoredTensor
    second: StoredTensor
    magnitude: StoredTensor | None
    scaling: float

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors on disk."""
        return (self.first, self.second, *([self.magnitude] if self.magnitude else []))


def merge_linear(base: LazyTensor, factors: Factors) -> ComputedTensor:
    """Compute W + scaling B A of a linear layer, with DoRA each row brought to its length.

    Args:
        base: W, [out, in].
        factors: B A is [out, in].

    Returns:
        [out, in] float32.
    """
    return _merged(base, factors, partial(_linear_rows, base, factors))


def merge_embedding(base: LazyTensor, factors: Factors) -> ComputedTensor:
    """Compute W + scaling (B A)^T of an embedding, with DoRA each column brought to its length.

    Args:
        base: W, [vocab_size, hidden_size].
        factors: A is [r, vocab_size], B [hidden_size, r].

    Returns:
        [vocab_size, hidden_size] float32.
    """
    return _merged(base, factors, partial(_embedding_rows, base, factors))


def _merged(base: LazyTensor, factors: Factors, compute: partial[Iterator[Tensor]]) -> ComputedTensor:
    stored = (*base.stored, *factors.stored)
    return ComputedTensor(base.name, torch.float32, base.shape, stored, "merged with an adapter", compute)


def _linear_rows(base: LazyTensor, factors: Factors, read: Read) -> Iterator[Tensor]:
    first, second = factors.first.read(read).float(), factors.second.read(read).float()
    magnitude = factors.magnitude.read(read).float() if factors.magnitude else None
    begin = 0
    for piece in base.pieces(read):
        end = begin + len(piece)
        rows = piece.float() + second[begin:end] @ first * factors.scaling  # [rows, in]
        if magnitude is not None:
            rows *= (magnitude[begin:end] / torch.linalg.norm(rows, dim=1)).unsqueeze(1)
        yield rows
        begin = end


def _embedding_rows(base: LazyTensor, factors: Factors, read: Read) -> Iterator[Tensor]:
    first, second = factors.first.read(read).float().T, factors.second.read(read).float().T

    def summed() -> Iterator[Tensor]:
        begin = 0
        for piece in base.pieces(read):
            end = begin + len(piece)
            yield piece.float() + first[begin:end] @ second * factors.scaling  # [rows, hidden_size]
            begin = end

    if factors.magnitude is None:
        yield from summed()
        return
    squares = torch.zeros(base.shape[1], dtype=torch.float64)
    for rows in summed():  # a column's length is known when all rows have been seen
        squares += rows.double().square().sum(dim=0)
    scale = factors.magnitude.read(read).float() / squares.sqrt().float()  # [hidden_size]
    for rows in summed():
        yield rows * scale
