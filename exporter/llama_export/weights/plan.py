"""Where every weight will stand in the bundle, decided before a byte is moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from llama_export.checkpoint import Checkpoint, ComputedTensor, LazyTensor, StoredTensor
from llama_export.checkpoint.computed import join_rows
from llama_export.checkpoint.tensor import widen
from llama_export.errors import OptionError
from llama_export.model.joined import PROJECTIONS
from llama_export.quantize import SCALES, Blocks, Part, Signed
from llama_export.weights.precision import (
    EMBEDDING,
    GPTQ,
    PRECISION_OF,
    PRECISIONS,
    Quantization,
    choose_precisions,
)

WeightMode = Literal["link", "copy", "beside"]
WEIGHT_MODES: tuple[WeightMode, ...] = get_args(WeightMode)
# Large tensors start on a page of the largest common size, so that any system can map them by themselves.
_LARGE_BYTES, _LARGE_ALIGNMENT, _SMALL_ALIGNMENT = 1 << 20, 1 << 16, 64


@dataclass(frozen=True)
class PlacedWeight:
    """A weight's place: which checkpoint tensor, and where its bytes stand in which data file.

    Attributes:
        source: The tensor.
        dtype: What is stored; uint8 in blocks.
        location: The data file.
        offset: Where it begins there.
        nbytes: Its length, with scales and zero points.
        blocks: How it is quantized; None where it is a plain array of ``dtype``.
    """

    source: LazyTensor
    dtype: torch.dtype
    location: str
    offset: int
    nbytes: int
    blocks: Blocks | Signed | None = None

    @property
    def parts(self) -> list[tuple[Part, int]]:
        """The arrays of a quantized weight, and where each begins in the data file."""
        assert self.blocks is not None
        placed, end = [], self.offset
        for part in self.blocks.parts(self.source.shape):
            offset = _aligned(end, _SMALL_ALIGNMENT)
            placed.append((part, offset))
            end = offset + part.nbytes
        return placed


@dataclass(frozen=True)
class WeightPlan:
    """All weights' places.

    Attributes:
        mode: ``link``, ``copy`` or ``beside``.
        precision: What most of the stored bytes are: a dtype's name, ``int8`` or ``int4``.
        model_name: The graph's file in ``onnx/``; the data files' names follow it.
        data_files: Location to the source file it stands for; None where it is written anew.
        weights: Initializer name to place, in the order of the source files' bytes.
        total_bytes: Size of all data files.
        headers: What a data file that is written begins with, by location; nothing where it is not named.
        joined: Initializers that stand for several of the checkpoint's weights, one below the other: which.
        quantization: How the matrices are quantized; None where they are not.
        notes: What a person should know of the choices, in sentences.
    """

    mode: WeightMode
    precision: str
    model_name: str
    data_files: dict[str, Path | None]
    weights: dict[str, PlacedWeight]
    total_bytes: int
    headers: dict[str, bytes] = field(default_factory=dict)
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()

    @property
    def embedding_name(self) -> str:
        """The file of the graph that looks embeddings up, where the other takes them."""
        return self.model_name.replace("model", "embed_tokens", 1)

    def step_bytes(self, *, tied: bool) -> int:
        """Bytes of weights that a step must read: all but the embedding table, unless that is the head.

        A scale of a block counts as two: it has no more than float16's significant bits.
        """
        read = [weight for name, weight in self.weights.items() if tied or name != f"{EMBEDDING}.weight"]
        parts = [part for weight in read if weight.blocks is not None for part, _ in weight.parts]
        return sum(weight.nbytes for weight in read) - sum(
            part.nbytes // 2 for part in parts if part.suffix == SCALES
        )


def plan_weights(
    checkpoint: Checkpoint,
    mode: WeightMode | None,
    precision: str | None,
    quantization: Quantization | None = None,
) -> WeightPlan:
    """Decide where every weight will stand.

    Args:
        checkpoint: Its headers have been read.
        mode: ``link`` refers to the checkpoint's bytes from inside the bundle, ``beside`` from beside
            the checkpoint's files, ``copy`` writes them anew; None is ``link`` where that can be.
        precision: Storage dtype for ``copy``; None keeps the checkpoint's.
        quantization: Store the matrices in blocks instead; with ``copy``, or None for the mode.

    Raises:
        OptionError: Linked weights cannot change their precision, nor be computed.
    """
    stored = PRECISION_OF[checkpoint.dtype]
    computed = first_computed(checkpoint)
    if quantization is not None:
        if mode not in (None, "copy"):
            raise OptionError(
                f"--weights {mode} keeps the checkpoint's bytes, --precision {quantization.precision} "
                "writes others",
                "leave --weights out",
            )
        return _plan_quantized(checkpoint, quantization)
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


_MODEL_NAMES = {"float16": "model_fp16.onnx", "int8": "model_quantized.onnx", "int4": "model_q4.onnx"}


def model_name(precision: str, mode: WeightMode) -> str:
    """File name of the graph, as transformers.js looks for it by precision."""
    return _MODEL_NAMES.get(precision, "model.onnx") if mode == "copy" else "model.onnx"


def data_file_name(model: str, index: int) -> str:
    """Name of a graph's ``index``-th data file, as transformers.js counts them."""
    return f"{model}_data" + (f"_{index}" if index else "")


