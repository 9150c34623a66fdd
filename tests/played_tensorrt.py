"""TensorRT and CUDA, played on the CPU behind the calls that ``llama_runtime`` makes of them.

"Device memory" is host memory, and a context runs the engine's graph in ONNX Runtime on the very addresses
that it was told. It refuses what TensorRT refuses: shapes outside of the profile, inputs without a shape or
an address. A plan is the path of the ONNX file.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnxruntime
from played_engine import DTYPES

OK = SimpleNamespace(name="cudaSuccess")
KIND = Enum("Kind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice"])
FULL = SimpleNamespace(name="cudaErrorMemoryAllocation")


class PlayedCuda:
    """What ``cuda.bindings.runtime`` offers; ``limit`` is how many bytes there are."""

    cudaError_t = SimpleNamespace(cudaSuccess=OK, cudaErrorMemoryAllocation=FULL)  # noqa: N815
    cudaMemcpyKind = KIND  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, limit: int = 1 << 30) -> None:
        self.buffers: dict[int, ctypes.Array] = {}
        self.limit, self.recording, self.launched, self.destroyed = limit, None, 0, 0

    def cudaStreamCreate(self):  # noqa: N802
        return OK, 7

    def cudaMalloc(self, nbytes):  # noqa: N802
        if sum(map(len, self.buffers.values())) + nbytes > self.limit:
            return FULL, None
        buffer = (ctypes.c_char * nbytes)(*b"\x55" * min(nbytes, 4))
        self.buffers[ctypes.addressof(buffer)] = buffer
        return OK, ctypes.addressof(buffer)

    def cudaFree(self, address):  # noqa: N802
        del self.buffers[address]
        return (OK,)

    def cudaMemsetAsync(self, address, value, nbytes, stream):  # noqa: N802
        self._in_bounds(address, nbytes)
        ctypes.memset(address, value, nbytes)
        return (OK,)

    def cudaMemcpyAsync(self, target, source, nbytes, kind, stream):  # noqa: N802
        assert self.recording is None
        if kind != self.cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self._in_bounds(target, nbytes)
        if kind != self.cudaMemcpyKind.cudaMemcpyHostToDevice:
            self._in_bounds(source, nbytes)
        ctypes.memmove(target, source, nbytes)
        return (OK,)

    def _in_bounds(self, address, nbytes):
        assert any(
            start <= address and address + nbytes <= start + len(b) for start, b in self.buffers.items()
        )

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert self.recording is None
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):  # noqa: N802
        recorded, self.recording = self.recording, None
        return OK, recorded

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        return OK, tuple(graph)

    def cudaGraphDestroy(self, graph):  # noqa: N802
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):  # noqa: N802
        self.launched += 1
        for run in executable:
            run()
        return (OK,)

    def cudaGraphExecDestroy(self, executable):  # noqa: N802
        self.destroyed += 1
        return (OK,)


class PlayedContext:
    def __init__(self, engine) -> None:
        self.engine, self.profile = engine, None
        self.shapes, self.addresses, self.memory = {}, {}, None

    def set_optimization_profile_async(self, index, stream):
        self.profile = self.engine.file.profiles[index]
        return True

    def set_device_memory(self, address, nbytes):
        self.memory = address

    def set_input_shape(self, name, shape):
        spec = next(spec for spec in self.engine.file.inputs if spec.name == name)
        open_dims = iter((self.profile.rows, self.profile.tokens))
        for dim, size in zip(spec.shape, shape, strict=True):
            low, high = (dim, dim) if isinstance(dim, int) else next(open_dims)[::2]
            if not low <= size <= high:
                return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def infer_shapes(self):
        names = [spec.name for spec in self.engine.file.inputs]
        return [name for name in names if name not in self.shapes or name not in self.addresses]

    def is_stream_capturable(self, stream):
        return self.engine.capturable

    def execute_async_v3(self, stream):
        cuda = self.engine.cuda
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        assert self.memory is not None
        bucket = None
        if "kv_bucket" in addresses:
            bucket = int(np.ctypeslib.as_array((ctypes.c_int64 * 1).from_address(addresses["kv_bucket"]))[0])
            low, _, high = self.profile.buckets
            if not low <= bucket <= high:
                return False

        def run():
            self.engine.play(shapes, addresses, bucket)

        if cuda.recording is not None:
            cuda.recording.append(run)
        else:
            run()
            self.engine.runs += 1
        return True


class PlayedPlan:
    """``ICudaEngine``."""

    def __init__(self, path, file, cuda) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.file, self.cuda, self.runs, self.capturable = file, cuda, 0, True
        self.weights = None  # the graph that they were taken from, in a plan without any
        self.names = [v.name for v in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(file.profiles)
        self.aliases = dict(file.aliases)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_aliased_input_tensor(self, name):
        return self.aliases.get(name)

    def get_device_memory_size_for_profile_v2(self, index):
        return 1024 * (index + 1)

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        return PlayedContext(self)

    def play(self, shapes, addresses, bucket):
        assert self.weights or not self.file.stripped
        binding = self.session.io_binding()
        dtype_of = {v.name: DTYPES[v.type] for v in (*self.session.get_inputs(), *self.session.get_outputs())}
        for value in self.session.get_inputs():
            if value.name == "kv_bucket":  # the value at the time of recording, as on a GPU
                binding.bind_cpu_input(value.name, np.array([bucket]))
            else:
                place = ("cpu", 0, dtype_of[value.name], shapes[value.name], addresses[value.name])
                binding.bind_input(value.name, *place)
        B, T = shapes["input_ids"]
        for spec in self.file.outputs:
            sizes = iter((B, T))
            shape = [dim if isinstance(dim, int) else next(sizes) for dim in spec.shape]
            binding.bind_output(spec.name, "cpu", 0, dtype_of[spec.name], shape, addresses[spec.name])
        self.session.run_with_iobinding(binding)


def played_module(file, cuda):
    """``tensorrt``, as far as the runtime calls it; its last engine is kept in ``plans``."""
    plans = []

    class Runtime:
        def __init__(self, logger) -> None:
            pass

        def deserialize_cuda_engine(self, plan):
            if not plan:
                return None
            plans.append(PlayedPlan(plan.decode(), file, cuda))
            return plans[-1]

    class Refitter:
        def __init__(self, engine, logger) -> None:
            self.engine = engine

        def refit_cuda_engine(self):
            return self.engine.weights is not None

    class OnnxParserRefitter:
        def __init__(self, refitter, logger) -> None:
            self.refitter = refitter

        def refit_from_file(self, path):
            self.refitter.engine.weights = path
            return True

    logger = SimpleNamespace(ERROR=1)
    return SimpleNamespace(
        Runtime=Runtime,
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        Refitter=Refitter,
        OnnxParserRefitter=OnnxParserRefitter,
        plans=plans,
        logger=logger,
    )
