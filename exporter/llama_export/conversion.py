"""Convert: a checkpoint in any layout becomes an ordinary Hugging Face folder, streamed, published whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_export.bundle import Stage, check_target
from llama_export.bundle.companions import copy_companions, token_ids, write_json
from llama_export.checkpoint import Checkpoint, open_merged
from llama_export.checkpoint.fields import CONFIG_FILE
from llama_export.checkpoint.folder import GENERATION_FILE
from llama_export.errors import BundleError, OptionError
from llama_export.pipeline import check_tokenizer, refuse_nesting
from llama_export.progress import byte_progress
from llama_export.weights import write_weights
from llama_export.weights.safetensors_files import INDEX_FILE, index, plan_safetensors

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Converted:
    """A published folder.

    Attributes:
        output: The folder.
        files: Name to size in bytes.
        tensors: How many there are.
        notes: What a person should know of how the checkpoint was read, in sentences.
        seconds: Duration.
    """

    output: Path
    files: dict[str, int]
    tensors: int
    notes: tuple[str, ...]
    seconds: float


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    max_shard_bytes: int | None = None,
) -> Converted:
    """Write a checkpoint as transformers would: safetensors files, config.json and tokenizer files.

    Every weight keeps its precision; no more than a few pieces of one, or one that must be transposed, is in
    memory. Nothing is left behind unless all of it succeeds.

    Args:
        checkpoint: A folder in any layout that can be exported.
        output: The folder to write; must not exist, or be empty.
        adapters: Folders of PEFT adapters to merge, in this order; all weights are then float32.
        max_shard_bytes: No file holds more bytes of tensors, unless it holds only one; default 5 GB.

    Raises:
        LlamaExportError: Bad input or output, with one sentence and a hint.
    """
    start = time.monotonic()
    source, target = open_merged(Path(checkpoint), [Path(adapter) for adapter in adapters]), Path(output)
    if source.soft_prompt is not None:
        raise OptionError(
            f"{source.soft_prompt.folder}: is a learned prompt, which is no part of any weight",
            "export a bundle with llama-export onnx, or convert without this adapter",
        )
    refuse_nesting(source.folder, target)
    if target.is_dir() and any(target.iterdir()):
        raise BundleError(f"{target}: exists, convert writes a new folder", "name another output")
    check_target(target, force=False)
    source = check_tokenizer(source)
    plan = plan_safetensors(source, max_shard_bytes or MAX_SHARD_BYTES)
    source_bytes = sum(path.stat().st_size for path in source.weight_files)
    with Stage(target, plan.total_bytes) as stage:
        _write_companions(source, stage.folder)
        if (listing := index(plan)) is not None:
            write_json(stage.folder / INDEX_FILE, listing)
        with byte_progress("converting", source_bytes) as advance:
            write_weights(source, plan, stage.folder, advance)
        files = {path.name: path.stat().st_size for path in sorted(stage.folder.iterdir())}
        stage.publish()
    return Converted(target, files, len(plan.weights), source.notes, time.monotonic() - start)


def _write_companions(source: Checkpoint, folder: Path) -> None:
    """Write everything but the weights."""
    copy_companions(source, folder)
    write_json(folder / CONFIG_FILE, source.raw_config)
    if not (folder / GENERATION_FILE).exists():
        ids = {f"{name}_token_id": ids for name, ids in token_ids(source).items() if ids not in (None, [])}
        write_json(folder / GENERATION_FILE, ids)