def in_file_order(
    checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor] | None = None
) -> list[tuple[str, LazyTensor]]:
    """Name every tensor in the order its bytes, or the first of them, stand in on disk.

    Args:
        checkpoint: Whose files are meant.
        tensors: What is ordered; default the checkpoint's tensors.
    """
    rank = {path: index for index, path in enumerate(checkpoint.weight_files)}

    def place(item: tuple[str, LazyTensor]) -> tuple[int, int]:
        first = item[1].stored[0]
        return rank[first.file], first.offset

    return sorted((tensors or checkpoint.tensors).items(), key=place)


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
    # A checkpoint may mix dtypes; nothing is rounded that was not asked for.
    dtype = PRECISIONS[wanted] if wanted else None
    tensors = [(name, tensor, dtype or tensor.dtype) for name, tensor in in_file_order(checkpoint)]
    name = model_name(precision, "copy")
    location = data_file_name(name, 0)
    weights, end = place_weights(tensors, location)
    return WeightPlan("copy", precision, name, {location: None}, weights, end)


def _plan_quantized(checkpoint: Checkpoint, quantization: Quantization) -> WeightPlan:
    chosen, notes = choose_precisions(checkpoint, quantization)
    joined = _joined(checkpoint, chosen)
    tensors = dict(checkpoint.tensors)
    for whole, names in joined.items():
        members = [tensors.pop(name) for name in names]
        if len({member.dtype for member in members}) > 1:
            members = [widen(member) for member in members]
        tensors[whole] = join_rows(whole, members)
        chosen[whole] = chosen[names[0]]
    in_order = in_file_order(checkpoint, tensors)
    if quantization.method == GPTQ:  # which follows the text through the layers
        in_order.sort(key=lambda item: _layer(item[0], checkpoint.config.num_hidden_layers))
    ordered = [(name, tensor, chosen[name]) for name, tensor in in_order]
    name = model_name(quantization.precision, "copy")
    location = data_file_name(name, 0)
    weights, end = place_weights(ordered, location)
    return WeightPlan(
        "copy", quantization.precision, name, {location: None}, weights, end,
        joined=joined, quantization=quantization, notes=notes,
    )  # fmt: skip


def _joined(checkpoint: Checkpoint, chosen: Mapping[str, Blocks | torch.dtype]) -> dict[str, tuple[str, ...]]:
    """Quantized matrices that read the same input and can be one, and their biases: joint name to theirs."""
    joined: dict[str, tuple[str, ...]] = {}
    for layer in range(checkpoint.config.num_hidden_layers):
        for whole, members in PROJECTIONS.items():
            weights = tuple(f"model.layers.{layer}.{member}.weight" for member in members)
            layouts = {chosen[name] for name in weights}
            if len(layouts) > 1 or not isinstance(layouts.pop(), Blocks):
                continue
            joined[f"model.layers.{layer}.{whole}.weight"] = weights
            biases = tuple(name.replace(".weight", ".bias") for name in weights)
            if biases[0] in checkpoint.tensors:
                joined[f"model.layers.{layer}.{whole}.bias"] = biases
    return joined


def _layer(name: str, behind: int) -> int:
    """The layer of a weight; -1 in front of the first, ``behind`` behind the last."""
    if name.startswith("model.layers."):
        return int(name.split(".")[2])
    return -1 if name.startswith(EMBEDDING) else behind


def place_weights(
    tensors: Iterable[tuple[str, LazyTensor, Blocks | Signed | torch.dtype]], location: str
) -> tuple[dict[str, PlacedWeight], int]:
    """Put tensors one behind the other into a data file; the second result is its size."""
    weights: dict[str, PlacedWeight] = {}
    end = 0
    for name, tensor, how in tensors:
        if not isinstance(how, torch.dtype):
            nbytes = sum(part.nbytes for part in how.parts(tensor.shape))
            dtype, blocks = torch.uint8, how
        else:
            nbytes = tensor.nbytes // tensor.dtype.itemsize * how.itemsize
            dtype, blocks = how, None
        offset = _aligned(end, _LARGE_ALIGNMENT if nbytes >= _LARGE_BYTES else _SMALL_ALIGNMENT)
        placed = PlacedWeight(tensor, dtype, location, offset, nbytes, blocks)
        if blocks is not None:
            last, begin = placed.parts[-1]
            placed = replace(placed, nbytes=begin + last.nbytes - offset)
        weights[name] = placed
        end = offset + placed.nbytes
    return weights, end


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
