"""Every silent trap and every refused pattern, planted in a good graph, is found at its node."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_checkpoints import CONFIGS

from llama_export.engine.lint import check_graph, lint
from llama_export.errors import EngineError
from llama_export.graph.static_graph import build_static_graph

CONFIG, CAPACITY = CONFIGS["mha_tied"], 32


@pytest.fixture(scope="module")
def good():
    model = build_static_graph(CONFIG, "float16", CAPACITY)
    for name, weight in model.graph.initializers.items():
        if weight.const_value is None:  # the lint looks at no values
            weight.const_value = ir.tensor(np.zeros(weight.shape.numpy(), np.float16), name=name)
    return ir.to_proto(model).SerializeToString()


@pytest.fixture
def model(good):
    return onnx.load_from_string(good)


def node(model, op_type, index=0):
    return [found for found in model.graph.node if found.op_type == op_type][index]


def set_attribute(target, name, value):
    kept = [attribute for attribute in target.attribute if attribute.name != name]
    del target.attribute[:]
    target.attribute.extend([*kept, helper.make_attribute(name, value)])


def causal(model):
    set_attribute(node(model, "Attention", 1), "is_causal", 1)
    return "Attention layers.1", "upper-left", "boolean mask"


def lengths(model):
    node(model, "Attention").input.extend(["", "", "write_indices"])
    return "Attention layers.0", "nonpad_kv_seqlen is silently dropped", "boolean mask"


def inner_cache(model):
    scatter = node(model, "TensorScatter", 2)
    copy = helper.make_node("Identity", [scatter.input[0]], ["copied"], name="copy")
    model.graph.node.insert(0, copy)
    scatter.input[0] = "copied"
    return "TensorScatter layers.1", "silently copied", "past input"


def past_key(model):
    node(model, "Attention").input.extend(["past_key_values.0.key", "past_key_values.0.value"])
    return "Attention layers.0", "refuses past_key", "TensorScatter"


def no_mask(model):
    attention = node(model, "Attention")
    del attention.input[3:]
    return "Attention layers.0", "without a mask", "boolean mask"


def float_mask(model):
    attention = node(model, "Attention")
    cast = helper.make_node("Cast", [attention.input[3]], ["mask16"], to=TensorProto.FLOAT16)
    model.graph.node.insert(0, cast)
    model.graph.value_info.append(helper.make_tensor_value_info("mask16", TensorProto.FLOAT16, None))
    attention.input[3] = "mask16"
    return "Attention layers.0", "no boolean", "boolean mask"


def foreign(op_type, remedy):
    def plant(model):
        model.graph.node.append(
            helper.make_node(op_type, ["logits"], ["more"], name="planted", domain="com.microsoft")
        )
        return f"{op_type} planted", "com.microsoft", remedy

    return plant


def dynamic_capacity(model):
    cache = next(value for value in model.graph.input if value.name == "past_key_values.1.value")
    cache.type.tensor_type.shape.dim[2].Clear()
    cache.type.tensor_type.shape.dim[2].dim_param = "capacity"
    return "TensorScatter layers.1", "past_key_values.1.value has a dynamic size", "fix all dims"


def lost_write(model):
    kept = [value for value in model.graph.output if value.name != "present.1.key"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return "TensorScatter layers.1", "no graph output", "present output"


def circular(model):
    set_attribute(node(model, "TensorScatter"), "mode", "circular")
    return "TensorScatter layers.0", "circular", "linear"


def other_axis(model):
    set_attribute(node(model, "TensorScatter"), "axis", 1)
    return "TensorScatter layers.0", "another axis", "axis 2"


def no_indices(model):
    del node(model, "TensorScatter").input[2:]
    return "TensorScatter layers.0", "no write_indices", "int64"


def narrow_norm(model):
    set_attribute(node(model, "RMSNormalization"), "stash_type", TensorProto.FLOAT16)
    return "RMSNormalization layers.0", "overflows", "stash_type 1"


def quantized(kind, zero_point=None, block=64):
    def plant(model):
        values = numpy_helper.from_array(np.zeros((2, block), np.int8), "q")
        values.data_type = kind
        inputs = ["q", "scale"]
        if zero_point is not None:
            model.graph.initializer.append(numpy_helper.from_array(np.array(zero_point, np.int8), "zero"))
            inputs.append("zero")
        model.graph.initializer.extend(
            [values, numpy_helper.from_array(np.ones((2, 1), np.float16), "scale")]
        )
        model.graph.node.append(
            helper.make_node("DequantizeLinear", inputs, ["wide"], name="planted", axis=1, block_size=block)
        )
        words = (
            "zero point" if zero_point else "unsigned" if kind == TensorProto.UINT4 else f"blocks of {block}"
        )
        return "DequantizeLinear planted", words, "blocks of 64" if "blocks" in words else "symmetrically"

    return plant


TRAPS = {
    "is_causal": causal,
    "nonpad_kv_seqlen": lengths,
    "cache that is no input": inner_cache,
    "past_key": past_key,
    "no mask": no_mask,
    "float mask": float_mask,
    "GroupQueryAttention": foreign("GroupQueryAttention", "TensorScatter"),
    "MatMulNBits": foreign("MatMulNBits", "int4"),
    "other operator": foreign("FusedMatMul", "opset 24"),
    "dynamic capacity": dynamic_capacity,
    "write that is lost": lost_write,
    "circular": circular,
    "axis": other_axis,
    "no write_indices": no_indices,
    "norm in float16": narrow_norm,
    "uint4": quantized(TensorProto.UINT4),
    "asymmetric int4": quantized(TensorProto.INT4, zero_point=3),
    "int4 blocks": quantized(TensorProto.INT4, block=16),
}


def test_the_graph_that_we_write_has_no_finding(model):
    assert lint(model) == []


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_refused_with_node_cause_and_remedy(model, trap):
    where, cause, remedy = TRAPS[trap](model)
    with pytest.raises(EngineError) as refused:
        check_graph(model, "bf16.onnx")
    assert refused.value.message.startswith(f"bf16.onnx: {where}")
    assert cause in refused.value.message
    assert remedy in refused.value.hint
    assert refused.value.exit_code == 2


def test_symmetric_int4_blocks_and_zero_points_of_zero_are_fine(model):
    quantized(TensorProto.INT4, zero_point=0)(model)
    assert lint(model) == []


def test_several_findings_are_counted(model):
    causal(model)
    circular(model)
    narrow_norm(model)
    with pytest.raises(EngineError, match=r"\(and 2 more\)"):
        check_graph(model, "bf16.onnx")
