"""One strongly typed graph for a TensorRT engine, from the same traces of the same model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch

from llama_export.graph import contract, static_contract
from llama_export.graph.constant import add_constant, share_constant
from llama_export.graph.passes import simplify_reshapes
from llama_export.graph.stamp import stamp
from llama_export.graph.static_parts import static_parts, weight_namer
from llama_export.graph.trace import Traced, trace
from llama_export.model.config import LlamaConfig
from llama_export.model.rope import attention_factor, cos_sin, inverse_frequencies

IR_DTYPES = {
    "int64": ir.DataType.INT64,
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def build_static_graph(
    config: LlamaConfig, dtype: str, capacity: int, last_hidden_state: bool = False
) -> ir.Model:
    """Build the graph of a model that keeps ``static_contract``.

    Args:
        config: The checkpoint's architecture.
        dtype: What it computes in: ``"float32"``, ``"float16"`` or ``"bfloat16"``. Norms, angles and
            softmax are float32 inside, and so are the outputs but for the cache.
        capacity: C, slots of the cache; of a task head, which has none, the most tokens of a text.
        last_hidden_state: Of a language model, give that of all tokens too.

    Returns:
        A model whose weights are initializers named as in the checkpoint, of this dtype, without values.
    """
    prologue, layer, *rest = trace(
        static_parts(config, _TORCH_DTYPES[dtype], capacity, last_hidden_state), static_contract.OPSET
    )
    inputs = {spec.name: _declare(spec) for spec in static_contract.inputs(config, dtype, capacity)}
    opsets = {"": static_contract.OPSET}
    graph = ir.Graph(list(inputs.values()), [], nodes=[], opset_imports=opsets, name=f"llama_{dtype}")

    shared = inputs | _angles(graph, config, capacity)
    if config.generates:
        shared["slots"] = _slots(graph, inputs["kv_bucket"], capacity)
    shared |= stamp(graph, prologue, shared, "prologue", lambda name: f"model.{name}")
    presents: list[ir.Value] = []
    for i in range(config.num_hidden_layers):
        if config.generates:
            shared["past_key"] = inputs[contract.PAST_KEY.format(i=i)]
            shared["past_value"] = inputs[contract.PAST_VALUE.format(i=i)]
        shared |= stamp(graph, layer, shared, f"layers.{i}", weight_namer(i))
        if config.generates:
            presents += [shared["present_key"], shared["present_value"]]
    results = _stamp_rest(graph, rest, config, shared)
    specs = static_contract.outputs(config, dtype, capacity, last_hidden_state)
    values = [_widen(graph, value) for value in results] + presents
    for value, spec in zip(values, specs, strict=True):
        value.name, value.shape, value.dtype = spec.name, ir.Shape(spec.shape), IR_DTYPES[spec.dtype]
        graph.outputs.append(value)

    model = ir.Model(graph, ir_version=static_contract.IR_VERSION, producer_name=contract.PRODUCER)
    simplify_reshapes(graph)
    common_passes.CommonSubexpressionEliminationPass()(model)
    common_passes.RemoveUnusedNodesPass()(model)
    return model


def _declare(spec: contract.TensorSpec) -> ir.Value:
    return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(IR_DTYPES[spec.dtype]))


def _angles(graph: ir.Graph, config: LlamaConfig, capacity: int) -> dict[str, ir.Value]:
    """What rotary embedding starts from: the table of all positions, or the frequencies alone."""
    inv_freq = inverse_frequencies(config)
    if config.rope.depends_on_length or not config.generates:
        return {"inv_freq": add_constant(graph, "rope.inv_freq", inv_freq.numpy())}
    cos, sin = cos_sin(torch.arange(capacity), inv_freq, attention_factor(config))
    return {
        "cos": add_constant(graph, "rope.cos", cos.numpy()),
        "sin": add_constant(graph, "rope.sin", sin.numpy()),
    }


def _slots(graph: ir.Graph, bucket: ir.Value, capacity: int) -> ir.Value:
    """Indices of the slots that are read: the first of all."""
    every = add_constant(graph, "slots", np.arange(capacity))
    first, axis = share_constant(graph, np.array([0])), share_constant(graph, np.array([0]))
    shape, kind = ir.Shape((static_contract.BUCKET,)), ir.TensorType(ir.DataType.INT64)
    slots = ir.Value(name="slots.read", shape=shape, type=kind)
    graph.append(ir.Node("", "Slice", [every, first, bucket, axis], outputs=[slots], name="slots.Slice"))
    return slots


def _stamp_rest(
    graph: ir.Graph, rest: list[Traced], config: LlamaConfig, shared: dict[str, ir.Value]
) -> list[ir.Value]:
    """Append what is behind the last layer; returns its outputs in the contract's order."""

    def name_weight(name: str) -> str:
        if name == "norm.weight":
            return "model.norm.weight"
        # A tied head reads the embedding: one initializer, two uses.
        tied = config.generates and config.tie_word_embeddings
        return "model.embed_tokens.weight" if tied else name

    results: dict[str, ir.Value] = {}
    for part in rest:
        results = stamp(graph, part, shared, "head", name_weight)
        shared = shared | results
    return list(results.values())


def _widen(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The value in float32."""
    if value.dtype == ir.DataType.FLOAT:
        return value
    wide = ir.Value(name=f"{value.name}.float32", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
    to = [ir.AttrInt64("to", ir.DataType.FLOAT)]
    graph.append(ir.Node("", "Cast", [value], to, outputs=[wide], name=f"{value.name}.Cast"))
    return wide
