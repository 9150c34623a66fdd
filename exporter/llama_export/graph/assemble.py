"""One graph from four traces: prologue, ``num_hidden_layers`` copies of one decoder layer, norm, head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch

from llama_export.graph import contract, parts
from llama_export.graph.constant import add_constant, share_constant
from llama_export.graph.passes import compute_in_half, drop_bias, fuse_residual_norm, simplify_reshapes
from llama_export.graph.stamp import stamp
from llama_export.graph.trace import Traced, trace
from llama_export.model.attention import AttentionPath
from llama_export.model.config import LlamaConfig
from llama_export.model.rope import attention_factor, cos_sin, inverse_frequencies

_IR_DTYPES = {"int64": ir.DataType.INT64, "float32": ir.DataType.FLOAT, "int8": ir.DataType.INT8}


def build_graph(
    config: LlamaConfig, path: AttentionPath, extras: contract.Extras = contract.NO_EXTRAS
) -> ir.Model:
    """Build the graph of a model on an attention path.

    Time and memory do not grow with depth beyond copying the layer's nodes.

    Args:
        config: The checkpoint's architecture.
        path: Attention path; decides opset and operators.
        extras: What the graph takes and gives besides the default.

    Returns:
        A model that keeps the contract. Its weights are initializers named as in the checkpoint, of what it
        computes in, without values: ``weights`` attaches them.
    """
    opset = contract.OPSETS[path][""]
    prologue, layer, norm, *head = trace(
        [
            parts.prologue(config, path, extras),
            parts.decoder_layer(config, path, extras),
            parts.norm(config, path),
            *parts.head(config),
        ],
        opset,
    )
    wide = replace(extras, compute="float32")  # which it is until all is in place
    inputs = {spec.name: _declare(spec) for spec in contract.inputs(config, wide)}
    graph = ir.Graph(
        list(inputs.values()), [], nodes=[], opset_imports=contract.OPSETS[path], name=f"llama_{path}"
    )

    optional = {spec.name: _add_optional(graph, spec) for spec in contract.optional_inputs(config)}
    shared = inputs | optional | _rotary_tables(graph, config, path)
    shared |= stamp(graph, prologue, shared, "prologue", lambda name: f"model.{name}")
    if extras.inputs_embeds:
        shared["hidden"] = inputs["inputs_embeds"]
    # The embeddings are the graph's input, or a row of a weight that may be stored narrow: a copy is neither.
    states = [_copy(graph, shared["hidden"])] if extras.hidden_states == "all" else []
    presents: list[ir.Value] = []
    attentions: list[ir.Value] = []
    for i in range(config.num_hidden_layers):
        if config.generates:
            shared["past_key"] = inputs[contract.PAST_KEY.format(i=i)]
            shared["past_value"] = inputs[contract.PAST_VALUE.format(i=i)]
        shared |= stamp(graph, layer, shared, f"layers.{i}", _layer_weight_names(i))
        if config.generates:
            presents += [shared["present_key"], shared["present_value"]]
        if extras.attentions:
            attentions.append(shared["attentions"])
        if extras.hidden_states == "all" and i + 1 < config.num_hidden_layers:
            states.append(shared["hidden"])
    shared |= stamp(graph, norm, shared, "norm", lambda name: f"model.{name}")
    results = [value for part in head for value in _stamp_head(graph, part, config, shared)]

    results = results or [shared["last_hidden_state"]]
    if extras.hidden_states is not None:
        states.append(shared["last_hidden_state"])
    values = [*results, *presents, *states, *attentions]
    for value, spec in zip(values, contract.outputs(config, wide), strict=True):
        value.name, value.shape, value.dtype = spec.name, ir.Shape(spec.shape), _IR_DTYPES[spec.dtype]
        graph.outputs.append(value)

    model = ir.Model(graph, ir_version=contract.IR_VERSIONS[path], producer_name=contract.PRODUCER)
    simplify_reshapes(graph)
    if path == "flash":
        fuse_residual_norm(graph)
    if extras.compute == "float16":
        drop_bias(graph)
        common_passes.RemoveUnusedNodesPass()(model)
        compute_in_half(graph)
    common_passes.CommonSubexpressionEliminationPass()(model)
    common_passes.RemoveUnusedNodesPass()(model)
    return model


def _copy(graph: ir.Graph, value: ir.Value) -> ir.Value:
    copy = ir.Value(name=f"{value.name}.copy", shape=value.shape, type=value.type)
    graph.append(ir.Node("", "Identity", [value], outputs=[copy], name=f"{value.name}.Identity"))
    return copy


def _declare(spec: contract.TensorSpec) -> ir.Value:
    return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(_IR_DTYPES[spec.dtype]))


def _layer_weight_names(index: int) -> Callable[[str], str]:
    return lambda name: name.replace("layer", f"model.layers.{index}", 1)


def _stamp_head(
    graph: ir.Graph, head: Traced, config: LlamaConfig, shared: dict[str, ir.Value]
) -> list[ir.Value]:
    """Append the head; returns its outputs in the contract's order."""
    tied = config.generates and config.tie_word_embeddings
    if config.generates:
        shared = shared | {
            "last_hidden_state": _keep_last(
                graph, shared["last_hidden_state"], shared[contract.NUM_LOGITS_TO_KEEP.name]
            )
        }
    # A tied head reads the embedding: one initializer, two uses.
    results = stamp(graph, head, shared, "head", lambda name: "model.embed_tokens.weight" if tied else name)
    return list(results.values())


def _rotary_tables(graph: ir.Graph, config: LlamaConfig, path: AttentionPath) -> dict[str, ir.Value]:
    """Add the numbers that rotary embedding starts from, as the path takes them."""
    inv_freq = inverse_frequencies(config)
    if path != "flash" or config.rope.depends_on_length:
        return {"inv_freq": add_constant(graph, "rope.inv_freq", inv_freq.numpy())}
    cos, sin = cos_sin(torch.arange(config.context_length), inv_freq, attention_factor(config))
    return {
        "cos": add_constant(graph, "rope.cos", cos.numpy()),
        "sin": add_constant(graph, "rope.sin", sin.numpy()),
    }


def _add_optional(graph: ir.Graph, spec: contract.TensorSpec) -> ir.Value:
    """Add an input that may be left out: an initializer of 0, int64 [1], that is listed as input too."""
    value = add_constant(graph, spec.name, np.zeros(1, np.int64))
    graph.inputs.append(value)
    return value


def _keep_last(graph: ir.Graph, hidden: ir.Value, keep: ir.Value) -> ir.Value:
    """Slice [B, T, hidden_size] to the last ``num_logits_to_keep`` tokens; from -0 on is all of them."""
    assert hidden.shape is not None
    end = share_constant(graph, np.array([np.iinfo(np.int64).max]))
    axis = share_constant(graph, np.array([1]))
    negate = ir.Node("", "Neg", [keep], name="keep.Neg", outputs=[ir.Value(name="keep.start")])
    shape = ir.Shape((contract.BATCH, contract.LOGITS, hidden.shape[2]))
    kept = ir.Value(name="keep.hidden", shape=shape, type=hidden.type)
    cut = ir.Node("", "Slice", [hidden, negate.outputs[0], end, axis], name="keep.Slice", outputs=[kept])
    graph.extend([negate, cut])
    return kept
