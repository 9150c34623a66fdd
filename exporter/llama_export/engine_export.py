"""Checkpoint or bundle -> a bundle with a TensorRT engine in it, published as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llama_export.bundle import Stage, check_target, place_file
from llama_export.checkpoint import Checkpoint, open_merged
from llama_export.engine.add import Added, Target, add_engine, engine_name
from llama_export.engine.build import target_capabilities
from llama_export.engine.options import EngineOptions, Limits, limits
from llama_export.engine.source import check_source, open_bundle
from llama_export.engine.weights import plan_engine_weights
from llama_export.errors import BundleError, OptionError
from llama_export.graph.contract import check_path
from llama_export.pipeline import default_output, export, refuse_nesting
from llama_export.recipe import Recipe
from llama_export.weights.precision import PRECISIONS
from llama_runtime.cuda import compute_capability
from llama_runtime.engine_file import FOLDER
from llama_runtime.manifest import MANIFEST_NAME, Manifest, check_structure, read_manifest
from llama_runtime.tensorrt_library import find_library

if TYPE_CHECKING:
    from llama_export.model.config import LlamaConfig

# Of host memory while an engine is built, beside what weights need: measured with TensorRT-RTX 1.7
# (benchmarks/LOG.md), and only used to say roughly what it will take.
_BUILDER_BYTES, _COPIES_OF_WEIGHTS = 600 << 20, 3.4


@dataclass(frozen=True)
class EnginePlan:
    """What a build will do, before any work.

    Attributes:
        source: Checkpoint or bundle.
        output: The bundle that will hold the engine.
        options: The choices.
        limits: What they mean for this model.
        builder: Product and version; None where the graph alone is written.
        compute_capabilities: The GPUs that it is for.
        weight_bytes: Size of the weights in the engine.
        cache_bytes: Keys and values of all rows, on the GPU.
        build_memory_bytes: Of host memory, roughly.
        notes: What a person should know of the choices, in sentences.
    """

    source: Path
    output: Path
    options: EngineOptions
    limits: Limits
    builder: str | None
    compute_capabilities: tuple[str, ...]
    weight_bytes: int
    cache_bytes: int
    build_memory_bytes: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}


@dataclass(frozen=True)
class EngineExported:
    """A published bundle with its engine.

    Attributes:
        output: The bundle.
        added: What was put into it.
        plan: As it was said before.
        seconds: Duration of everything.
    """

    output: Path
    added: Added
    plan: EnginePlan
    seconds: float


class _Learned(Protocol):
    """A learned prompt, of a checkpoint or a bundle."""

    @property
    def positions(self) -> int: ...


@dataclass(frozen=True)
class _Prepared:
    plan: EnginePlan
    target: Target | None
    recipe: Recipe


def export_engine(
    source: str | Path,
    output: str | Path | None = None,
    *,
    options: EngineOptions | None = None,
    recipe: Recipe | None = None,
    onnx_only: bool = False,
    force: bool = False,
) -> EngineExported:
    """Build an engine; nothing is left behind unless it succeeds.

    Args:
        source: A bundle, which gets the engine, or a checkpoint, which is exported to a bundle first.
        output: The bundle; default the one that was named, or ``artifacts/<name>``.
        options: What engine; default bfloat16.
        recipe: How a checkpoint is exported.
        onnx_only: Write the graph that an engine is built from, and no engine.
        force: Replace an engine of the same name, or an existing bundle at ``output``.

    Raises:
        LlamaExportError: Bad input or output, a graph with a trap, or a failed build.
    """
    start = time.monotonic()
    folder, options = Path(source), options or EngineOptions()
    ready = prepare_engine(folder, output, options, recipe, onnx_only=onnx_only, force=force)
    found: list[Added] = []

    def finish(stage: Path, manifest: Manifest) -> Manifest:
        found.append(add_engine(stage, manifest, options, ready.target))
        return found[0].manifest

    if _is_extended(folder, output):
        _extend_bundle(folder, ready.plan.output, ready.plan.weight_bytes, finish)
    else:
        export(folder, ready.plan.output, recipe=ready.recipe, force=force, finish=finish)
    return EngineExported(ready.plan.output, found[0], ready.plan, time.monotonic() - start)


def _is_extended(folder: Path, output: str | Path | None) -> bool:
    """Whether a folder is a bundle that gets the engine, or has a copy that does; else it is a checkpoint.

    A checkpoint with its bundle beside is one for an output elsewhere.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return False
    elsewhere = output is not None and Path(output).resolve() != folder.resolve()
    return not (elsewhere and read_manifest(folder).weights == "beside")


