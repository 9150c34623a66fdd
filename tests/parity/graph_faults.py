"""Faults of the graph: each takes a built model of ``gqa``'s shape and its path, and breaks one thing."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from tiny_checkpoints import CONFIGS

from llama_export.model import RopeConfig

CONFIG = CONFIGS["gqa"]


def constant(model, array):
    name = f"fault.{len(model.graph.initializers)}"
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def insert(model, before, op, *inputs, **attributes):
    """Add a node in front of another and return its output."""
    inputs = [value if isinstance(value, ir.Value) else constant(model, value) for value in inputs]
    attributes = [ir.AttrInt64(name, number) for name, number in attributes.items()]
    node = ir.Node("", op, inputs, attributes, name=f"fault.{op}.{len(model.graph)}")
    node.outputs[0].name = f"{node.name}.out"
    model.graph.insert_before(before, node)
    return node.outputs[0]


def nodes(model, op):
    return [node for node in model.graph if node.op_type == op]


def input_of(model, name):
    return next(value for value in model.graph.inputs if value.name == name)


def rope_theta(model, path):
    """The angles of another base."""
    from llama_export.graph import assemble

    wrong = dataclasses.replace(CONFIG, rope=RopeConfig(rope_theta=10500.0))
    scratch = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    for value in assemble._rotary_tables(scratch, wrong, path).values():
        model.graph.initializers[value.name].const_value = value.const_value


def sees_one_too_many(model, path):
    """The mask's diagonal is one further right: every query sees the token after it."""
    (compare,) = nodes(model, "LessOrEqual")
    compare.replace_input_with(1, insert(model, compare, "Add", compare.inputs[1], np.array(1)))


def not_a_number(model, path):
    """The root of a negative number: a NaN is neither within nor beyond any tolerance."""
    nodes(model, "RMSNormalization")[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", -1e9)


def other_layers_past(model, path):
    """Layer 0 continues layer 1's past and the other way round: nothing is wrong while there is none."""
    first, second = (input_of(model, f"past_key_values.{i}.value") for i in (0, 1))
    uses = [(use, second) for use in first.uses()] + [(use, first) for use in second.uses()]
    for use, value in uses:
        use.node.replace_input_with(use.idx, value)


def sees_the_whole_chunk(model, path):
    """With a past, all of a chunk is visible to each of its tokens: single tokens do not notice."""
    (compare,) = nodes(model, "LessOrEqual")
    own = compare.inputs[1]  # [T, 1]: each query's slot
    past = insert(model, compare, "Shape", input_of(model, "past_key_values.0.key"), start=2, end=3)
    last = insert(model, compare, "ReduceMax", own)
    some = insert(model, compare, "Greater", past, np.array([0]))
    compare.replace_input_with(1, insert(model, compare, "Where", some, last, own))


def hides_no_leading_padding(model, path):
    """GroupQueryAttention without its bias."""
    first, *others = nodes(model, "GroupQueryAttention")
    nothing = insert(model, first, "Mul", first.inputs[10], np.float32(0))
    for node in (first, *others):
        node.replace_input_with(10, nothing)


def counts_trailing_padding(model, path):
    """Every row's tokens end where the batch's do."""
    first, *others = nodes(model, "GroupQueryAttention")
    zeros = insert(model, first, "Mul", first.inputs[5], np.int32(0))  # [B]
    last = insert(model, first, "Sub", first.inputs[6], np.int32(1))
    ends = insert(model, first, "Add", zeros, last)
    for node in (first, *others):
        node.replace_input_with(5, ends)


def layer_gemm(model, weight):
    """The Gemm that reads a weight."""
    return next(n for n in nodes(model, "Gemm") if any(v.name.startswith(weight) for v in n.inputs if v))


def swaps_k_and_v(model, path):
    """In layer 1, what is projected as key is used as value and the other way round."""
    key, value = (layer_gemm(model, f"model.layers.1.self_attn.{part}_proj").outputs[0] for part in "kv")
    uses = [(use, value) for use in key.uses()] + [(use, key) for use in value.uses()]
    for use, other in uses:
        use.node.replace_input_with(use.idx, other)
    common.TopologicalSortPass()(model)


def transposes_the_heads(model, path):
    """In layer 2, what the heads found is joined in the order of the other axis."""
    gemm = layer_gemm(model, "model.layers.2.self_attn.o_proj")
    order = np.arange(96).reshape(6, 16).T.flatten()
    gemm.replace_input_with(0, insert(model, gemm, "Gather", gemm.inputs[0], order, axis=1))


def past_length(model, before):
    return insert(model, before, "Shape", input_of(model, "past_key_values.0.key"), start=2, end=3)


def counts_positions_from_one_when_decoding(model, path):
    """With a past, every position is one too far: without one, rotary embedding could not tell."""
    positions = input_of(model, "position_ids")
    uses = list(positions.uses())
    first = uses[0].node
    some = insert(model, first, "Sign", past_length(model, first))
    late = insert(model, first, "Add", positions, some)
    for use in uses:
        if use.node.op_type != "Shape":
            use.node.replace_input_with(use.idx, late)


def upper_left_mask(model, path):
    """Query t sees the first t + 1 slots, whatever the past."""
    (compare,) = nodes(model, "LessOrEqual")
    own = compare.inputs[1]
    compare.replace_input_with(1, insert(model, compare, "Sub", own, past_length(model, compare)))
