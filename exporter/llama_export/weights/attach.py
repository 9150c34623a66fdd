"""The plan's places become the graph's initializers, as external data that nobody has to read."""

from __future__ import annotations

import onnx_ir as ir
import torch

from llama_export.graph.passes import store_weights_as
from llama_export.weights.plan import WeightPlan

_IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


def attach_weights(model: ir.Model, plan: WeightPlan) -> None:
    """Point every weight of the graph at its bytes.

    Args:
        model: As ``build_graph`` or ``build_embedding`` returns it; changed in place.
        plan: Where the weights stand; those that the graph has no use for are left out.
    """
    weights = {name: weight for name, weight in plan.weights.items() if name in model.graph.initializers}
    store_weights_as(model.graph, {name: _IR_DTYPES[weight.dtype] for name, weight in weights.items()})
    for name, weight in weights.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            weight.location,
            weight.offset,
            weight.nbytes,
            _IR_DTYPES[weight.dtype],
            shape=ir.Shape(weight.source.shape),
            name=name,
        )
