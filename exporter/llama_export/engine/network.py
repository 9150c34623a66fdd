"""An ONNX file becomes TensorRT's network, and the network is what we meant: checked before a build."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from llama_export.errors import EngineError
from llama_runtime.engine_file import EngineFile
from llama_runtime.tensorrt_library import Library


def parse_network(library: Library, builder: Any, logger: Any, path: Path) -> tuple[Any, Any]:
    """Parse a graph, strongly typed.

    Returns:
        The network and its parser, which must live as long.

    Raises:
        EngineError: The parser refuses it: the node, and why.
    """
    trt = library.module
    flags = trt.NetworkDefinitionCreationFlag
    # TensorRT 11 knows no other networks; before, it had to be asked for.
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise EngineError(f"{path.name}: {_parser_error(errors)}", "make the graph again from its checkpoint")
    return network, parser


def _parser_error(errors: list[Any]) -> str:
    if not errors:
        return "the parser refuses it and gives no reason"
    first = errors[0]
    where = f"{first.node_operator()} {first.node_name()}: " if first.node_operator() else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}{' '.join(first.desc().split())}{more}"


def check_network(library: Library, network: Any, engine: EngineFile) -> None:
    """Refuse a network that is not what the graph says.

    One update in place for every cache, each on an input of the network; one attention for every layer,
    none causal; and ``kv_bucket`` a shape tensor, from which the host knows all shapes.

    Raises:
        EngineError: What differs.
    """
    kinds, trt = Counter[Any](), library.module
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kinds[layer.type] += 1
        if layer.type == trt.LayerType.KV_CACHE_UPDATE and layer.get_input(0).name not in inputs:
            raise EngineError(f"layer {layer.name} updates a cache that is no input of the network")
        if layer.type == trt.LayerType.ATTENTION_INPUT and _attention(trt, layer).causal:
            raise EngineError(f"layer {layer.name} is causal by itself, which is wrong behind a past")
    caches, layers = len(engine.aliases), _attentions(engine)
    _require("cache updates", kinds[trt.LayerType.KV_CACHE_UPDATE], caches)
    if layers is not None:
        _require("attention layers", kinds[trt.LayerType.ATTENTION_INPUT], layers)
    names = [spec.name for spec in engine.inputs]
    if sorted(inputs) != sorted(names):
        raise EngineError(f"the network's inputs are {', '.join(inputs)}, the graph's {', '.join(names)}")
    if engine.buckets and not inputs["kv_bucket"].is_shape_tensor:
        raise EngineError("kv_bucket is no shape tensor in the network: no shape follows from it")


def _attentions(engine: EngineFile) -> int | None:
    """Layers of a model with a cache, two tensors each; without one, nothing says how many there are."""
    return len(engine.aliases) // 2 if engine.aliases else None


def _require(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise EngineError(f"the network has {found} {what}, the model needs {wanted}")


def let_attention_fall_apart(library: Library, network: Any) -> None:
    """Let every attention be built from basic operators where no fused kernel takes its shape or type."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == library.module.LayerType.ATTENTION_INPUT:
            _attention(library.module, layer).decomposable = True


def _attention(trt: Any, layer: Any) -> Any:
    """The attention that an input layer belongs to; the network gives every layer as its base class."""
    layer.__class__ = trt.IAttentionInputLayer
    return layer.attention
