"""An engine on a GPU: TensorRT's contexts, device memory and CUDA graphs behind ``engine.Engine``.

TensorRT comes in as a module, CUDA as an object, so that both can be played in tests. One context a profile,
all in the same scratch memory, since everything runs in one stream.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llama_runtime.cuda import Cuda, DeviceBuffer
from llama_runtime.device_memory import DeviceMemory
from llama_runtime.engine import Feeds
from llama_runtime.engine_file import EngineFile
from llama_runtime.errors import EngineError
from llama_runtime.interface import TensorSpec
from llama_runtime.tensorrt_library import Library

_HOST_INPUT = "kv_bucket"


class TensorRTEngine:
    """A plan, loaded.

    Args:
        library: What the plan was built with.
        cuda: The GPU.
        file: The engine's sidecar.
        plan: Its bytes, checked.
        graph: The ONNX file that has its weights, where it has none of its own.

    Raises:
        EngineError: TensorRT cannot load it, or it is not what the sidecar says.
    """

    def __init__(
        self, library: Library, cuda: Cuda, file: EngineFile, plan: bytes, graph: Path | None = None
    ) -> None:
        trt = library.module
        self._trt, self._cuda, self._file = trt, cuda, file
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{library.product} {library.version} cannot load the plan on this GPU",
                "build it again here: llama-export trt BUNDLE --force",
            )
        if graph is not None:
            self._put_weights_in(graph)
        self._check()
        names = set(file.aliases.values())
        self._caches = [spec for spec in file.inputs if spec.name in names]
        self._feeds = [spec for spec in file.inputs if spec.name not in names and spec.name != _HOST_INPUT]
        self._results = [spec for spec in file.outputs if spec.name not in file.aliases]
        self._contexts = self._make_contexts()
        self._buffers: dict[str, DeviceBuffer] = {}
        # The host's input must stay where a context was told that it is.
        self._bucket = np.zeros(1, np.int64)
        self.use_graphs = True

    def allocate(self, rows: int) -> DeviceMemory:
        """As ``engine.Engine`` says."""
        return DeviceMemory(self._cuda, self._caches, rows)

    def run(
        self, profile: int, feeds: Feeds, memory: DeviceMemory | None = None, first_row: int = 0
    ) -> dict[str, np.ndarray]:
        """As ``engine.Engine`` says; a decode of a shape that ran before is replayed from its recording."""
        B, T = feeds["input_ids"].shape
        bucket = int(feeds[_HOST_INPUT][0]) if _HOST_INPUT in feeds else 0
        moved = [self._upload(spec, feeds[spec.name]) for spec in self._feeds]
        results = {spec.name: np.empty(_filled(spec, B, T), spec.dtype) for spec in self._results}
        moved += [self._buffer(name, array.nbytes) for name, array in results.items()]
        # A buffer that grew has moved: what was recorded with its old address is never launched again.
        key = (profile, bucket, B, first_row, *(buffer.address for buffer in moved))
        recorded = memory.graphs.get(key) if memory is not None else None
        if recorded is not None:
            self._cuda.launch(recorded)
        else:
            context = self._bind(profile, feeds, bucket, memory, first_row)
            self._execute(context)
            if memory is not None and T == 1 and self.use_graphs:
                # Recorded behind a first run, in which kernels may still be loaded or compiled.
                executable = self._record(context)
                if executable is not None:
                    memory.graphs[key] = executable
        for name, array in results.items():
            self._cuda.download(array, self._buffers[name].address)
        return results

    def _put_weights_in(self, graph: Path) -> None:
        """Give a plan without weights those of its graph."""
        trt = self._trt
        refitter = trt.Refitter(self._engine, self._logger)
        parser = trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise EngineError(f"{graph}: its weights do not fit the plan", "build it again, with --force")

    def _check(self) -> None:
        """The plan's interface and aliases must be those of the sidecar: what is bound depends on them."""
        engine, file = self._engine, self._file
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        wanted = [spec.name for spec in (*file.inputs, *file.outputs)]
        if sorted(names) != sorted(wanted):
            differing = ", ".join(sorted(set(names) ^ set(wanted))[:4])
            raise EngineError(f"the plan is not the one that its sidecar describes: {differing}")
        for output, source in file.aliases.items():
            found = engine.get_aliased_input_tensor(output)
            if found != source:
                raise EngineError(
                    f"the plan does not write {output} in place of {source}, but of {found}: "
                    "its cache would be lost after every run"
                )
        if engine.num_optimization_profiles != len(file.profiles):
            raise EngineError(
                f"the plan has {engine.num_optimization_profiles} profiles, its sidecar {len(file.profiles)}"
            )

    def _make_contexts(self) -> list[Any]:
        engine, contexts = self._engine, []
        nbytes = max(
            int(engine.get_device_memory_size_for_profile_v2(index))
            for index in range(engine.num_optimization_profiles)
        )
        self._scratch = self._cuda.allocate(nbytes)
        for index in range(engine.num_optimization_profiles):
            context = self._new_context()
            if context is None or not context.set_optimization_profile_async(index, self._cuda.stream):
                raise EngineError("TensorRT cannot make a context", "nvidia-smi says what uses the GPU")
            context.set_device_memory(self._scratch.address, self._scratch.nbytes)
            contexts.append(context)
        self._cuda.synchronize()
        return contexts

    def _new_context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        specialization = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is None:
            return self._engine.create_execution_context(strategy)
        # TensorRT-RTX compiles kernels when they are first needed; a recording must not hold makeshift ones.
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        return self._engine.create_execution_context(config)

    def _bind(
        self, profile: int, feeds: Feeds, bucket: int, memory: DeviceMemory | None, first_row: int
    ) -> Any:
        """Tell a context every shape and address."""
        context = self._contexts[profile]
        rows = feeds["input_ids"].shape[0]
        for spec in self._feeds:
            _must(context.set_input_shape(spec.name, feeds[spec.name].shape), spec.name)
            _must(context.set_tensor_address(spec.name, self._buffers[spec.name].address), spec.name)
        if bucket:
            self._bucket[0] = bucket
            _must(context.set_input_shape(_HOST_INPUT, (1,)), _HOST_INPUT)
            _must(context.set_tensor_address(_HOST_INPUT, self._bucket.ctypes.data), _HOST_INPUT)
        present_of = {source: output for output, source in self._file.aliases.items()}
        if memory is not None:
            for spec, buffer, nbytes in zip(self._caches, memory.buffers, memory.row_bytes, strict=True):
                address = buffer.address + first_row * nbytes
                _must(context.set_input_shape(spec.name, (rows, *spec.shape[1:])), spec.name)
                for name in (spec.name, present_of[spec.name]):
                    _must(context.set_tensor_address(name, address), name)
        for spec in self._results:
            _must(context.set_tensor_address(spec.name, self._buffers[spec.name].address), spec.name)
        missing = context.infer_shapes()
        if missing:
            raise EngineError(f"TensorRT misses shapes or values of {', '.join(missing)}")
        return context

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise EngineError("TensorRT cannot run the engine", "see its own message on stderr")

    def _record(self, context: Any) -> Any:
        """Record a run as a CUDA graph; None where this context's run cannot be recorded."""
        capturable = getattr(context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._cuda.stream):
            return None
        self._cuda.synchronize()
        self._cuda.begin_capture()
        self._execute(context)
        return self._cuda.end_capture()

    def _upload(self, spec: TensorSpec, array: np.ndarray) -> DeviceBuffer:
        buffer = self._buffer(spec.name, array.nbytes)
        self._cuda.upload(buffer.address, array)
        return buffer

    def _buffer(self, name: str, nbytes: int) -> DeviceBuffer:
        """The buffer of an input or output, made anew where it is too small."""
        found = self._buffers.get(name)
        if found is None or found.nbytes < nbytes:
            self._cuda.synchronize()  # before the old one goes
            found = self._buffers[name] = self._cuda.allocate(nbytes)
        return found


def _must(ok: bool, name: str) -> None:
    if not ok:
        raise EngineError(f"TensorRT refuses shape or address of {name}")


def _filled(spec: TensorSpec, rows: int, tokens: int) -> tuple[int, ...]:
    """An output's shape in a run: its first open dim is the rows, its second the tokens."""
    sizes = iter((rows, tokens))
    return tuple(dim if isinstance(dim, int) else next(sizes) for dim in spec.shape)
