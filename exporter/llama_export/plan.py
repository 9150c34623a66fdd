"""What an export will do, said before it does it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_export.bundle.place import can_share
from llama_export.checkpoint import Checkpoint, ComputedTensor
from llama_export.recipe import Recipe
from llama_export.show import size
from llama_export.weights import WeightMode, WeightPlan
from llama_export.weights.plan import first_computed

# Bytes a second of hashing, checking and casting on one core, and seconds of tracing: measured on 2 x86-64
# cores in November 2026 (benchmarks/LOG.md), and only used to say roughly how long it will take.
_STREAM_BYTES_PER_S, _TRACE_S = 1.0e9, 7.0
_BASE_MEMORY_BYTES = 400 << 20


@dataclass(frozen=True)
class ExportPlan:
    """The outcome of an export, before any work.

    Attributes:
        checkpoint: The folder that is read.
        output: The folder that will be the bundle.
        recipe: The choices.
        weights: How the weights get there: as the recipe says, or as the checkpoint allows.
        notes: What a person should know of the checkpoint and of this choice, in sentences.
        files: Relative path to size in bytes, the large ones; the small ones are not listed.
        written_bytes: New bytes on disk (a link adds none).
        peak_memory_bytes: Private memory of the export itself, roughly.
        seconds: Duration without verification, roughly.
        run_time_note: What the choice costs when the bundle is run.
    """

    checkpoint: Path
    output: Path
    recipe: Recipe
    weights: WeightMode
    notes: tuple[str, ...]
    files: dict[str, int]
    written_bytes: int
    peak_memory_bytes: int
    seconds: float
    run_time_note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self) | {"checkpoint": str(self.checkpoint), "output": str(self.output)}


def plan_export(checkpoint: Checkpoint, weights: WeightPlan, output: Path, recipe: Recipe) -> ExportPlan:
    """Say what an export would do; the arguments are those that ``pipeline.prepare`` accepted."""
    source_bytes = sum(path.stat().st_size for path in checkpoint.weight_files)
    written = new_bytes(weights, output)
    return ExportPlan(
        checkpoint=checkpoint.folder,
        output=output,
        recipe=recipe,
        weights=weights.mode,
        notes=notes(checkpoint, weights, recipe),
        files=_files(weights),
        written_bytes=written,
        peak_memory_bytes=_BASE_MEMORY_BYTES + _largest_computed(checkpoint),
        seconds=_TRACE_S + (source_bytes + written) / _STREAM_BYTES_PER_S,
        run_time_note=run_time_note(weights),
    )


def notes(checkpoint: Checkpoint, weights: WeightPlan, recipe: Recipe) -> tuple[str, ...]:
    """What was chosen for the person, and why."""
    computed, said = first_computed(checkpoint), [*checkpoint.notes, *weights.notes]
    if recipe.weights is None and computed is not None and weights.quantization is None:
        said.append(
            f"weights written anew as {weights.precision}, since {computed.name} must be {computed.how}"
        )
    if recipe.inputs_embeds:
        said.append("other runtimes feed token ids: this bundle opens in llama_runtime alone")
    return tuple(said)


def _largest_computed(checkpoint: Checkpoint) -> int:
    """What a tensor that cannot be computed in pieces needs at once."""
    tensors = checkpoint.tensors.values()
    return max((tensor.nbytes for tensor in tensors if isinstance(tensor, ComputedTensor)), default=0)


def new_bytes(weights: WeightPlan, output: Path) -> int:
    """How much weight data an export writes anew: none where it is linked, if it can be."""
    if weights.mode == "beside":
        return 0
    sources = weights.data_files.values()
    linked = all(source is not None and can_share(source, output) for source in sources)
    return 0 if linked else weights.total_bytes


def _files(weights: WeightPlan) -> dict[str, int]:
    folder = "" if weights.mode == "beside" else "onnx/"
    return {
        folder + location: source.stat().st_size if source else weights.total_bytes
        for location, source in weights.data_files.items()
    }


def run_time_note(weights: WeightPlan) -> str:
    """What the stored precision costs when a CPU session loads it."""
    if weights.quantization is not None:
        return (
            f"on CPU the matrices are packed anew at load, as they are: {size(weights.total_bytes)} in memory"
        )
    values = sum(weight.nbytes // weight.dtype.itemsize for weight in weights.weights.values())
    if weights.precision == "float32":
        return f"on CPU the weights are mapped, not copied: {size(values * 4)} of page cache"
    return (
        f"on CPU, without our kernels, the {weights.precision} weights are "
        "converted to float32 whenever a session loads: "
        f"{size(values * 4)} of private memory, and some seconds for each GiB; "
        "--weights copy --precision float32 does it once, on disk"
    )
