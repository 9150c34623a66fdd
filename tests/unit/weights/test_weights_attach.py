"""The graph's initializers point at the planned bytes, where ONNX Runtime finds the checkpoint's values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from tiny_checkpoints import CONFIGS, DTYPES, random_weights, write_checkpoint

from llama_export.checkpoint import open_checkpoint
from llama_export.weights import plan_weights, write_weights
from llama_export.weights.attach import attach_weights

CONFIG = CONFIGS["gqa"]
IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize(("mode", "precision"), [("link", None), ("copy", "float16"), ("copy", "float32")])
def test_initializers_are_external_at_the_planned_place(graph_of, tmp_path, stored, mode, precision):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "from", CONFIG, stored, shards=2))
    plan = plan_weights(checkpoint, mode, precision)
    model = graph_of(CONFIG, "sdpa")
    attach_weights(model, plan)
    proto = ir.to_proto(model)
    assert proto.ByteSize() < 200_000  # no weight is inside
    external = {t.name: t for t in proto.graph.initializer if t.external_data}
    assert set(external) == set(CONFIG.tensor_shapes())
    for name, tensor in external.items():
        place = {entry.key: entry.value for entry in tensor.external_data}
        weight = plan.weights[name]
        assert tuple(tensor.dims) == CONFIG.tensor_shapes()[name]
        assert tensor.data_type == IR_DTYPES[precision or stored]
        assert place["location"] == weight.location
        assert (int(place["offset"]), int(place["length"])) == (weight.offset, weight.nbytes)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_what_reads_narrow_weights_widens_them(graph_of, tmp_path, precision):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "from", CONFIG))
    model = graph_of(CONFIG, "flash")
    attach_weights(model, plan_weights(checkpoint, "copy", precision))
    for node in model.graph:
        if node.op_type not in ("Cast", "Gather", "WidenGemm"):
            for value in node.inputs:
                assert value is None or value.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def test_onnx_runtime_reads_the_values_back(graph_of, tmp_path):
    """Each weight, made an output of a graph of its own, comes back as it was."""
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "from", CONFIG, "float32"))
    plan = plan_weights(checkpoint, "copy", "float32")
    write_weights(checkpoint, plan, tmp_path, lambda nbytes: None)
    model = graph_of(CONFIG, "eager")
    attach_weights(model, plan)
    weights = {n: v for n, v in model.graph.initializers.items() if n in plan.weights}
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="echo")
    for name, weight in weights.items():
        value = ir.Value(name=name, shape=weight.shape, type=weight.type, const_value=weight.const_value)
        graph.initializers.add(value)
        out = ir.Value(name=f"out.{name}", shape=weight.shape, type=weight.type)
        graph.append(ir.Node("", "Identity", [value], outputs=[out]))
        graph.outputs.append(out)
    (tmp_path / "echo.onnx").write_bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())
    session = onnxruntime.InferenceSession(tmp_path / "echo.onnx", providers=["CPUExecutionProvider"])
    for (name, want), got in zip(
        ((name, random_weights(CONFIG)[name]) for name in weights), session.run(None, {}), strict=True
    ):
        assert np.array_equal(got, want.numpy()), name
        assert want.dtype == torch.float32
