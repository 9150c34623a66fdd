"""A graph becomes a plan, with whichever TensorRT is installed; needs no GPU with TensorRT-RTX."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_export.engine.network import check_network, let_attention_fall_apart, parse_network
from llama_export.engine.options import EngineOptions, has_precision
from llama_export.errors import EngineError, OptionError
from llama_export.progress import item_progress
from llama_runtime.engine_file import EngineFile, Profile
from llama_runtime.tensorrt_library import Library

_UNFUSED = "not supported by a dedicated kernel"
_NO_FLOAT32 = "7."  # TensorRT-RTX compiles no float32 product for Turing


@dataclass(frozen=True)
class Built:
    """What a build gave.

    Attributes:
        seconds: How long parsing and building took.
        fused: Whether every attention is one fused kernel.
        messages: What the builder warned of.
    """

    seconds: float
    fused: bool
    messages: tuple[str, ...]


def target_capabilities(library: Library, options: EngineOptions, here: str | None) -> tuple[str, ...]:
    """The GPUs that a build is for.

    Args:
        library: The builder; TensorRT builds for this machine's GPU alone.
        options: What is wanted.
        here: Compute capability of this machine's GPU; None where there is none.

    Raises:
        OptionError: The builder cannot build for one of them, or so.
    """
    _check_product(library, options)
    wanted = options.compute_capabilities
    if library.product == "tensorrt":
        if here is None or any(capability != here for capability in wanted):
            found = "no GPU is here" if here is None else f"this GPU has {here}"
            raise OptionError(
                f"tensorrt builds for the GPU at hand alone, {found}",
                "build on the machine that will run it, or with --builder tensorrt-rtx",
            )
        return (here,)
    known = tuple(
        capability
        for capability in _known_capabilities(library.module)
        if has_precision(capability, options)
        and not (options.computes_in == "fp32" and capability.startswith(_NO_FLOAT32))
    )
    for capability in wanted:
        if capability not in known:
            raise OptionError(
                f"tensorrt-rtx builds {options.precision} for compute capability {', '.join(known)}, "
                f"{capability} is asked for",
                "use --builder tensorrt on a machine with such a GPU",
            )
    return wanted or ((here,) if here in known else known)


def _check_product(library: Library, options: EngineOptions) -> None:
    """Refuse what TensorRT alone has: TensorRT-RTX fails at each without a GPU, or measures nothing."""
    for what, wanted in {
        "version-compatible plans": options.version_compatible,
        "refittable plans": options.refittable,
        "plans without weights": options.stripped,
        "timing cache": options.timing_cache is not None,
    }.items():
        if wanted and library.product != "tensorrt":
            raise OptionError(
                f"{library.product} has no {what}", "leave that option out, or use --builder tensorrt"
            )


def _known_capabilities(trt: Any) -> dict[str, Any]:
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def build_plan(
    library: Library, graph: Path, engine: EngineFile, plan: Path, timing_cache: Path | None = None
) -> Built:
    """Build an engine and write its plan.

    Args:
        library: The builder.
        graph: The ONNX file, beside its data.
        engine: Its sidecar, as far as it is known: limits, profiles, interface, GPUs.
        plan: Where the plan goes; nothing is written unless the build succeeds.
        timing_cache: As ``EngineOptions`` has it.

    Raises:
        EngineError: The parser or the builder refuses, or the network is not what the graph says.
    """
    start, logger = time.monotonic(), _quiet_logger(library.module)
    # Fused attention is what makes an engine fast: where there could be a kernel, it is demanded.
    fused = engine.dtype != "float32"
    serialized = _build(library, graph, engine, logger, timing_cache, fused=fused)
    if serialized is None and fused and any(_UNFUSED in text for text in logger.errors):
        fused, logger = False, _quiet_logger(library.module)
        serialized = _build(library, graph, engine, logger, timing_cache, fused=False)
    if serialized is None:
        cause = _one_line(logger.errors[0]) if logger.errors else "it gives no reason"
        raise EngineError(
            f"{graph.name}: {library.product} {library.version} cannot build it: {cause}",
            "llama-export trt --onnx-only keeps the graph, for trtexec or a report",
        )
    with plan.open("wb") as file:
        file.write(memoryview(serialized))
    return Built(time.monotonic() - start, fused, tuple(map(_one_line, logger.warnings)))


def _build(
    library: Library, graph: Path, engine: EngineFile, logger: Any, timing_cache: Path | None, *, fused: bool
) -> Any:
    trt = library.module
    builder = trt.Builder(logger)
    network, _parser = parse_network(library, builder, logger, graph)
    check_network(library, network, engine)
    if not fused:
        let_attention_fall_apart(library, network)
    config = builder.create_builder_config()
    _choose_gpus(library, config, engine)
    for name in _flags(engine):
        config.set_flag(getattr(trt.BuilderFlag, name))
    if timing_cache is not None:
        _give_timings(config, timing_cache)
    for number, profile in enumerate(engine.profiles):
        _add_profile(builder, network, config, profile, number)
    with _progress(trt, config, graph.stem):
        plan = builder.build_serialized_network(network, config)
    if plan is not None and timing_cache is not None:
        timing_cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return plan


def _flags(engine: EngineFile) -> list[str]:
    """The builder's flags for what an engine is to be, by their names."""
    wanted = {
        "VERSION_COMPATIBLE": engine.version_compatible,
        "REFIT": engine.refittable,
        "STRIP_PLAN": engine.stripped,
        # The weights that are put in again are those that were left out.
        "REFIT_IDENTICAL": engine.stripped and not engine.refittable,
    }
    return [name for name, is_so in wanted.items() if is_so]


