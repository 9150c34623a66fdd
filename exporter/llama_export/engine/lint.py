"""What TensorRT would refuse in a graph, and what it would take and compute wrongly, found before a build.

Each trap was measured (FORMAT.md, Engines): the parser maps causal attention upper-left, drops sequence
lengths, and copies a cache that it cannot alias, all without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from llama_export.errors import EngineError

_UNSIGNED = (TensorProto.UINT4, TensorProto.UINT8)
_INT4_BLOCKS = (32, 64, 128)
_MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = 3, 4, 5, 6  # inputs of Attention
MASK_REMEDY = "give it an explicit boolean mask, slots <= position_ids, and is_causal 0"


@dataclass(frozen=True)
class Finding:
    """One node that must not be built.

    Attributes:
        node: Its name and operator.
        cause: What TensorRT would do with it.
        remedy: What to write instead.
    """

    node: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.cause}"


class _Graph:
    """A graph, and who makes and reads what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.inputs = {value.name: value for value in model.graph.input}
        self.outputs = {value.name: value for value in model.graph.output}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.dtypes = {
            value.name: value.type.tensor_type.elem_type
            for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        } | {name: tensor.data_type for name, tensor in self.constants.items()}

    def behind(self, name: str) -> NodeProto | None:
        """What makes a value, read through the Slice that cuts a cache to its bucket."""
        node = self.makers.get(name)
        return self.makers.get(node.input[0]) if node is not None and node.op_type == "Slice" else node


def lint(model: onnx.ModelProto) -> list[Finding]:
    """Find every node that TensorRT would refuse or compute wrongly.

    Args:
        model: The graph; its external data need not be loaded.
    """
    graph = _Graph(model)
    return [finding for node in graph.nodes for rule in _RULES for finding in rule(graph, node)]


def check_graph(model: onnx.ModelProto, path: str) -> None:
    """Refuse a graph with findings.

    Raises:
        EngineError: The first finding, with its remedy, and how many more there are.
    """
    found = lint(model)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise EngineError(f"{path}: {found[0]}{more}", found[0].remedy)


def _find(node: NodeProto, cause: str, remedy: str) -> Finding:
    return Finding(f"{node.op_type} {node.name or node.output[0]}", cause, remedy)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _given(node: NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _foreign_operators(graph: _Graph, node: NodeProto) -> Iterator[Finding]:
    if node.domain in ("", "ai.onnx"):
        return
    remedies = {
        "GroupQueryAttention": "use TensorScatter on the cache, and Attention with a boolean mask",
        "MatMulNBits": "use DequantizeLinear of symmetric int4 blocks in front of a MatMul",
    }
    remedy = remedies.get(node.op_type, "use standard operators of opset 24")
    yield _find(node, f"is an operator of {node.domain}, which the parser does not know", remedy)


def _attention(graph: _Graph, node: NodeProto) -> Iterator[Finding]:
    if node.op_type != "Attention":
        return
    if _attribute(node, "is_causal", 0):
        cause = "is_causal is silently taken as an upper-left diagonal, which is wrong behind a past"
        yield _find(node, cause, MASK_REMEDY)
    if _given(node, _LENGTHS):
        yield _find(node, "nonpad_kv_seqlen is silently dropped, and unused slots are read", MASK_REMEDY)
    if _given(node, _PAST_KEY) or _given(node, _PAST_VALUE):
        remedy = "write the cache with TensorScatter and give Attention all of it"
        yield _find(node, "the parser refuses past_key and past_value", remedy)
    cached = any(
        maker is not None and maker.op_type == "TensorScatter"
        for maker in (graph.behind(name) for name in node.input[1:3])
    )
    if cached and not _given(node, _MASK):
        yield _find(node, "reads a static cache without a mask, and so its unused slots", MASK_REMEDY)
    if _given(node, _MASK) and graph.dtypes.get(node.input[_MASK], TensorProto.BOOL) != TensorProto.BOOL:
        yield _find(node, "its mask is no boolean, which an engine must not round", MASK_REMEDY)


def _cache(graph: _Graph, node: NodeProto) -> Iterator[Finding]:
    if node.op_type != "TensorScatter":
        return
    cache = graph.inputs.get(node.input[0])
    if cache is None:
        cause = "its cache is no graph input, so that it is silently copied instead of written in place"
        yield _find(node, cause, "give it the graph's own past input")
    else:
        dims = cache.type.tensor_type.shape.dim[1:]
        if any(not dim.HasField("dim_value") for dim in dims):
            cause = f"its cache {cache.name} has a dynamic size, which the parser refuses"
            yield _find(node, cause, "fix all dims but the batch, the number of slots above all")
        if _attribute(node, "axis", -2) not in (2, 2 - len(dims) - 1):
            yield _find(node, "writes along another axis than that of the slots", "use axis 2")
    if node.output[0] not in graph.outputs:
        cause = "its result is no graph output, so that what it writes is lost after the run"
        yield _find(node, cause, "make it the present output of the same layer")
    mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"linear")
    if mode != b"linear":
        yield _find(node, f"mode is {mode.decode()}, the builder knows linear alone", "use mode linear")
    if not _given(node, 2):
        yield _find(node, "has no write_indices, the parser needs them", "give it int64 [B]")


def _norm(graph: _Graph, node: NodeProto) -> Iterator[Finding]:
    if node.op_type == "RMSNormalization" and _attribute(node, "stash_type", 1) != TensorProto.FLOAT:
        cause = "stash_type is not float32, and the square of a float16 activation overflows"
        yield _find(node, cause, "use stash_type 1")


def _quantized(graph: _Graph, node: NodeProto) -> Iterator[Finding]:
    if node.op_type != "DequantizeLinear":
        return
    kind = graph.dtypes.get(node.input[0])
    remedy = "quantize symmetrically, to signed numbers"
    if kind in _UNSIGNED:
        yield _find(node, f"{TensorProto.DataType.Name(kind)} is unsigned, which the parser refuses", remedy)
    elif _given(node, 2) and _is_asymmetric(graph, node.input[2]):
        yield _find(node, "has a zero point, which the parser refuses", remedy)
    block = _attribute(node, "block_size", 0)
    if kind == TensorProto.INT4 and block not in _INT4_BLOCKS:
        blocks = ", ".join(map(str, _INT4_BLOCKS))
        yield _find(node, f"blocks of {block} int4 values, the builder takes {blocks}", "use blocks of 64")


def _is_asymmetric(graph: _Graph, name: str) -> bool:
    tensor = graph.constants.get(name)
    if tensor is None or tensor.external_data:
        return True
    return bool(np.any(numpy_helper.to_array(tensor).astype(np.int32)))


_RULES: tuple[Callable[[_Graph, NodeProto], Iterator[Finding]], ...] = (
    _foreign_operators,
    _attention,
    _cache,
    _norm,
    _quantized,
)
