"""A matrix on its way into blocks: pieces are quantized on all cores and written in their order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future

import torch
from torch import Tensor

from llama_export.quantize import Blocks, Quantized, pack
from llama_export.weights.plan import PlacedWeight
from llama_export.weights.sink import Sink

QuantizeRows = Callable[[Tensor, Blocks], Quantized]


class MatrixWriter:
    """Writes the codes of one matrix as they come, then its scales and zero points.

    Args:
        name: Of the matrix.
        placed: Where it goes, in blocks.
        sink: The data file.
        quantize_rows: From rows of the matrix to their codes.
        pool: Where pieces are quantized.
    """

    def __init__(
        self, name: str, placed: PlacedWeight, sink: Sink, quantize_rows: QuantizeRows, pool: Executor
    ) -> None:
        assert placed.blocks is not None
        self._name, self._blocks, self._parts = name, placed.blocks, placed.parts
        self._sink, self._quantize_rows, self._pool = sink, quantize_rows, pool
        self._rest: list[list[Tensor]] = [[], []]  # scales and zero points of the pieces written

    def quantize(self, rows: Tensor) -> Future[tuple[Tensor, Tensor, Tensor | None]]:
        """Begin with some rows: their packed codes, scales and packed zero points."""
        return self._pool.submit(_packed, rows, self._blocks, self._quantize_rows)

    def write(self, piece: Future[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Write the codes of the next rows."""
        codes, *rest = piece.result()
        self._write(0, codes)
        for kept, values in zip(self._rest, rest, strict=True):
            if values is not None:
                kept.append(values)

    def finish(self) -> None:
        """Write what stands behind the codes."""
        for index, kept in enumerate(filter(None, self._rest), 1):
            self._write(index, torch.cat(kept))

    def _write(self, index: int, values: Tensor) -> None:
        part, offset = self._parts[index]
        self._sink.write(offset, self._name + part.suffix, values)


def _packed(
    rows: Tensor, blocks: Blocks, quantize_rows: QuantizeRows
) -> tuple[Tensor, Tensor, Tensor | None]:
    found = quantize_rows(rows, blocks)
    zeros = None if found.zero_points is None else pack(found.zero_points, blocks.bits)
    return pack(found.codes, blocks.bits), found.scales, zeros
