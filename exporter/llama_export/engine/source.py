"""A bundle as the source of an engine: its own weights and config are all that is needed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from llama_export.checkpoint import Checkpoint, ComputedTensor, LazyTensor, StoredTensor
from llama_export.checkpoint.config import parse_config
from llama_export.checkpoint.fields import CONFIG_FILE, Fields
from llama_export.checkpoint.head import parse_head
from llama_export.checkpoint.json_file import read_json_object
from llama_export.errors import OptionError
from llama_export.parity.quantized_tensor import QuantizedTensor
from llama_export.parity.stored_weights import stored_weights
from llama_export.quantize import Blocks
from llama_export.weights.precision import PRECISIONS
from llama_runtime.manifest import Manifest


def open_bundle(folder: Path, manifest: Manifest) -> Checkpoint:
    """Read a bundle as the checkpoint that it holds.

    Raises:
        OptionError: Weights that are not its own, or embeddings as input.
        CheckpointError: Its config.json is not what was published.
    """
    check_source(folder, manifest)
    raw = read_json_object(folder / CONFIG_FILE, CONFIG_FILE)
    config = parse_config(raw)
    stored = stored_weights(folder, manifest, config)
    config = dataclasses.replace(config, head=parse_head(Fields(raw), stored, None))
    tensors: dict[str, LazyTensor] = {}
    for name in config.tensor_shapes():
        tensor = stored[name]
        tensors[name] = tensor if isinstance(tensor, StoredTensor) else _dequantized(tensor)
    return Checkpoint(
        folder=folder,
        config=config,
        config_file=folder / CONFIG_FILE,
        raw_config=raw,
        dtype=PRECISIONS.get(manifest.precision, torch.float32),
        tensors=tensors,
        weight_files=tuple(dict.fromkeys(part.file for t in tensors.values() for part in t.stored)),
        companions=(),
        generation_config={},
        notes=(),
    )


def check_source(folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle that no engine can be made of.

    Raises:
        OptionError: Weights that are not its own, or embeddings as input.
    """
    if manifest.weights == "beside":
        raise OptionError(
            f"{folder}: is a checkpoint with its bundle beside, to which nothing is added",
            "name another output for the checkpoint: llama-export trt CHECKPOINT OUTPUT",
        )
    if manifest.embed_tokens is not None:
        raise OptionError(
            f"{folder}: takes embeddings in place of token ids, engines take ids alone",
            "export a bundle without --inputs-embeds",
        )


@dataclass(frozen=True)
class DequantizedTensor(ComputedTensor):
    """The values that a bundle of few bits computes with.

    Attributes:
        blocks: How they are stored.
    """

    blocks: Blocks


def _dequantized(tensor: QuantizedTensor) -> DequantizedTensor:
    stored = tuple(part for part in (tensor.codes, tensor.scales, tensor.zero_points) if part is not None)
    how = "dequantized", tensor.pieces, tensor.blocks
    return DequantizedTensor(tensor.name, tensor.dtype, tensor.shape, stored, *how)
