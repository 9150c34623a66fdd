"""A plan that writes the weights as Hugging Face does: safetensors files of bounded size, and their index."""

from __future__ import annotations

import json
from typing import Any

import torch

from llama_export.checkpoint import Checkpoint, LazyTensor
from llama_export.weights.plan import PlacedWeight, WeightPlan, in_file_order
from llama_export.weights.precision import PRECISION_OF

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_HEADER_ALIGNMENT = 8


def plan_safetensors(checkpoint: Checkpoint, max_file_bytes: int) -> WeightPlan:
    """Decide which weight stands where, in which file; each keeps its precision.

    Args:
        checkpoint: Its headers have been read.
        max_file_bytes: No file holds more than so many bytes of tensors, unless it holds only one.
    """
    groups = _fill_files(in_file_order(checkpoint), max_file_bytes)
    count = len(groups)
    locations = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    weights: dict[str, PlacedWeight] = {}
    headers: dict[str, bytes] = {}
    total = 0
    for location, group in zip([SINGLE_FILE] if count == 1 else locations, groups, strict=True):
        headers[location] = header = _header(group)
        end = len(header)
        for name, tensor in group:
            weights[name] = PlacedWeight(tensor, tensor.dtype, location, end, tensor.nbytes)
            end += tensor.nbytes
        total += end
    return WeightPlan(
        mode="copy",
        precision=PRECISION_OF[checkpoint.dtype],
        model_name="",
        data_files=dict.fromkeys(headers),
        weights=weights,
        total_bytes=total,
        headers=headers,
    )


def index(plan: WeightPlan) -> dict[str, Any] | None:
    """What ``model.safetensors.index.json`` says; None where a single file needs none."""
    if list(plan.data_files) == [SINGLE_FILE]:
        return None
    sizes = [weight.nbytes for weight in plan.weights.values()]
    places = {name: weight.location for name, weight in sorted(plan.weights.items())}
    return {"metadata": {"total_size": sum(sizes)}, "weight_map": places}


def _fill_files(
    tensors: list[tuple[str, LazyTensor]], max_file_bytes: int
) -> list[list[tuple[str, LazyTensor]]]:
    """Deal out the tensors in their order; within a file the widest dtype first, so that all are aligned."""
    groups: list[list[tuple[str, LazyTensor]]] = []
    room = 0
    for item in tensors:
        if not groups or item[1].nbytes > room:
            groups.append([])
            room = max_file_bytes
        groups[-1].append(item)
        room -= item[1].nbytes
    return [sorted(group, key=lambda item: -item[1].dtype.itemsize) for group in groups]


def _header(group: list[tuple[str, LazyTensor]]) -> bytes:
    """The length and the JSON that a file begins with."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in group:
        offsets = [begin, begin + tensor.nbytes]
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        begin += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
