"""A session of ONNX Runtime on a GPU whose cache stays there: written in place, never copied to the host.

B rows, C capacity, K kv heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_runtime.cache import KVCache, cache_names
from llama_runtime.cuda import Cuda, open_cuda
from llama_runtime.device_memory import DeviceMemory, DeviceRows
from llama_runtime.errors import EngineError, OptionError, PromptError
from llama_runtime.extras import Outputs
from llama_runtime.interface import TensorSpec
from llama_runtime.leased_cache import Lease, LeasedCache
from llama_runtime.manifest import Manifest
from llama_runtime.opening import open_session
from llama_runtime.session import Session
from llama_runtime.step import StepShape


@dataclass
class DeviceCache(LeasedCache):
    """Rows of C slots on the GPU, which ONNX Runtime binds by their address."""

    def __post_init__(self) -> None:
        self._point()

    def enlarge(self, capacity: int) -> None:
        """Make room for ``capacity`` positions, in other memory."""
        old, first = self.lease, self.first_row
        self.lease, self.first_row = self.session.lease(self.rows, capacity), 0
        for row in range(self.rows):
            self.lease.memory.take_row(old.memory, first + row, row, self.offset + self.length)
        self.capacity = capacity
        self._point()

    def select_rows(self, rows: Sequence[int]) -> None:
        """Make row i what row ``rows[i]`` is now, in other memory."""
        super().select_rows(rows)
        self._point()

    def move_to(self, view: KVCache) -> None:
        """Stand where another view of the same memory stands."""
        super().move_to(view)
        self._point()

    def _point(self) -> None:
        """Let ``tensors`` be this cache's rows, where they are now."""
        mine = slice(self.first_row, self.first_row + self.rows)
        self.tensors, self.step = [tensor[mine] for tensor in self.session.rows_of(self.lease)], None


class CudaSession(Session):
    """A bundle's graph that keeps its cache in place, on a GPU.

    Args:
        inference: ONNX Runtime's session.
        manifest: The bundle's.
        cuda: The GPU.
        device: ONNX Runtime's name of it.
    """

    def __init__(self, inference: Any, manifest: Manifest, cuda: Cuda, device: str = "cuda") -> None:
        super().__init__(inference, manifest)
        self._cuda, self._device = cuda, device

    def new_cache(self, *, capacity: int, rows: int = 1) -> DeviceCache:
        """As ``Session.new_cache``, on the GPU.

        Raises:
            PromptError: More positions than the model has.
            OptionError: ``capacity`` or ``rows`` below 1.
            EngineError: The GPU's memory is full.
        """
        if capacity < 1 or rows < 1:
            raise OptionError(f"a cache of {rows} rows and {capacity} positions, needs at least 1 of each")
        limit = self.manifest.limits.max_position_embeddings
        if capacity > limit:
            raise PromptError(f"a cache of {capacity} positions, the model has {limit}")
        return DeviceCache(rows, capacity, True, [], session=self, lease=self.lease(rows, capacity))

    def lease(self, rows: int, capacity: int) -> Lease:
        """Give memory to a cache; it is freed with the last one that holds it.

        Raises:
            EngineError: The GPU's memory is full.
        """
        shape = self.manifest.kv_cache
        dims = (rows, shape.num_key_value_heads, capacity, shape.head_dim)
        specs = [TensorSpec(name, shape.dtype, dims) for name in cache_names(shape)[0]]
        try:
            return Lease(DeviceMemory(self._cuda, specs, rows), [])
        except MemoryError as error:
            raise EngineError(f"no room for {rows} rows of cache: {error}", "use fewer rows") from None

    def rows_of(self, lease: Lease) -> list[DeviceRows]:
        """All rows of the tensors in some memory."""
        memory: Any = lease.memory
        return [
            DeviceRows(self._device, np.dtype(spec.dtype).type, spec.shape, buffer.address)
            for spec, buffer in zip(memory.specs, memory.buffers, strict=True)
        ]

    def _run(
        self, shape: StepShape, tokens: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None
    ) -> Outputs:
        self._cuda.synchronize()  # ONNX Runtime has a stream of its own, and waits for that alone
        return super()._run(shape, tokens, cache, lengths)


def open_cuda_session(folder: Path, manifest: Manifest, threads: int | None = None) -> Session:
    """Load a bundle's graph on the first GPU; one that keeps its cache in place, with the cache there.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        threads: For what stays on the CPU.

    Raises:
        MissingExtraError: onnxruntime-gpu or cuda-python is not installed.
        OptionError: Its fused attention computes in float32.
        EngineError: There is no GPU.
        SessionError: The graph cannot be loaded.
    """
    session = open_session(folder, manifest, threads=threads, device="cuda")
    if manifest.cache is None or not manifest.cache.in_place:
        return session
    return CudaSession(session._inference, manifest, open_cuda()[0])
