"""The pipeline: checkpoint -> graph -> weights -> bundle -> verify -> publish, in this order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import torch

from llama_export.bundle import Stage, beside, build_manifest, check_target, place_file, write_companions
from llama_export.bundle.chat_roles import chat_roles, with_chat_roles
from llama_export.bundle.chat_template import chat_templates
from llama_export.bundle.companions import SOFT_PROMPT_FILE
from llama_export.checkpoint import Checkpoint, open_merged
from llama_export.errors import BundleError, OptionError, ParityError
from llama_export.from_text import Windows, calibration_of, read_windows, store_cache_in_int8
from llama_export.graph.contract import Extras, check_extras, check_path
from llama_export.plan import new_bytes, notes
from llama_export.progress import Advance, byte_progress
from llama_export.recipe import Recipe
from llama_export.tokenizer import open_source, why_not
from llama_export.weights import FileDigest, WeightPlan, plan_weights, write_weights
from llama_export.weights.side_by_side import sharing_the_interpreter
from llama_runtime.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    import onnx_ir as ir

    from llama_export import parity
    from llama_export.graph.contract import Compute
    from llama_export.model import LlamaConfig
    from llama_export.model.attention import AttentionPath


@dataclass(frozen=True)
class Exported:
    """A published bundle.

    Attributes:
        output: Its folder.
        manifest: As it stands there.
        report: The verification's outcome; None where it was not asked for.
        placed_as: How linked weights got there: ``"reflink"``, ``"hard link"``, ``"copy"``, or ``"written"``.
        seconds: Duration, verification included.
        notes: What was chosen for the person, and why, in sentences.
    """

    output: Path
    manifest: Manifest
    report: parity.Report | None
    placed_as: str
    seconds: float
    notes: tuple[str, ...]


def default_output(checkpoint: Path) -> Path:
    """``artifacts/<name>`` in the current folder; a Hub snapshot goes by its repository, not its commit."""
    folder = checkpoint.resolve()
    if folder.name == "original":  # Meta's files in a repository of Hugging Face
        folder = folder.parent
    if folder.parent.name == "snapshots":
        return Path("artifacts") / folder.parent.parent.name.rpartition("--")[2]
    return Path("artifacts") / folder.name


def export(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    force: bool = False,
    finish: Callable[[Path, Manifest], Manifest] | None = None,
) -> Exported:
    """Export a checkpoint to a bundle; nothing is left behind unless it succeeds.

    Args:
        checkpoint: A LLaMA folder, Hugging Face's or Meta's.
        output: The bundle's folder; default ``artifacts/<name>``, with ``beside`` the checkpoint's own.
        recipe: The choices; the default is exact: linked weights, flash path, verified.
        force: Replace an existing bundle.
        finish: Adds to the staged bundle, verified or not, before it is published; gives its manifest.

    Raises:
        LlamaExportError: Bad input or output, with one sentence and a hint.
        ParityError: The bundle does not compute what the reference computes; it is kept as ``<name>.failed``.
    """
    start = time.monotonic()
    recipe = recipe or Recipe()
    source, plan, target, windows = prepare(checkpoint, output, recipe, force=force)
    written = new_bytes(plan, target)
    with Stage(beside.stage_target(target) if recipe.weights == "beside" else target, written) as stage:
        manifest, placed_as = _fill(source, plan, recipe, windows, stage.folder)
        report = None
        if recipe.verify:
            from llama_export import parity

            report = parity.verify_bundle(stage.folder, source)
            if not report.passed:
                kept = stage.keep_failed()
                parity.write_report(kept, report, target.name)
                raise ParityError(
                    f"{report.first_failure()}; nothing was published",
                    f"the failed bundle and parity.html, which shows where, are in {kept}",
                )
            manifest = parity.record(stage.folder, manifest, report, target.name)
        if finish is not None:
            manifest = finish(stage.folder, manifest)
        if recipe.weights == "beside":
            beside.publish(stage.folder, target)
        else:
            stage.publish()
    seconds = time.monotonic() - start
    said = (*notes(source, plan, recipe), *_chat_notes(target, manifest))
    return Exported(target, manifest, report, placed_as, seconds, said)


def prepare(
    checkpoint: str | Path, output: str | Path | None, recipe: Recipe, *, force: bool = False
) -> tuple[Checkpoint, WeightPlan, Path, Windows]:
    """Refuse all that can be refused before any work; writes nothing.

    Returns:
        The opened checkpoint, where its weights will stand, the folder that will be the bundle, and what the
        model reads while it is exported.

    Raises:
        LlamaExportError: Bad input or output, with one sentence and a hint.
    """
    source = open_merged(Path(checkpoint), recipe.adapters, recipe.task)
    check_path(source.config, recipe.attention)
    check_extras(source.config, recipe.attention, recipe.extras)
    _check_soft_prompt(source, recipe)
    mode, precision = recipe.weights, recipe.precision
    if recipe.compute == "float16" and any(t.dtype != torch.float16 for t in source.tensors.values()):
        mode, precision = mode or "copy", "float16"
    plan = plan_weights(source, mode, precision, recipe.quantization)
    if recipe.weights == "beside":
        target = beside.check(source, None if output is None else Path(output), force=force)
    else:
        target = Path(output) if output is not None else default_output(source.folder)
        refuse_nesting(source.folder, target)
        check_target(target, force=force)
    windows = read_windows(source, recipe)
    return _say_what_cpp_lacks(check_tokenizer(source)), plan, target, windows


def _check_soft_prompt(source: Checkpoint, recipe: Recipe) -> None:
    """Refuse what a learned prompt cannot be combined with."""
    if source.soft_prompt is None:
        return
    if recipe.weights == "beside":
        raise OptionError(
            "--weights beside adds nothing to the model, a learned prompt must be written",
            "leave --weights out",
        )
    if recipe.compute == "float16":
        raise OptionError("compute is float16, which takes no learned prompt", "leave --compute out")
    if recipe.extras.gives_more:
        raise OptionError(
            "a learned prompt goes with no hidden states, attentions, embeddings or int8 cache",
            "export a bundle of its own for them, without the adapter",
        )


def check_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """Refuse a damaged tokenizer or chat template before any work; what it needs saying is a note."""
    chat_templates(checkpoint)
    tokenizer = open_source(checkpoint)
    return replace(checkpoint, notes=checkpoint.notes + (tokenizer.notes if tokenizer else ()))


def _chat_notes(folder: Path, manifest: Manifest) -> list[str]:
    reason = chat_roles(folder, manifest) if manifest.chat_template else None
    if not isinstance(reason, str):
        return []
    return [f"the C++ runtime takes rendered prompts alone, the chat template is no set of roles: {reason}"]


def _say_what_cpp_lacks(checkpoint: Checkpoint) -> Checkpoint:
    tokenizer = open_source(checkpoint)
    reason = why_not(tokenizer) if tokenizer else None
    if reason is None:
        return checkpoint
    note = (
        f"the C++ runtime takes token ids alone, the tokenizer is of a kind that it does not have: {reason}"
    )
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _fill(
    source: Checkpoint, plan: WeightPlan, recipe: Recipe, windows: Windows, folder: Path
) -> tuple[Manifest, str]:
    """Write everything into the stage; the weights are streamed while the rest is made."""
    onnx = folder / "onnx"
    onnx.mkdir()
    data_folder = folder if plan.mode == "beside" else onnx
    source_bytes = sum(path.stat().st_size for path in source.weight_files)
    stop = Event()
    with (
        byte_progress("reading weights", source_bytes) as advance,
        sharing_the_interpreter(),
        ThreadPoolExecutor(1) as background,
    ):
        calibration = calibration_of(source, recipe, windows)
        streaming = background.submit(
            write_weights, source, plan, data_folder, _until(stop, advance), calibration
        )
        try:
            graph = build_graph(source.config, recipe.attention, recipe.extras)
            if recipe.cache == "int8":
                store_cache_in_int8(graph, source, windows)
            (onnx / plan.model_name).write_bytes(_with_weights(graph, plan, recipe.compute))
            if recipe.inputs_embeds:
                (onnx / plan.embedding_name).write_bytes(_with_weights(_build_embedding(source.config), plan))
            _write_companions(source, plan, recipe, folder)
            source_digests, data_digests = streaming.result()
        except BaseException:
            stop.set()  # or leaving this block would wait until all bytes are read
            raise

    placed_as = "written"
    for location, file in plan.data_files.items():
        if file is not None:
            placed_as = place_file(file, data_folder / location)
            data_digests[location] = source_digests[file]
    known = {
        (data_folder / location).relative_to(folder).as_posix(): d for location, d in data_digests.items()
    }
    files = {
        name: known.get(name) or digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix())
    }
    sources = {name: source_digests.get(path) or digest(path) for name, path in source.source_files.items()}
    sources[source.config_file.name] = digest(source.config_file)
    manifest = with_chat_roles(
        folder, build_manifest(source, plan, recipe.attention, files, sources, recipe.extras)
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest, placed_as


def build_graph(config: LlamaConfig, attention: AttentionPath, extras: Extras) -> ir.Model:
    """``graph.build_graph``, imported when the weights are on their way: that alone takes a second."""
    from llama_export.graph.assemble import build_graph

    return build_graph(config, attention, extras)


def _build_embedding(config: LlamaConfig) -> ir.Model:
    from llama_export.graph.embedding import build_embedding

    return build_embedding(config)


def _with_weights(model: ir.Model, plan: WeightPlan, compute: Compute = "float32") -> bytes:
    """The model as a file that names where its weights stand."""
    import onnx_ir as ir

    from llama_export.weights.attach import attach_weights, point_at_weights

    attach = attach_weights if compute == "float32" else point_at_weights
    attach(model, plan)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _write_companions(source: Checkpoint, plan: WeightPlan, recipe: Recipe, folder: Path) -> None:
    if plan.mode == "beside":
        beside.copy_companions(source, folder)
    else:
        write_companions(source, plan, recipe.attention, folder, recipe.extras)
    _write_soft_prompt(source, folder)


def _write_soft_prompt(source: Checkpoint, folder: Path) -> None:
    if source.soft_prompt is None:
        return
    from safetensors.torch import save_file

    from llama_export.parity.soft_prompt import soft_prompt_past, soft_prompt_tensors

    past = soft_prompt_past(source.config, source.soft_prompt, lambda name: source.tensors[name].read())
    save_file(soft_prompt_tensors(past), folder / SOFT_PROMPT_FILE)


def _until(stop: Event, advance: Advance) -> Advance:
    """Make progress raise in the thread that reports it, once ``stop`` is set."""

    def advance_or_stop(nbytes: int) -> None:
        if stop.is_set():
            raise CancelledError
        advance(nbytes)

    return advance_or_stop


def digest(path: Path) -> FileDigest:
    """Size and SHA-256 of one file."""
    with path.open("rb") as stream:
        return FileDigest(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def refuse_nesting(checkpoint: Path, target: Path) -> None:
    """Keep apart what is published by replacing its folder and what is never changed.

    Raises:
        BundleError: One of the two folders is the other, or is inside of it.
    """
    inner, outer = checkpoint.resolve(), target.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        where = "is" if inner == outer else "contains" if outer in inner.parents else "is inside"
        raise BundleError(
            f"{target}: {where} the checkpoint's folder, the output must be a folder of its own",
            "name another output, or use --weights beside to keep everything in the checkpoint's folder",
        )
