"""The built graph keeps the contract: names, dtypes, dims, opsets, and what each path promises to contain."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_checkpoints import CONFIGS, random_weights, with_layers

from llama_export.graph import contract
from llama_export.model import ATTENTION_PATHS

CONFIG = CONFIGS["gqa"]
LAYERS = CONFIG.num_hidden_layers
DIMS = {contract.BATCH, contract.SEQUENCE, contract.PAST, contract.TOTAL, contract.LOGITS}


@pytest.fixture(params=ATTENTION_PATHS)
def path(request):
    return request.param


@pytest.fixture
def model(graph_of, path):
    return graph_of(CONFIG, path)


def with_values(model, config):
    """The graph as a proto whose weights are inside it."""
    for name, weight in random_weights(config).items():
        model.graph.initializers[name].const_value = ir.tensor(weight.numpy(), name=name)
    return ir.to_proto(model)


def count(model):
    return Counter((node.domain, node.op_type) for node in model.graph)


def specs(values):
    names = {ir.DataType.INT64: "int64", ir.DataType.FLOAT: "float32"}
    return [
        contract.TensorSpec(
            value.name,
            names[value.dtype],
            tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape),
        )
        for value in values
    ]


def test_inputs_and_outputs_are_the_contracts(model):
    *required, optional = specs(model.graph.inputs)
    assert required == contract.inputs(CONFIG)
    assert optional == contract.NUM_LOGITS_TO_KEEP
    assert specs(model.graph.outputs) == contract.outputs(CONFIG)


def test_num_logits_to_keep_is_an_initializer_that_may_be_overridden(model):
    value = model.graph.initializers["num_logits_to_keep"]
    assert value is model.graph.inputs[-1]
    assert value.const_value.numpy().tolist() == [0]


def test_opset_and_ir_version_are_the_contracts(model, path):
    assert dict(model.graph.opset_imports) == contract.OPSETS[path]
    assert model.ir_version == contract.IR_VERSIONS[path]
    assert model.producer_name == "llama-export"


def test_every_weight_is_an_initializer_without_value(model):
    shapes = CONFIG.tensor_shapes()
    weights = {k: v for k, v in model.graph.initializers.items() if v.const_value is None}
    assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
    assert {value.dtype for value in weights.values()} == {ir.DataType.FLOAT}


def test_a_tied_head_reads_the_embedding(graph_of, path):
    config = CONFIGS["mha_tied"]
    model = graph_of(config, path)
    assert "lm_head.weight" not in model.graph.initializers
    uses = model.graph.initializers["model.embed_tokens.weight"].uses()
    assert sorted(use.node.op_type for use in uses) == ["Gather", "Gemm"]


def test_ops_of_the_eager_path(graph_of):
    ops = count(graph_of(CONFIG, "eager"))
    assert {domain for domain, _ in ops} == {""}
    assert ops["", "Softmax"] == LAYERS
    fused = {"Attention", "RMSNormalization", "RotaryEmbedding", "LayerNormalization"}
    assert not fused & {op for _, op in ops}


def test_ops_of_the_sdpa_path(graph_of):
    ops = count(graph_of(CONFIG, "sdpa"))
    assert {domain for domain, _ in ops} == {""}
    assert ops["", "Attention"] == LAYERS
    assert ops["", "RMSNormalization"] == 2 * LAYERS + 1
    assert ops["", "RotaryEmbedding"] == 2 * LAYERS
    assert not {"Softmax", "MatMul", "ReduceMean"} & {op for _, op in ops}


def test_ops_of_the_flash_path(graph_of):
    ops = count(graph_of(CONFIG, "flash"))
    assert ops["com.microsoft", "GroupQueryAttention"] == LAYERS
    assert ops["com.microsoft", "SkipSimplifiedLayerNormalization"] == 2 * LAYERS
    # The first norm follows the embedding: no sum to fuse with.
    assert ops["", "RMSNormalization"] == 1
    assert not {"Attention", "Softmax", "RotaryEmbedding", "Transpose", "MatMul", "Cos"} & {o for _, o in ops}


def test_group_query_attention_gets_no_position_ids(graph_of):
    """It would read the first row's alone."""
    for node in graph_of(CONFIG, "flash").graph:
        if node.op_type == "GroupQueryAttention":
            assert node.inputs[9] is None
            assert node.inputs[10].shape[3] == contract.TOTAL
            assert node.attributes["num_heads"].as_int() == CONFIG.num_attention_heads
            assert node.attributes["kv_num_heads"].as_int() == CONFIG.num_key_value_heads
            assert node.attributes["do_rotary"].as_int() == 1


