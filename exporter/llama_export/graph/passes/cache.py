"""Keys and values that are kept as 8-bit codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from llama_export.graph.constant import add_constant

KEY_SCALE, VALUE_SCALE = "cache.{i}.key_scale", "cache.{i}.value_scale"
_FIRST_SCALE = 12  # of the operator's inputs


def store_cache_in_int8(graph: ir.Graph, scales: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Have the attention keep codes, one scale for each channel.

    Requires:
        One GroupQueryAttention a layer, in their order; the graph's own pasts and presents are int8.

    Ensures:
        Each has scales, [1, K, 1, D] float32, that the graph holds as ``KEY_SCALE`` and ``VALUE_SCALE``.

    Args:
        graph: The assembled graph.
        scales: Of each layer's keys and values, [K, D] float32.
    """
    nodes = [node for node in graph if node.op_type == "GroupQueryAttention"]
    for i, (node, by_layer) in enumerate(zip(nodes, scales, strict=True)):
        node.resize_inputs(_FIRST_SCALE + 2)
        for place, (name, values) in enumerate(zip((KEY_SCALE, VALUE_SCALE), by_layer, strict=True)):
            node.replace_input_with(
                _FIRST_SCALE + place, add_constant(graph, name.format(i=i), values[None, :, None])
            )
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        for name in ("k_quant_type", "v_quant_type"):
            node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
