"""Every pass on a graph small enough to read: the numbers stayed, and the ops changed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from llama_export.graph.passes import (
    fuse_residual_norm,
    simplify_reshapes,
    store_weights_as,
    widen_in_products,
)

B, T, W = "batch_size", "sequence_length", 12
N = "batch_size*sequence_length"
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


class Sketch:
    """A graph under construction."""

    def __init__(self):
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": 23, "com.microsoft": 1}, name="sketch")
        self.random = np.random.default_rng(0)

    def input(self, name, shape, dtype=FLOAT):
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def constant(self, name, array):
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.initializers.add(value)
        return value

    def weight(self, name, *shape):
        return self.constant(name, self.random.standard_normal(shape).astype(np.float32))

    def node(self, op, inputs, name, shape=None, dtype=FLOAT, **attributes):
        out = ir.Value(name=name, shape=None if shape is None else ir.Shape(shape), type=ir.TensorType(dtype))
        built = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        self.graph.append(ir.Node("", op, inputs, built, outputs=[out], name=f"node.{name}"))
        return out

    def output(self, *values):
        self.graph.outputs.extend(values)

    def ops(self):
        return [node.op_type for node in self.graph]

    def reshapes(self):
        return [node for node in self.graph if node.op_type == "Reshape"]

    def run(self, model=None, **feeds):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # What is compared is our rewriting, not ONNX Runtime's.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        proto = ir.to_proto(model or ir.Model(self.graph, ir_version=11)).SerializeToString()
        session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)


def assert_same(before, after, limit=0.0):
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        np.testing.assert_allclose(new, old, rtol=0, atol=limit)


# fuse_residual_norm


def residual_stream():
    """Norm of an embedding, then twice: add, norm; the last sum is an output of the graph too."""
    s = Sketch()
    x, y = s.input("x", (N, W)), s.input("y", (N, W))
    first = s.node("RMSNormalization", [x, s.weight("w0", W)], "first", (N, W), axis=-1, epsilon=1e-5)
    total = s.node("Add", [x, y], "total", (N, W))
    second = s.node("RMSNormalization", [total, s.weight("w1", W)], "second", (N, W), axis=-1, epsilon=1e-6)
    again = s.node("Add", [total, second], "again", (N, W))
    third = s.node("RMSNormalization", [again, s.weight("w2", W)], "third", (N, W), axis=-1, epsilon=1e-5)
    last = s.node("Add", [again, third], "last", (N, W))
    s.output(s.node("Mul", [first, second], "product", (N, W)), last)
    return s


def test_residual_norm_fuses_sums_and_keeps_numbers():
    s = residual_stream()
    generator = np.random.default_rng(1)
    feeds = {name: generator.standard_normal((5, W)).astype(np.float32) for name in "xy"}
    before = s.run(**feeds)
    fuse_residual_norm(s.graph)
    fused = "SkipSimplifiedLayerNormalization"
    assert s.ops() == ["RMSNormalization", fused, fused, "Add", "Mul"]
    assert_same(before, s.run(**feeds), 1e-6)


def test_residual_norm_keeps_each_epsilon():
    s = residual_stream()
    fuse_residual_norm(s.graph)
    fused = [node for node in s.graph if node.domain == "com.microsoft"]
    assert [node.attributes["epsilon"].as_float() for node in fused] == pytest.approx([1e-6, 1e-5])


def test_residual_norm_leaves_a_norm_without_sum_alone():
    s = Sketch()
    x = s.input("x", (N, W))
    s.output(s.node("RMSNormalization", [x, s.weight("w", W)], "normed", (N, W), axis=-1, epsilon=1e-5))
    fuse_residual_norm(s.graph)
    assert s.ops() == ["RMSNormalization"]


# simplify_reshapes


def reshaping():
    """[B, T, 12] -> [N, 12] -> [B, T, 12] -> [N, 12] -> heads, with shape arithmetic in front of each."""
    s = Sketch()
    ids = s.input("ids", (B, T), INT64)
    table = s.weight("table", 7, W)
    hidden = s.node("Gather", [table, ids], "hidden", (B, T, W))
    shape = s.node("Shape", [ids], "shape", (2,), INT64)
    width = s.constant("width", np.array([W]))
    whole = s.node("Concat", [shape, width], "whole", (3,), INT64, axis=0)
    minus = s.constant("minus", np.array([-1]))
    flat_target = s.node("Concat", [minus, width], "flat_target", (2,), INT64, axis=0)
    flat = s.node("Reshape", [hidden, flat_target], "flat", (N, W))
    back = s.node("Reshape", [flat, whole], "back", (B, T, W))
    again = s.node("Reshape", [back, flat_target], "again", (N, W))
    doubled = s.node("Add", [again, again], "doubled", (N, W))
    heads = s.constant("heads", np.array([3, 4]))
    heads_target = s.node("Concat", [shape, heads], "heads_target", (4,), INT64, axis=0)
    one = s.node("Reshape", [doubled, heads_target], "one", (B, T, 3, 4))
    two = s.node("Reshape", [again, heads_target], "two", (B, T, 3, 4))
    tripled = s.node("Add", [one, two], "tripled", (B, T, 3, 4))
    s.output(tripled, back)
    return s


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (2, 5), (4, 1)])
def test_reshapes_are_shared_and_keep_numbers(rows, tokens):
    s = reshaping()
    ids = np.random.default_rng(2).integers(0, 7, (rows, tokens))
    before = s.run(ids=ids)
    simplify_reshapes(s.graph)
    reshapes = s.reshapes()
    for node in reshapes:
        producer = node.inputs[0].producer()
        assert producer is None or producer.op_type != "Reshape"
    targets = {}
    for node in reshapes:
        targets.setdefault(str(node.outputs[0].shape), set()).add(node.inputs[1].name)
    assert set(targets) == {f"[{B},{T},3,4]", f"[{B},{T},12]", f"[{N},12]"}
    assert all(len(names) == 1 for names in targets.values())
    assert_same(before, s.run(ids=ids))
    CommonSubexpressionEliminationPass()(ir.Model(s.graph, ir_version=11))
    assert len(s.reshapes()) == 4  # flat once, back as an output, and one for each heads
    assert_same(before, s.run(ids=ids))


def test_targets_without_the_batch_are_constants():
    s = reshaping()
    simplify_reshapes(s.graph)
    flat = next(node for node in s.reshapes() if str(node.outputs[0].shape) == f"[{N},12]")
    assert flat.inputs[1].const_value.numpy().tolist() == [-1, 12]


def test_shape_arithmetic_is_left_over_for_one_shape_alone():
    s = reshaping()
    simplify_reshapes(s.graph)
    RemoveUnusedNodesPass()(ir.Model(s.graph, ir_version=11))
    assert s.ops().count("Shape") == 1


def test_a_reshape_that_changes_nothing_goes():
    s = Sketch()
    ids = s.input("ids", (B, T), INT64)
    hidden = s.node("Gather", [s.weight("table", 7, W), ids], "hidden", (B, T, W))
    same = s.node("Reshape", [hidden, s.constant("target", np.array([0, 0, W]))], "same", (B, T, W))
    s.output(s.node("Add", [same, same], "sum", (B, T, W)))
    ids = np.array([[1, 2, 3]])
    before = s.run(ids=ids)
    simplify_reshapes(s.graph)
    RemoveUnusedNodesPass()(ir.Model(s.graph, ir_version=11))
    assert s.ops() == ["Gather", "Add"]
    assert_same(before, s.run(ids=ids))


# store_weights_as


def embedding_and_head():
    """A tied table read by Gather and Gemm, and a weight of its own."""
    s = Sketch()
    ids = s.input("ids", (T,), INT64)
    table, other = s.weight("table", 7, W), s.weight("other", W, W)
    hidden = s.node("Gather", [table, ids], "hidden", (T, W))
    mixed = s.node("Gemm", [hidden, other], "mixed", (T, W), transB=1)
    s.output(s.node("Gemm", [mixed, table], "logits", (T, 7), transB=1), s.node("Neg", [hidden], "minus"))
    return s


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("FLOAT16", torch.float16), ("BFLOAT16", torch.bfloat16)])
def test_storage_casts_behind_weights_and_keeps_numbers(dtype, torch_dtype):
    s, stored = embedding_and_head(), ir.DataType[dtype]
    weights = {name: s.graph.initializers[name] for name in ("table", "other")}
    rounded = {
        name: torch.from_numpy(w.const_value.numpy().copy()).to(torch_dtype) for name, w in weights.items()
    }
    for name, weight in weights.items():
        weight.const_value = ir.tensor(rounded[name].float().numpy(), name=name)
    ids = np.array([0, 6, 3, 3])
    before = s.run(ids=ids)

    store_weights_as(s.graph, dict.fromkeys(weights, stored))
    for name, weight in weights.items():
        assert weight.dtype == stored
        raw = rounded[name].view(torch.uint16).numpy().view(stored.numpy())
        weight.const_value = ir.Tensor(raw, dtype=stored, shape=weight.shape, name=name)
    assert s.ops().count("Cast") == 3
    gather = next(node for node in s.graph if node.op_type == "Gather")
    assert gather.inputs[0].name == "table"  # the narrow table itself: only the rows read are widened
    assert gather.outputs[0].dtype == stored
    for node in s.graph:
        if node.op_type == "Gemm":
            assert all(value.dtype == FLOAT for value in node.inputs)
    assert_same(before, s.run(ids=ids))


def test_storage_as_float32_changes_nothing():
    s = embedding_and_head()
    store_weights_as(s.graph, {"table": FLOAT, "other": FLOAT})
    assert "Cast" not in s.ops()


def test_one_cast_serves_all_readers_of_a_weight():
    s = Sketch()
    x = s.input("x", (T, W))
    w = s.weight("w", W, W)
    once = s.node("Gemm", [x, w], "once", (T, W), transB=1)
    s.output(s.node("Gemm", [once, w], "twice", (T, W), transB=1))
    store_weights_as(s.graph, {"w": ir.DataType.FLOAT16})
    assert s.ops() == ["Cast", "Gemm", "Gemm"]


# widen_in_products


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_products_with_narrow_weights_become_calls_of_a_function(dtype):
    s = Sketch()
    x = s.input("x", ("rows", W))
    shapes = {"scale": (W,), "a": (8, W), "b": (W, 8), "turned": (W, 5), "both": (W, W)}
    weights = {name: s.weight(name, *shape) for name, shape in shapes.items()}
    bias = s.weight("bias", 8)
    normed = s.node("Mul", [x, weights["scale"]], "normed")
    wide = s.node("Gemm", [normed, weights["a"], bias], "wide", transB=1)
    s.node("Gemm", [wide, weights["b"]], "back", transB=1)
    back = s.node("Gemm", [s.graph[-1].outputs[0], weights["both"]], "again", transB=1)
    odd = s.node("Gemm", [back, weights["turned"]], "odd")
    s.output(odd, s.node("Add", [back, weights["both"]], "sum"))
    store_weights_as(s.graph, dict.fromkeys(weights, dtype))
    for weight in weights.values():
        narrow = weight.const_value.numpy().astype(dtype.numpy())
        weight.const_value = ir.Tensor(narrow, dtype=dtype, shape=weight.shape, name=weight.name)
    model = ir.Model(s.graph, ir_version=11)
    feeds = {"x": np.random.default_rng(1).normal(size=(W, W)).astype(np.float32)}
    before = s.run(**feeds)

    widen_in_products(model)
    assert sorted(s.ops()) == ["Add", "Cast", "Cast", "Cast", "Gemm", "Mul", *3 * ["WidenGemm"]]
    calls = [node for node in s.graph if node.op_type == "WidenGemm"]
    assert [call.inputs[1].name for call in calls] == ["a", "b", "both"] and calls[0].inputs[2] is bias
    assert [function.name for function in model.functions.values()] == ["WidenGemm"]
    assert_same(before, s.run(model, **feeds))


def test_a_graph_of_wide_weights_calls_no_function():
    s = Sketch()
    s.output(s.node("Gemm", [s.input("x", (T, W)), s.weight("w", W, W)], "y", transB=1))
    model = ir.Model(s.graph, ir_version=11)
    widen_in_products(model)
    assert s.ops() == ["Gemm"] and not model.functions
