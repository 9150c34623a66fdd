"""CUDA memory, streams and graphs through cuda-python; the only file that imports it.

Every call is checked: what CUDA reports becomes one sentence.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from llama_runtime.errors import EngineError, MissingExtraError

_NO_BINDINGS = "pip install 'llama-export[trt-rtx]' or 'llama-export[trt]', which bring cuda-bindings"


class Cuda:
    """One GPU and one stream, in which everything happens in order.

    Args:
        runtime: ``cuda.bindings.runtime``, or whatever has its functions.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.stream: int = int(self._check(runtime.cudaStreamCreate()))

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Zeroed memory, freed with the object; MemoryError where there is not enough."""
        error, pointer = self._runtime.cudaMalloc(max(nbytes, 1))
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise MemoryError(f"the GPU has no {nbytes / 2**20:,.0f} MiB left")
        self._check((error, pointer))
        buffer = DeviceBuffer(self, int(pointer), nbytes)
        self._check(self._runtime.cudaMemsetAsync(buffer.address, 0, nbytes, self.stream))
        return buffer

    def free(self, address: int) -> None:
        """Give memory back once all work that uses it is done."""
        self._runtime.cudaFree(address)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy an array to the GPU; it may be changed as soon as this returns."""
        data = np.ascontiguousarray(array)
        self._copy(
            address, data.ctypes.data, data.nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        )
        # Pageable memory is staged before the call returns; pinned memory would need this to be waited for.

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy into a contiguous array, after all work before it."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)
        self.synchronize()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within the GPU; the two must not overlap."""
        self._copy(target, source, nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def synchronize(self) -> None:
        """Wait for all work."""
        self._check(self._runtime.cudaStreamSynchronize(self.stream))

    def begin_capture(self) -> None:
        """Record what is enqueued from now on instead of running it."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._runtime.cudaStreamBeginCapture(self.stream, mode))

    def end_capture(self) -> Any:
        """End the recording; returns what ``launch`` runs."""
        graph = self._check(self._runtime.cudaStreamEndCapture(self.stream))
        executable = self._check(self._runtime.cudaGraphInstantiate(graph, 0))
        self._check(self._runtime.cudaGraphDestroy(graph))
        return executable

    def launch(self, executable: Any) -> None:
        """Enqueue a recorded graph."""
        self._check(self._runtime.cudaGraphLaunch(executable, self.stream))

    def forget(self, executable: Any) -> None:
        """Destroy a recorded graph."""
        self._runtime.cudaGraphExecDestroy(executable)

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        self._check(self._runtime.cudaMemcpyAsync(target, source, nbytes, kind, self.stream))

    def _check(self, returned: Any) -> Any:
        return _value(self._runtime, returned)


class DeviceBuffer:
    """A run of bytes on the GPU."""

    def __init__(self, cuda: Cuda, address: int, nbytes: int) -> None:
        self.address, self.nbytes = address, nbytes
        self._cuda = cuda

    def __del__(self) -> None:
        self._cuda.free(self.address)


def open_cuda() -> tuple[Cuda, str]:
    """Open the first GPU.

    Returns:
        It, and its compute capability.

    Raises:
        MissingExtraError: cuda-python is not installed.
        EngineError: There is no GPU, or no driver for it.
    """
    runtime = _bindings()
    if runtime is None:
        raise MissingExtraError("cuda-bindings is not installed, engines run through it", _NO_BINDINGS)
    capability = _capability(runtime)
    if capability is None:
        raise EngineError("no NVIDIA GPU with a driver is here, an engine needs one", "run with --device cpu")
    return Cuda(runtime), capability


def compute_capability() -> str | None:
    """Of the first GPU, such as ``"8.9"``; None where there is none, or nothing that could tell."""
    runtime = _bindings()
    return None if runtime is None else _capability(runtime)


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return None


def _capability(runtime: Any) -> str | None:
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        return None
    attributes = runtime.cudaDeviceAttr
    wanted = attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor
    major, minor = (_value(runtime, runtime.cudaDeviceGetAttribute(name, 0)) for name in wanted)
    return f"{major}.{minor}"


def _value(runtime: Any, returned: Any) -> Any:
    """What a call gave besides its error, which must be success."""
    error, *values = returned if isinstance(returned, tuple) else (returned,)
    if error != runtime.cudaError_t.cudaSuccess:
        name = getattr(error, "name", str(error))
        raise EngineError(f"CUDA reports {name}", "nvidia-smi says whether the GPU works and what uses it")
    return values[0] if values else None
