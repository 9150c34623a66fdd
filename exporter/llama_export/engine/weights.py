"""Where and as what every weight of an engine stands, decided before a byte is moved."""

from __future__ import annotations

import dataclasses

import torch

from llama_export.checkpoint import Checkpoint, LazyTensor, StoredTensor
from llama_export.engine.options import EngineOptions
from llama_export.engine.source import DequantizedTensor
from llama_export.quantize import BLOCK_SIZES, Signed
from llama_export.weights import WeightPlan, plan_weights
from llama_export.weights.plan import data_file_name, in_file_order, place_weights
from llama_export.weights.precision import EMBEDDING, HEAD, PRECISIONS

# What TensorRT documents for int4 is 64 and 128; TensorRT-RTX builds 32 too.
DEFAULT_BLOCK_SIZE = 64
TABLE_WEIGHT, HEAD_WEIGHT = f"{EMBEDDING}.weight", f"{HEAD}.weight"


def plan_engine_weights(source: Checkpoint, options: EngineOptions, name: str) -> WeightPlan:
    """Decide where the weights of an engine's graph stand: linked where they are what it computes in.

    Args:
        source: From ``open_bundle``.
        options: Their ``precision`` is what is wanted.
        name: Of the engine, and so of its files.
    """
    if options.kind is not None:
        return _plan_signed(source, options, f"{name}.onnx")
    dtype = options.dtype
    tensors = source.tensors.values()
    same = all(isinstance(t, StoredTensor) and t.dtype == PRECISIONS[dtype] for t in tensors)
    plan = plan_weights(source, "link", None) if same else plan_weights(source, "copy", dtype)
    named = {location: location.replace(plan.model_name, f"{name}.onnx", 1) for location in plan.data_files}
    return dataclasses.replace(
        plan,
        model_name=f"{name}.onnx",
        data_files={named[location]: file for location, file in plan.data_files.items()},
        weights={
            key: dataclasses.replace(weight, location=named[weight.location])
            for key, weight in plan.weights.items()
        },
    )


def _plan_signed(source: Checkpoint, options: EngineOptions, model_name: str) -> WeightPlan:
    """The matrices of layers and of a language model's head in few bits, all else as it is computed in.

    The embedding table is one row a token: it stays as it is. A tied head has a copy of its own.
    """
    dtype, notes = PRECISIONS[options.dtype], dict[str, None]()
    tensors = dict(in_file_order(source))
    if source.config.generates and source.config.tie_word_embeddings:
        tensors[HEAD_WEIGHT] = tensors[TABLE_WEIGHT]
    ordered: list[tuple[str, LazyTensor, Signed | torch.dtype]] = []
    for name, tensor in tensors.items():
        in_few_bits = len(tensor.shape) == 2 and (name.startswith("model.layers.") or name == HEAD_WEIGHT)
        ordered.append((name, tensor, _layout(name, tensor, options, notes) if in_few_bits else dtype))
    location = data_file_name(model_name, 0)
    weights, end = place_weights(ordered, location)
    return WeightPlan(
        "copy", options.precision, model_name, {location: None}, weights, end, notes=tuple(notes)
    )


def _layout(name: str, tensor: LazyTensor, options: EngineOptions, notes: dict[str, None]) -> Signed:
    """How a matrix is stored. The error of a language model's head is the logits' own: it has 8 bits."""
    assert options.kind is not None
    dtype, columns = PRECISIONS[options.dtype], tensor.shape[1]
    if options.kind != "int4":
        return Signed(options.kind, dtype)
    if name == HEAD_WEIGHT:
        return Signed("int8", dtype)
    stored = tensor.blocks.size if isinstance(tensor, DequantizedTensor) and tensor.blocks.bits == 4 else None
    wished = options.block_size or stored or DEFAULT_BLOCK_SIZE
    size = next((size for size in reversed(BLOCK_SIZES) if size <= wished and columns % size == 0), 0)
    if size != wished:
        done = f"the blocks have {size}" if size else "they have 8 bits, since no block divides them"
        short = name.split(".")[-2]
        notes[f"{short}: rows of {columns} do not divide by the block size, {wished}; {done}"] = None
    return Signed("int4", dtype, size) if size else Signed("int8", dtype)
