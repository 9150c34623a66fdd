"""One pass over the checkpoint's bytes: hash, check, cast or quantize, write; a few pieces in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llama_export.checkpoint import Checkpoint, nonfinite
from llama_export.checkpoint.finite import nonfinite_weight
from llama_export.checkpoint.tensor import PIECE_BYTES, read_bytes
from llama_export.errors import OptionError
from llama_export.quantize import METHODS, Blocks, Encode, encode, encode_with, gptq
from llama_export.quantize.calibration import Calibration
from llama_export.quantize.methods import keep_grid, search_scales
from llama_export.weights.background import InBackground
from llama_export.weights.matrix_writer import MatrixWriter
from llama_export.weights.plan import WeightPlan
from llama_export.weights.sink import FileDigest, Sink, memory

Advance = Callable[[int], None]


def write_weights(
    checkpoint: Checkpoint,
    plan: WeightPlan,
    folder: Path,
    advance: Advance,
    calibration: Calibration | None = None,
) -> tuple[dict[Path, FileDigest], dict[str, FileDigest]]:
    """Read every byte of the checkpoint, hash the files, refuse bad values and write what the plan writes.

    A byte is read once, unless the files of a computed tensor hold their tensors in different orders.

    Args:
        checkpoint: The source.
        plan: Where the weights go; linked ones are only read.
        folder: Where the data files are written.
        advance: Called with the number of source bytes done, for progress.
        calibration: What GPTQ needs.

    Returns:
        The digest of each source file, and of each data file that was written, by location.

    Raises:
        CheckpointError: A weight is NaN or infinite, or a file cannot be read.
        OptionError: A value does not fit float16.
    """
    written = [location for location, file in plan.data_files.items() if file is None]
    cores = ThreadPoolExecutor(os.cpu_count())  # without a thread until something is quantized
    with InBackground() as hasher, InBackground() as writer, InBackground() as disk, cores as pool:
        source = _HashedFiles(checkpoint.weight_files, hasher, advance)
        sinks = {name: Sink(folder / name, plan.headers.get(name, b""), disk) for name in written}
        previous = None
        try:
            for name, placed in plan.weights.items():
                sink = sinks.get(placed.location)
                if previous is not None and previous is not sink:
                    writer.submit(previous.flush)
                previous = sink
                matrix = None
                if sink is not None and placed.blocks is not None:
                    matrix = MatrixWriter(name, placed, sink, _encoder(plan, name, calibration), pool)
                for values in placed.source.pieces(source.read):
                    if matrix is not None:  # which refuses such values too
                        writer.submit(matrix.write, matrix.quantize(values))
                        continue
                    if values.is_floating_point() and nonfinite(values):
                        raise nonfinite_weight(name, placed.source.stored[0].file)
                    if sink is not None:
                        writer.submit(sink.write, placed.offset, name, _cast(values, placed.dtype, name))
                if matrix is not None:
                    writer.submit(matrix.finish)
            digests = source.finish()
            for sink in sinks.values():
                writer.submit(sink.flush)
            writer.drain()
            disk.drain()
        finally:
            writer.stop()
            disk.stop()
            for sink in sinks.values():
                sink.close()
    return digests, {location: sink.digest() for location, sink in sinks.items()}


def _encoder(plan: WeightPlan, name: str, calibration: Calibration | None) -> Encode:
    """How the rows of a matrix are quantized."""
    blocks = plan.weights[name].blocks
    few_bits = isinstance(blocks, Blocks) and blocks.bits < 8
    feedback = calibration.feedback(name) if calibration and few_bits else None
    if feedback is not None:
        return partial(encode_with, quantize_rows=partial(gptq, feedback=feedback))
    if plan.quantization is None:
        return partial(encode, method=keep_grid)
    return partial(encode, method=METHODS.get(plan.quantization.method, search_scales))


class _HashedFiles:
    """Reads runs of bytes, and hashes each file front to back on the way."""

    def __init__(self, files: Sequence[Path], hasher: InBackground, advance: Advance) -> None:
        self._hashes = {file: hashlib.sha256() for file in files}
        self._ends = dict.fromkeys(files, 0)  # how far each file is hashed
        self._hasher = hasher
        self._advance = advance

    def read(self, file: Path, offset: int, nbytes: int) -> Tensor:
        """Read as ``read_bytes`` does; headers and gaps before the run are read for the hash alone."""
        self._hash_until(file, offset)
        data = read_bytes(file, offset, nbytes)
        self._hash(file, data[max(self._ends[file] - offset, 0) :])
        return data

    def finish(self) -> dict[Path, FileDigest]:
        """Hash what nobody asked for; return the digest of each file."""
        sizes = {file: file.stat().st_size for file in self._hashes}
        for file, size in sizes.items():
            self._hash_until(file, size)
        self._hasher.drain()
        return {file: FileDigest(sizes[file], h.hexdigest()) for file, h in self._hashes.items()}

    def _hash_until(self, file: Path, end: int) -> None:
        while (begin := self._ends[file]) < end:
            self._hash(file, read_bytes(file, begin, min(end - begin, PIECE_BYTES)))

    def _hash(self, file: Path, data: Tensor) -> None:
        if len(data):
            self._hasher.submit(self._hashes[file].update, memory(data))
            self._ends[file] += len(data)
            self._advance(len(data))


def _cast(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    cast = values.to(dtype)
    if dtype == torch.float16 and values.dtype != torch.float16 and nonfinite(cast):
        largest = values.float().abs().max().item()
        raise OptionError(
            f"tensor {name} holds {largest:g}, float16 ends at 65504", "use --precision bfloat16 or float32"
        )
    return cast