def _give_timings(config: Any, file: Path) -> None:
    """Let the builder know what it measured before.

    Raises:
        EngineError: The file is no timing cache, or that of another version or GPU.
    """
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise EngineError(f"{file}: cannot be read ({error.strerror})") from None
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(f"{file}: is no timing cache of this builder and GPU", "name a new file")


def _choose_gpus(library: Library, config: Any, engine: EngineFile) -> None:
    if library.product != "tensorrt-rtx":
        return
    known = _known_capabilities(library.module)
    config.num_compute_capabilities = len(engine.compute_capabilities)
    for index, capability in enumerate(engine.compute_capabilities):
        config.set_compute_capability(known[capability], index)


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile, number: int) -> None:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name == "kv_bucket" and profile.buckets is not None:
            made.set_shape_input(tensor.name, *((bucket,) for bucket in profile.buckets))
            continue
        shapes = [
            _shape(tensor, rows, tokens) for rows, tokens in zip(profile.rows, profile.tokens, strict=True)
        ]
        made.set_shape(tensor.name, *shapes)
    if config.add_optimization_profile(made) < 0:
        raise EngineError(f"profile {number} is not valid: {profile}")


def _shape(tensor: Any, rows: int, tokens: int) -> tuple[int, ...]:
    """A shape of an input: its first open dim is the rows, its second the tokens."""
    open_sizes = iter((rows, tokens))
    return tuple(next(open_sizes) if dim < 0 else dim for dim in tensor.shape)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quiet_logger(trt: Any) -> Any:
    """A logger that keeps what it is told."""

    class Quiet(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(text)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(text)

    return Quiet()


@contextlib.contextmanager
def _progress(trt: Any, config: Any, title: str) -> Iterator[None]:
    """Show the builder's outermost phase as a bar."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost: str | None = None
            self.bars = contextlib.ExitStack()
            self.advance: Any = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if self.outermost is None and parent is None:
                self.outermost = phase
                self.advance = self.bars.enter_context(item_progress(f"building {title}", steps))

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self.outermost:
                self.advance(1)
            return True

        def phase_finish(self, phase: str) -> None:
            if phase == self.outermost:
                self.outermost = None
                self.bars.close()

    monitor = Monitor()
    config.progress_monitor = monitor
    try:
        yield
    finally:
        monitor.bars.close()
