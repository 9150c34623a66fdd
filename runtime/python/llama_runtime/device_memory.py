"""Keys and values on a GPU, and rows of them as ONNX Runtime binds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llama_runtime.cuda import Cuda
from llama_runtime.interface import TensorSpec

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class DeviceMemory:
    """Keys and values on the GPU: one buffer [rows, K, C, D] for each tensor.

    Attributes:
        rows: How many rows.
        specs: Of the tensors, [rows, K, C, D] each, the first dim open.
        buffers: In the same order.
        graphs: What was recorded over these buffers, by what it was recorded for.
    """

    def __init__(self, cuda: Cuda, specs: Sequence[TensorSpec], rows: int) -> None:
        self.rows, self.graphs = rows, dict[tuple[int, ...], Any]()
        self._cuda, self.specs = cuda, specs
        self.row_bytes = [_bytes_of(spec, spec.shape[1:]) for spec in specs]
        self.buffers = [cuda.allocate(rows * nbytes) for nbytes in self.row_bytes]

    def __del__(self) -> None:
        for executable in self.graphs.values():
            self._cuda.forget(executable)

    def take_row(self, other: DeviceMemory, source: int, target: int, length: int) -> None:
        """As ``engine.Memory`` says; head by head, since a head's unused slots are between two.

        Two memories may have rows of unequal length.
        """
        for index, spec in enumerate(self.specs):
            K, C, D = _sizes(spec)
            slot = D * _ITEM_BYTES[spec.dtype]
            head, their_head, wanted = C * slot, _sizes(other.specs[index])[1] * slot, length * slot
            begin, end = (
                memory.buffers[index].address + row * memory.row_bytes[index]
                for memory, row in ((other, source), (self, target))
            )
            for k in range(K):
                self._cuda.copy(end + k * head, begin + k * their_head, wanted)

    def read_row(self, row: int, length: int) -> list[np.ndarray]:
        """As ``engine.Memory`` says."""
        found = []
        for buffer, nbytes, spec in zip(self.buffers, self.row_bytes, self.specs, strict=True):
            whole = np.empty(_sizes(spec), _stored_as(spec.dtype))
            self._cuda.download(whole, buffer.address + row * nbytes)
            found.append(_from_stored(np.ascontiguousarray(whole[:, :length]), spec.dtype))
        return found

    def write_row(self, row: int, arrays: Sequence[np.ndarray]) -> None:
        """As ``engine.Memory`` says."""
        for buffer, nbytes, spec, array in zip(self.buffers, self.row_bytes, self.specs, arrays, strict=True):
            whole = np.zeros(_sizes(spec), _stored_as(spec.dtype))
            whole[:, : array.shape[1]] = _to_stored(array, spec.dtype)
            self._cuda.upload(buffer.address + row * nbytes, whole)


@dataclass(frozen=True)
class DeviceRows:
    """Rows of one tensor on a device, cut like an array.

    Attributes:
        device: ONNX Runtime's name of it.
        dtype: NumPy's, of a value.
        shape: [rows, ...].
        address: Of the first row.
    """

    device: str
    dtype: Any
    shape: tuple[int, ...]
    address: int

    def __getitem__(self, rows: slice) -> DeviceRows:
        begin, end, _ = rows.indices(self.shape[0])
        row_bytes = int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize
        shape = (end - begin, *self.shape[1:])
        return replace(self, shape=shape, address=self.address + begin * row_bytes)

    @property
    def place(self) -> tuple[Any, ...]:
        """What ``bind_input`` and ``bind_output`` take behind the name."""
        return self.device, 0, self.dtype, self.shape, self.address


def _sizes(spec: TensorSpec) -> tuple[int, int, int]:
    """K, C, D of a cache."""
    _, K, C, D = spec.shape
    assert isinstance(K, int) and isinstance(C, int) and isinstance(D, int)
    return K, C, D


def _bytes_of(spec: TensorSpec, dims: tuple[int | str, ...]) -> int:
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return int(np.prod(sizes)) * _ITEM_BYTES[spec.dtype]


def _stored_as(dtype: str) -> Any:
    return np.uint16 if dtype == "bfloat16" else np.dtype(dtype)


def _from_stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """bfloat16's bits to float32."""
    if dtype != "bfloat16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def _to_stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 to the nearest bfloat16's bits; exact for what ``_from_stored`` gave."""
    if dtype != "bfloat16":
        return array
    wide = np.ascontiguousarray(array, np.float32).view(np.uint32)
    bits: np.ndarray = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    return bits
