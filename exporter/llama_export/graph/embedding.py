"""The graph in front of one that takes embeddings: token ids to rows of the embedding."""

from __future__ import annotations

import onnx_ir as ir

from llama_export.graph import contract
from llama_export.model.config import LlamaConfig

_WEIGHT = "model.embed_tokens.weight"


def build_embedding(config: LlamaConfig) -> ir.Model:
    """Build it of basic operators, whatever the path of the other graph.

    Args:
        config: The checkpoint's architecture.

    Returns:
        A model from ``input_ids`` to ``inputs_embeds``. Its weight is as in ``build_graph``.
    """
    weight = ir.Value(
        name=_WEIGHT,
        shape=ir.Shape((config.vocab_size, config.hidden_size)),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    ids, embeds = contract.INPUT_IDS, contract.inputs_embeds(config)
    tokens = ir.Value(name=ids.name, shape=ir.Shape(ids.shape), type=ir.TensorType(ir.DataType.INT64))
    shape, float32 = ir.Shape(embeds.shape), ir.TensorType(ir.DataType.FLOAT)
    rows = ir.Value(name="rows", shape=shape, type=float32)
    output = ir.Value(name=embeds.name, shape=shape, type=float32)
    gather = ir.Node("", "Gather", [weight, tokens], outputs=[rows], name="Gather")
    # Where the weight is stored narrow, ``weights`` puts the widening between these two.
    same = ir.Node("", "Identity", [rows], outputs=[output], name="Identity")
    graph = ir.Graph(
        [tokens],
        [output],
        nodes=[gather, same],
        initializers=[weight],
        opset_imports=contract.OPSETS["eager"],
        name="embed_tokens",
    )
    return ir.Model(graph, ir_version=contract.IR_VERSIONS["eager"], producer_name=contract.PRODUCER)
