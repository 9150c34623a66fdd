"""Add + RMSNormalization -> ``com.microsoft::SkipSimplifiedLayerNormalization``."""

from __future__ import annotations

import onnx_ir as ir


def fuse_residual_norm(graph: ir.Graph) -> None:
    """Fuse each residual addition with the norm that reads it.

    Requires:
        RMSNormalization over the last axis, as ``F.rms_norm`` is traced.

    Ensures:
        No RMSNormalization reads an Add: one node computes sum and norm in one pass over memory. The sum
        stays available to the next residual addition as the node's fourth output.
    """
    for norm in [node for node in graph if node.op_type == "RMSNormalization"]:
        hidden, weight = norm.inputs
        assert hidden is not None
        add = hidden.producer()
        if add is None or add.op_type != "Add":
            continue
        outputs = [ir.Value(name=f"{norm.name}.{i}") for i in range(4)]
        outputs[0].shape, outputs[0].type = norm.outputs[0].shape, norm.outputs[0].type
        outputs[3].shape, outputs[3].type = hidden.shape, hidden.type
        outputs[1].name = outputs[2].name = ""
        fused = ir.Node(
            "com.microsoft",
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, weight],
            [ir.AttrFloat32("epsilon", norm.attributes["epsilon"].as_float())],
            outputs=outputs,
            name=f"{norm.name}.fused",
        )
        graph.insert_before(norm, fused)
        norm.outputs[0].replace_all_uses_with(outputs[0])
        hidden.replace_all_uses_with(outputs[3])
        graph.remove([norm, add], safe=True)
