"""A TensorRT engine played by ONNX Runtime on the CPU: the same graph, the same inputs, no GPU.

``TensorScatter`` and ``Slice`` read and write the very buffers that are bound as past and present, as
TensorRT's update in place does. float32 and float16; ONNX Runtime has no bfloat16 arithmetic on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from llama_runtime.engine import Feeds

CPU = ("cpu", 0)
DTYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}


class PlayedMemory:
    """Keys and values as NumPy arrays [rows, K, C, D].

    Args:
        shape: [K, C, D].
        dtype: Of the cache.
        count: How many tensors.
        rows: How many rows.
        fill: What every slot holds at first; another value than 0 shows whoever reads unwritten ones.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type, count: int, rows: int, fill: float = 0.0) -> None:
        self.rows = rows
        self.tensors = [np.full((rows, *shape), fill, dtype) for _ in range(count)]

    def take_row(self, other: PlayedMemory, source: int, target: int, length: int) -> None:
        """As ``engine.Memory`` says."""
        for tensor, taken in zip(self.tensors, other.tensors, strict=True):
            tensor[target, :, :length] = taken[source, :, :length]

    def read_row(self, row: int, length: int) -> list[np.ndarray]:
        """As ``engine.Memory`` says."""
        return [np.ascontiguousarray(tensor[row, :, :length]) for tensor in self.tensors]

    def write_row(self, row: int, arrays: Sequence[np.ndarray]) -> None:
        """As ``engine.Memory`` says."""
        for tensor, array in zip(self.tensors, arrays, strict=True):
            tensor[row, :, : array.shape[1]] = array


class PlayedEngine:
    """A graph that keeps the engines' contract, in ONNX Runtime.

    Attributes:
        runs: Profile, rows, tokens and bucket of every run, for whoever wants to know.
        fill: As for ``PlayedMemory``.
    """

    def __init__(self, model: Path | bytes, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        source = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        caches = [value for value in self.session.get_inputs() if value.name.startswith("past_key_values.")]
        self._past = [value.name for value in caches]
        self._cache_shape = tuple(caches[0].shape[1:]) if caches else ()
        self._cache_dtype = DTYPES[caches[0].type] if caches else np.float32
        self._results = [
            value.name for value in self.session.get_outputs() if not value.name.startswith("present.")
        ]
        self.runs: list[tuple[int, int, int, int]] = []
        self.fill = 0.0

    def allocate(self, rows: int) -> PlayedMemory:
        """As ``engine.Engine`` says."""
        return PlayedMemory(self._cache_shape, self._cache_dtype, len(self._past), rows, self.fill)

    def run(
        self, profile: int, feeds: Feeds, memory: PlayedMemory | None = None, first_row: int = 0
    ) -> dict[str, np.ndarray]:
        """As ``engine.Engine`` says."""
        B, T = feeds["input_ids"].shape
        bucket = int(feeds["kv_bucket"][0]) if "kv_bucket" in feeds else 0
        self.runs.append((profile, B, T, bucket))
        if memory is None:
            return dict(zip(self._results, self.session.run(self._results, dict(feeds)), strict=True))
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._results:
            binding.bind_output(name, *CPU)
        for name, tensor in zip(self._past, memory.tensors, strict=True):
            rows = tensor[first_row : first_row + B]
            place = (*CPU, rows.dtype.type, rows.shape, rows.ctypes.data)
            binding.bind_input(name, *place)
            binding.bind_output(name.replace("past_key_values", "present"), *place)
        self.session.run_with_iobinding(binding)
        values = binding.get_outputs()[: len(self._results)]
        return {name: value.numpy() for name, value in zip(self._results, values, strict=True)}
