"""Where every weight will stand in the bundle, decided before a byte is moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from llama_export.checkpoint import Checkpoint, ComputedTensor, LazyTensor, StoredTensor
from llama_export.errors import OptionError

WeightMode = Literal["link", "copy", "beside"]
WEIGHT_MODES: tuple[WeightMode, ...] = get_args(WeightMode)
PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
PRECISION_OF = {dtype: name for name, dtype in PRECISIONS.items()}

# Large tensors start on a page of the largest common size, so that any system can map them by themselves.
_LARGE_BYTES, _LARGE_ALIGNMENT, _SMALL_ALIGNMENT = 1 << 20, 1 << 16, 64


@dataclass(frozen=True)
class PlacedWeight:
    """A weight's place: which checkpoint tensor, and where its bytes stand in which data file."""

    source: LazyTensor
    dtype: torch.dtype
    location: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class WeightPlan:
    """All weights' places.

    Attributes:
        mode: ``link``, ``copy`` or ``beside``.
        precision: The dtype that most of the stored bytes have.
        model_name: The graph's file in ``onnx/``; the data files' names follow it.
        data_files: Location to the source file it stands for; None where it is written anew.
        weights: Initializer name to place, in the order of the source files' bytes.
        total_bytes: Size of all data files.
        headers: What a data file that is written begins with, by location; nothing where it is not named.
    """

    mode: WeightMode
    precision: str
    model_name: str
    data_files: dict[str, Path | None]
    weights: dict[str, PlacedWeight]
    total_bytes: int
    headers: dict[str, bytes] = field(default_factory=dict)

    @property
    def embedding_name(self) -> str:
        """The file of the graph that looks embeddings up, where the other takes them."""
        return self.model_name.replace("model", "embed_tokens", 1)


def plan_weights(checkpoint: Checkpoint, mode: WeightMode | None, precision: str | None) -> WeightPlan:
    """Decide where every weight will stand.

    Args:
        checkpoint: Its headers have been read.
        mode: ``link`` refers to the checkpoint's bytes from inside the bundle, ``beside`` from beside
            the checkpoint's files, ``copy`` writes them anew; None is ``link`` where that can be.
        precision: Storage dtype for ``copy``; None keeps the checkpoint's.

    Raises:
        OptionError: Linked weights cannot change their precision, nor be computed.
    """
    stored = PRECISION_OF[checkpoint.dtype]
    computed = first_computed(checkpoint)
    mode = mode or ("link" if computed is None else "copy")
    if mode == "copy":
        return _plan_copy(checkpoint, precision, stored)
    if precision not in (None, stored):
        raise OptionError(
            f"--weights {mode} keeps the checkpoint's {stored}, --precision asks for {precision}",
            f"add --weights copy, which writes the weights anew as {precision}",
        )
    if computed is not None:
        raise OptionError(
            f"--weights {mode} takes the weights as they stand, {computed.name} must be {computed.how}",
            "leave --weights out, or use --weights copy, which writes the weights anew",
        )
    return _plan_link(checkpoint, mode, stored)


def first_computed(checkpoint: Checkpoint) -> ComputedTensor | None:
    """The first tensor whose bytes stand nowhere as the model needs them; None where all can be linked."""
    tensors = checkpoint.tensors.values()
    return next((tensor for tensor in tensors if isinstance(tensor, ComputedTensor)), None)


def model_name(precision: str, mode: WeightMode) -> str:
    """File name of the graph, as transformers.js looks for it by precision."""
    return "model_fp16.onnx" if mode == "copy" and precision == "float16" else "model.onnx"


def data_file_name(model: str, index: int) -> str:
    """Name of a graph's ``index``-th data file, as transformers.js counts them."""
    return f"{model}_data" + (f"_{index}" if index else "")


def in_file_order(checkpoint: Checkpoint) -> list[tuple[str, LazyTensor]]:
    """Name every tensor in the order its bytes, or the first of them, stand in on disk."""
    rank = {path: index for index, path in enumerate(checkpoint.weight_files)}

    def place(item: tuple[str, LazyTensor]) -> tuple[int, int]:
        first = item[1].stored[0]
        return rank[first.file], first.offset

    return sorted(checkpoint.tensors.items(), key=place)


def _plan_link(checkpoint: Checkpoint, mode: WeightMode, precision: str) -> WeightPlan:
    name = model_name(precision, mode)
    if mode == "beside":
        locations = {path: path.name for path in checkpoint.weight_files}
    else:
        locations = {path: data_file_name(name, i) for i, path in enumerate(checkpoint.weight_files)}
    weights = {
        key: PlacedWeight(tensor, tensor.dtype, locations[tensor.file], tensor.offset, tensor.nbytes)
        for key, tensor in in_file_order(checkpoint)
        if isinstance(tensor, StoredTensor)  # all are: plan_weights has looked
    }
    data_files: dict[str, Path | None] = {location: path for path, location in locations.items()}
    total = sum(path.stat().st_size for path in checkpoint.weight_files)
    return WeightPlan(mode, precision, name, data_files, weights, total)


def _plan_copy(checkpoint: Checkpoint, wanted: str | None, stored: str) -> WeightPlan:
    precision = wanted or stored
    name = model_name(precision, "copy")
    location = data_file_name(name, 0)
    weights, end = {}, 0
    for key, tensor in in_file_order(checkpoint):
        # A checkpoint may mix dtypes; nothing is rounded that was not asked for.
        dtype = PRECISIONS[wanted] if wanted else tensor.dtype
        nbytes = tensor.nbytes // tensor.dtype.itemsize * dtype.itemsize
        alignment = _LARGE_ALIGNMENT if nbytes >= _LARGE_BYTES else _SMALL_ALIGNMENT
        offset = -(-end // alignment) * alignment
        weights[key] = PlacedWeight(tensor, dtype, location, offset, nbytes)
        end = offset + nbytes
    return WeightPlan("copy", precision, name, {location: None}, weights, end)
