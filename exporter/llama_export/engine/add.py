"""Put an engine into a staged bundle: its graph, its weights, its plan, its sidecar."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from llama_export.bundle import place_file
from llama_export.checkpoint import Checkpoint
from llama_export.engine.build import Built, build_plan
from llama_export.engine.lint import check_graph
from llama_export.engine.options import EngineOptions, Limits, limits
from llama_export.engine.profiles import profiles
from llama_export.engine.source import open_bundle
from llama_export.engine.weights import HEAD_WEIGHT, TABLE_WEIGHT, plan_engine_weights
from llama_export.graph import contract, static_contract
from llama_export.graph.passes import separate_head
from llama_export.graph.static_graph import build_static_graph
from llama_export.progress import byte_progress
from llama_export.weights import FileDigest, WeightPlan, write_weights
from llama_export.weights.attach import point_at_weights
from llama_runtime.engine_file import FOLDER, EngineFile
from llama_runtime.extras import hidden_state_names
from llama_runtime.interface import TensorSpec
from llama_runtime.manifest import MANIFEST_NAME, FileEntry, Manifest
from llama_runtime.tensorrt_library import Library


@dataclass(frozen=True)
class Target:
    """What builds, and for which GPUs."""

    library: Library
    compute_capabilities: tuple[str, ...]


@dataclass(frozen=True)
class Added:
    """What was put into the bundle.

    Attributes:
        manifest: As it now stands there.
        engine: The sidecar.
        name: Of the engine.
        built: What the builder did; None where the graph alone was written.
    """

    manifest: Manifest
    engine: EngineFile
    name: str
    built: Built | None


def engine_name(options: EngineOptions) -> str:
    """An engine goes by its precision."""
    return options.precision


def add_engine(folder: Path, manifest: Manifest, options: EngineOptions, target: Target | None) -> Added:
    """Make an engine of a bundle's own weights and put it there.

    Args:
        folder: The stage, a complete bundle; an engine of the same name is replaced.
        manifest: As it stands there.
        options: What is wanted.
        target: What builds; None writes the graph alone.

    Raises:
        LlamaExportError: The bundle cannot have it, the graph has a trap in it, or the build failed.
    """
    source, name = open_bundle(folder, manifest), engine_name(options)
    bounds = limits(source.config, options)
    home = folder / FOLDER
    home.mkdir(exist_ok=True)
    kept = _remove_engine(folder, manifest, name)
    states = hidden_state_names(manifest) == [static_contract.LAST_HIDDEN_STATE]
    weights = plan_engine_weights(source, options, name)
    digests = _write_graph(source, weights, options, bounds, home, kept, states=states)
    graph = home / f"{name}.onnx"
    engine = _describe(source, options, bounds, _entry(folder, graph), target, states=states)
    check_graph(onnx.load(graph, load_external_data=False), graph.name)
    built = None
    if target is not None:
        plan = home / f"{name}.plan"
        built = build_plan(target.library, graph, engine, plan, options.timing_cache)
        engine = dataclasses.replace(
            engine, plan=_entry(folder, plan), product=target.library.product,
            product_version=target.library.version, build_seconds=round(built.seconds, 3),
        )  # fmt: skip
        if not engine.stripped:
            # The plan holds the weights; graph and data can be made again at any time.
            for path in (graph, *(home / location for location in digests)):
                path.unlink()
            digests = {}
    sidecar = home / f"{name}.json"
    sidecar.write_text(engine.to_json(), encoding="utf-8")
    new = [_entry(folder, sidecar), *([engine.plan] if engine.plan else [])]
    new += [engine.onnx] if engine.plan is None or engine.stripped else []
    new += [FileEntry(f"{FOLDER}/{place}", d.size_bytes, d.sha256) for place, d in digests.items()]
    files = tuple(sorted((*kept, *new), key=lambda entry: entry.path))
    manifest = dataclasses.replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return Added(manifest, engine, name, built)


def _remove_engine(folder: Path, manifest: Manifest, name: str) -> list[FileEntry]:
    """Remove the files of an engine of this name; returns the entries of all others."""
    own = [entry for entry in manifest.files if _is_part_of(entry.path, name)]
    for entry in own:
        (folder / entry.path).unlink()
    return [entry for entry in manifest.files if entry not in own]


def _is_part_of(path: str, name: str) -> bool:
    return path.startswith((f"{FOLDER}/{name}.onnx", f"{FOLDER}/{name}.plan", f"{FOLDER}/{name}.json"))


def _write_graph(
    source: Checkpoint, plan: WeightPlan, options: EngineOptions, bounds: Limits, home: Path,
    known: list[FileEntry], *, states: bool,
) -> dict[str, FileDigest]:  # fmt: skip
    """Write the graph and its data; returns the digest of each data file, by location."""
    model = build_static_graph(source.config, options.dtype, bounds.max_seq, states)
    if HEAD_WEIGHT in plan.weights and HEAD_WEIGHT not in model.graph.initializers:
        separate_head(model.graph, TABLE_WEIGHT, HEAD_WEIGHT)
    point_at_weights(model, plan)
    content: bytes = ir.to_proto(model).SerializeToString()
    (home / plan.model_name).write_bytes(content)
    digests: dict[str, FileDigest] = {}
    written = [location for location, file in plan.data_files.items() if file is None]
    if written:
        total = sum(path.stat().st_size for path in source.weight_files)
        with byte_progress("converting weights", total) as advance:
            _, digests = write_weights(source, plan, home, advance)
    entries = {(home.parent / entry.path).resolve(): entry for entry in known}
    for location, file in plan.data_files.items():
        if file is not None:
            place_file(file, home / location)
            digests[location] = FileDigest(entries[file].size_bytes, entries[file].sha256)
    return digests


def _describe(
    source: Checkpoint, options: EngineOptions, bounds: Limits, graph: FileEntry, target: Target | None,
    *, states: bool,
) -> EngineFile:  # fmt: skip
    """The sidecar, as far as it is known before the build."""
    config, dtype = source.config, options.dtype
    return EngineFile(
        task=config.head.task,
        product=None,
        product_version=None,
        compute_capabilities=target.compute_capabilities if target else options.compute_capabilities,
        precision=options.precision,
        dtype=dtype,  # type: ignore[arg-type]
        max_seq=bounds.max_seq,
        prefill_chunk=bounds.prefill_chunk,
        max_batch=bounds.max_batch,
        buckets=bounds.buckets,
        profiles=profiles(bounds),
        inputs=_specs(static_contract.inputs(config, dtype, bounds.max_seq)),
        outputs=_specs(static_contract.outputs(config, dtype, bounds.max_seq, states)),
        aliases=static_contract.aliases(config),
        onnx=graph,
        plan=None,
        version_compatible=options.version_compatible,
        refittable=options.refittable,
        stripped=options.stripped,
        rebuild=_rebuild(options, bounds),
        build_seconds=None,
    )


def _rebuild(options: EngineOptions, bounds: Limits) -> tuple[str, ...]:
    """The options that give the same engine on another machine: limits, but not the builder or the GPU."""
    words = ["--precision", options.precision]
    words += ["--compute", options.compute] if options.compute else []
    words += ["--block-size", str(options.block_size)] if options.block_size else []
    words += ["--max-seq", str(bounds.max_seq)]
    if bounds.buckets:
        words += ["--buckets", ",".join(map(str, bounds.buckets))]
    words += ["--prefill-chunk", str(bounds.prefill_chunk), "--max-batch", str(bounds.max_batch)]
    flags = ("version_compatible", "refittable", "stripped")
    return (*words, *(f"--{flag.replace('_', '-')}" for flag in flags if getattr(options, flag)))


def _specs(specs: list[contract.TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.dtype, spec.shape) for spec in specs)


def _entry(folder: Path, path: Path) -> FileEntry:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, found)
