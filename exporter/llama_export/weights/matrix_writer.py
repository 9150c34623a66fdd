"""A matrix on its way into blocks: pieces are quantized on all cores and written in their order."""

from __future__ import annotations

from concurrent.futures import Executor, Future

import torch
from torch import Tensor

from llama_export.checkpoint.finite import nonfinite_weight
from llama_export.quantize import Encode, NotFiniteError
from llama_export.weights.plan import PlacedWeight
from llama_export.weights.sink import Sink


class MatrixWriter:
    """Writes the codes of one matrix as they come, then its scales and whatever else its layout has.

    Args:
        name: Of the matrix.
        placed: Where it goes, in blocks.
        sink: The data file.
        encode: How its rows are quantized.
        pool: Where pieces are quantized.
    """

    def __init__(self, name: str, placed: PlacedWeight, sink: Sink, encode: Encode, pool: Executor) -> None:
        assert placed.blocks is not None
        self._name, self._blocks, self._parts = name, placed.blocks, placed.parts
        self._file = placed.source.stored[0].file
        self._sink, self._encode, self._pool = sink, encode, pool
        self._rest: list[list[Tensor]] = [[] for _ in self._parts[1:]]  # of the pieces written

    def quantize(self, rows: Tensor) -> Future[tuple[Tensor, ...]]:
        """Begin with some rows: the arrays of the layout's parts."""
        return self._pool.submit(self._blocks.encode, rows, self._encode)

    def write(self, piece: Future[tuple[Tensor, ...]]) -> None:
        """Write the codes of the next rows.

        Raises:
            CheckpointError: A value is NaN or infinite.
        """
        try:
            codes, *rest = piece.result()
        except NotFiniteError:
            raise nonfinite_weight(self._name, self._file) from None
        self._write(0, codes)
        for kept, values in zip(self._rest, rest, strict=True):
            kept.append(values)

    def finish(self) -> None:
        """Write what stands behind the codes."""
        for index, kept in enumerate(self._rest, 1):
            self._write(index, torch.cat(kept))

    def _write(self, index: int, values: Tensor) -> None:
        part, offset = self._parts[index]
        self._sink.write(offset, self._name + part.suffix, values)