def test_linears_are_gemms_that_read_weights_as_they_are(model):
    graph = model.graph
    matrices = {name for name, shape in CONFIG.tensor_shapes().items() if len(shape) == 2}
    gemms = [node for node in graph if node.op_type == "Gemm"]
    assert len(gemms) == 7 * LAYERS + 1
    for node in gemms:
        assert node.inputs[1].name in matrices
        assert node.attributes["transB"].as_int() == 1
        assert node.attributes.get_int("transA", 0) == 0
        assert node.attributes.get_float("alpha", 1.0) == 1.0
    for name in matrices:
        for use in graph.initializers[name].uses():
            assert use.node.op_type == ("Gather" if "embed_tokens" in name else "Gemm")


def test_every_symbolic_dim_is_the_contracts(model):
    for node in model.graph:
        for output in node.outputs:
            for dim in output.shape or ():
                symbols = re.findall(r"[A-Za-z_]\w*", str(dim))
                assert set(symbols) <= DIMS, (node.name, output.shape)


def test_value_and_node_names_are_unique(model):
    nodes = [node.name for node in model.graph]
    values = [output.name for node in model.graph for output in node.outputs if output.name]
    assert len(set(nodes)) == len(nodes)
    assert len(set(values)) == len(values)
    assert not set(values) & set(model.graph.initializers)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_checker_is_satisfied(graph_of, path, name):
    proto = with_values(graph_of(CONFIGS[name], path), CONFIGS[name])
    onnx.checker.check_model(proto, full_check=True)


def in_layer(model, index):
    """Structure of a layer's nodes, with its number taken out of every name."""
    mine = f"layers.{index}."

    def local(value):
        if value is None:
            return None
        name = re.sub(rf"\b(layers|past_key_values|present)\.{index}\.", r"\1.#.", value.name)
        if index:  # what comes from the layer before, or is shared with the first, is named after those
            name = re.sub(rf"^layers\.{index - 1}\.", "before.", name)
        return name

    return [
        (node.domain, node.op_type, [local(v) for v in node.inputs], [local(v) for v in node.outputs])
        for node in model.graph
        if node.name.startswith(mine)
    ]


def test_layers_are_copies_of_one_trace(graph_of, path):
    """Between the first (which defines what all share) and the last, layers differ in their number alone."""
    model = graph_of(with_layers(CONFIG, 9), path)
    third, *others = [in_layer(model, index) for index in range(2, 8)]
    assert any(name.startswith("before.") for _, _, inputs, _ in third for name in inputs if name)
    for other in others:
        assert other == third


def test_depth_adds_layers_and_nothing_else(graph_of, path):
    shallow, deep = graph_of(CONFIG, path), graph_of(with_layers(CONFIG, 9), path)

    def outside(model):
        nodes = [node for node in model.graph if not node.name.startswith("layers.")]
        return [(node.domain, node.op_type, node.name) for node in nodes]

    assert outside(shallow) == outside(deep)
    for index in range(LAYERS - 1):
        assert in_layer(shallow, index) == in_layer(deep, index)
    assert in_layer(shallow, LAYERS - 1) == in_layer(deep, 8)
    assert len(deep.graph) - len(shallow.graph) == 6 * len(in_layer(deep, 2))
    own = [name for name in deep.graph.initializers if name not in shallow.graph.initializers]
    assert len(own) == 6 * 9
    assert all(re.match(r"model\.layers\.[3-8]\.", name) for name in own)


def test_the_parts_are_traced_once_whatever_the_depth(monkeypatch):
    """Forty layers and two cost the same one trace of four parts: prologue, layer, final norm, head."""
    from llama_export.graph import assemble

    traced = []

    def spy(parts, opset):
        traced.append([part.outputs for part in parts])
        return real(parts, opset)

    real = assemble.trace
    monkeypatch.setattr(assemble, "trace", spy)
    model = assemble.build_graph(with_layers(CONFIGS["mha_tied"], 40), "flash")
    assert [len(parts) for parts in traced] == [4]
    assert count(model)["com.microsoft", "GroupQueryAttention"] == 40


def test_the_graph_belongs_to_no_machine(model):
    """No source path, no stack trace, no metadata of the tracer travels along."""
    proto = with_values(model, CONFIG)
    assert b"site-packages" not in proto.SerializeToString()
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    small = [init for init in proto.graph.initializer if init.name not in CONFIG.tensor_shapes()]
    assert all(np.prod(init.dims) < 10 for init in small if not init.name.startswith("rope."))