def prepare_engine(
    folder: Path,
    output: str | Path | None,
    options: EngineOptions,
    recipe: Recipe | None,
    *,
    onnx_only: bool,
    force: bool,
) -> _Prepared:
    """Refuse all that can be refused before any work; writes nothing.

    Raises:
        LlamaExportError: Bad input or output, with one sentence and a hint.
    """
    if _is_extended(folder, output):
        checkpoint, target, learned = _prepare_bundle(folder, output, options, recipe, force=force)
    else:
        checkpoint, target, learned = _prepare_checkpoint(folder, output, recipe, force=force)
    bounds = limits(checkpoint.config, options)
    if learned and learned.positions >= bounds.max_seq:
        raise OptionError(
            f"max_seq is {bounds.max_seq}, of which the learned prompt takes {learned.positions}",
            "use a larger --max-seq",
        )
    building = None
    if not onnx_only:
        library = find_library(options.builder)
        building = Target(library, target_capabilities(library, options, compute_capability()))
    weights = plan_engine_weights(checkpoint, options, engine_name(options))
    weight_bytes = sum(weight.nbytes for weight in weights.weights.values())
    plan = EnginePlan(
        source=folder,
        output=target,
        options=options,
        limits=bounds,
        builder=f"{building.library.product} {building.library.version}" if building else None,
        compute_capabilities=building.compute_capabilities if building else (),
        weight_bytes=weight_bytes,
        cache_bytes=_cache_bytes(checkpoint.config, options, bounds),
        build_memory_bytes=0 if onnx_only else int(_COPIES_OF_WEIGHTS * weight_bytes) + _BUILDER_BYTES,
        notes=weights.notes,
    )
    return _Prepared(plan, building, _that_fits(checkpoint.config, recipe or Recipe()))


def _that_fits(config: LlamaConfig, recipe: Recipe) -> Recipe:
    """The recipe, on the sdpa path where the bundle's own graph cannot be on the flash path."""
    try:
        check_path(config, recipe.attention)
    except OptionError:
        return replace(recipe, attention="sdpa")
    return recipe


def _prepare_bundle(
    folder: Path, output: str | Path | None, options: EngineOptions, recipe: Recipe | None, *, force: bool
) -> tuple[Checkpoint, Path, _Learned | None]:
    if recipe is not None and recipe != Recipe():
        raise OptionError(
            f"{folder}: is a bundle already, --adapter, --task and --no-verify are for checkpoints",
            "leave them out",
        )
    manifest = read_manifest(folder)
    check_source(folder, manifest)
    check_structure(folder, manifest)
    target = folder if output is None else Path(output)
    if target.resolve() == folder.resolve():
        check_target(folder, force=True)
        name = engine_name(options)
        if not force and (folder / FOLDER / f"{name}.json").exists():
            raise BundleError(f"{folder}: has an engine {name} already", "add --force to replace it")
    else:
        refuse_nesting(folder, target)
        check_target(target, force=force)
    return open_bundle(folder, manifest), target, manifest.soft_prompt


def _prepare_checkpoint(
    folder: Path, output: str | Path | None, recipe: Recipe | None, *, force: bool
) -> tuple[Checkpoint, Path, _Learned | None]:
    recipe = recipe or Recipe()
    source = open_merged(folder, recipe.adapters, recipe.task)
    target = default_output(folder) if output is None else Path(output)
    refuse_nesting(folder, target)
    check_target(target, force=force)
    return source, target, source.soft_prompt


def _cache_bytes(config: LlamaConfig, options: EngineOptions, bounds: Limits) -> int:
    if not config.generates:
        return 0
    slot = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return slot * PRECISIONS[options.dtype].itemsize * bounds.max_seq * bounds.max_batch


def _extend_bundle(
    folder: Path, target: Path, nbytes: int, finish: Callable[[Path, Manifest], Manifest]
) -> None:
    """Stage the bundle anew, sharing its bytes, and publish it with what ``finish`` adds."""
    manifest = read_manifest(folder)
    # The graph's data where they are written anew, and a plan, which holds some weights in several layouts.
    with Stage(target, 3 * nbytes) as stage:
        for entry in manifest.files:
            place = stage.folder / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place_file(folder / entry.path, place)
        finish(stage.folder, manifest)
        stage.publish()


__all__ = ["EngineExported", "EnginePlan", "export_engine", "prepare_engine"]
