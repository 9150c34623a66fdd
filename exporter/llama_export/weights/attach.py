"""The plan's places become the graph's initializers, as external data that nobody has to read."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch

from llama_export.graph.passes import (
    BlockLayout,
    SignedLayout,
    join_projections,
    store_weights_as,
    store_weights_dequantized,
    store_weights_in_blocks,
    widen_in_products,
)
from llama_export.quantize import Blocks, Signed
from llama_export.quantize.signed import SUFFIXES, Kind
from llama_export.weights.plan import PlacedWeight, WeightPlan

_IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.uint8: ir.DataType.UINT8,
}
_SIGNED: dict[Kind, ir.DataType] = {
    "int4": ir.DataType.INT4,
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
}


def attach_weights(model: ir.Model, plan: WeightPlan) -> None:
    """Point every weight of the graph at its bytes.

    Args:
        model: As ``build_graph`` or ``build_embedding`` returns it; changed in place.
        plan: Where the weights stand; those that the graph has no use for are left out.
    """
    graph = model.graph
    join_projections(graph, plan.joined)
    weights = {name: weight for name, weight in plan.weights.items() if name in graph.initializers}
    plain = {name: weight for name, weight in weights.items() if weight.blocks is None}
    store_weights_as(graph, {name: _IR_DTYPES[weight.dtype] for name, weight in plain.items()})
    if "com.microsoft" in graph.opset_imports:  # where our operators may compute (runtime/FORMAT.md)
        widen_in_products(model)
    for name, weight in plain.items():
        _attach(graph, name, weight.dtype, weight.source.shape, weight, weight.offset, weight.nbytes)
    layouts = {
        name: BlockLayout(weight.blocks.bits, weight.blocks.size, not weight.blocks.symmetric)
        for name, weight in weights.items()
        if isinstance(weight.blocks, Blocks)
    }
    store_weights_in_blocks(graph, layouts)
    for name in layouts:
        _attach_parts(graph, name, weights[name])
    if layouts:
        common_passes.RemoveUnusedNodesPass()(model)  # what shaped the products that are now one


def _attach_parts(graph: ir.Graph, name: str, weight: PlacedWeight) -> None:
    for part, offset in weight.parts:
        full, rows = name + part.suffix, f"{name}{part.suffix}_rows"
        if full in graph.initializers:
            _attach(graph, full, part.dtype, part.shape, weight, offset, part.nbytes)
        if rows in graph.initializers:  # the same bytes, without an axis for blocks
            shape = (part.shape[0], part.nbytes // part.shape[0])
            _attach(graph, rows, part.dtype, shape, weight, offset, part.nbytes)


def _attach(
    graph: ir.Graph,
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    weight: PlacedWeight,
    offset: int,
    nbytes: int,
) -> None:
    _attach_as(graph, name, _IR_DTYPES[dtype], shape, weight, offset, nbytes)


def _attach_as(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    weight: PlacedWeight,
    offset: int,
    nbytes: int,
) -> None:
    value, tensor = graph.initializers[name], ir.Shape(shape)
    value.shape = tensor
    value.const_value = ir.ExternalTensor(weight.location, offset, nbytes, dtype, shape=tensor, name=name)


def point_at_weights(model: ir.Model, plan: WeightPlan) -> None:
    """Point a strongly typed graph's weights at their bytes: as they are, or widened for a product.

    Args:
        model: As ``build_static_graph`` returns it; changed in place.
        plan: Where the weights stand: in the dtype of the graph's, or as signed numbers.
    """
    graph = model.graph
    signed = {name: w.blocks for name, w in plan.weights.items() if isinstance(w.blocks, Signed)}
    layouts = {n: SignedLayout(SUFFIXES[b.kind], _SIGNED[b.kind], b.size) for n, b in signed.items()}
    store_weights_dequantized(graph, layouts)
    for name, blocks in signed.items():
        weight = plan.weights[name]
        (codes, codes_at), (scales, scales_at) = weight.parts
        full = name + codes.suffix
        _attach_as(graph, full, _SIGNED[blocks.kind], weight.source.shape, weight, codes_at, codes.nbytes)
        _attach(graph, name + scales.suffix, scales.dtype, scales.shape, weight, scales_at, scales.nbytes)
    for name, weight in plan.weights.items():
        if name in graph.initializers:
            shape = weight.source.shape
            _attach(graph, name, weight.dtype, shape, weight, weight.offset, weight.nbytes)
