"""The model's parts become ONNX nodes, under fake tensors: no weight is ever allocated.

All parts are traced by one call, side by side and on dims of their own: what the exporter prepares for
a call costs more than what it does for a part.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from llama_export.graph.contract import PAST, SEQUENCE, TOTAL
from llama_export.graph.parts import Part


@dataclass(frozen=True)
class Traced:
    """A part as ONNX nodes.

    Attributes:
        inputs: Values that bear the part's input names.
        outputs: Values that bear the part's output names.
        nodes: In an order that can be computed.
        initializers: Weights without values and constants with them, by the names of the part's module.
    """

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    initializers: dict[str, ir.Value]


class _SideBySide(nn.Module):
    """Runs each part on its own run of the arguments."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.build() for part in parts)
        self.counts = [len(part.inputs) for part in parts]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments, results = iter(tensors), list[Tensor]()
        for part, count in zip(self.parts, self.counts, strict=True):
            outputs = part(*islice(arguments, count))
            results += [outputs] if isinstance(outputs, Tensor) else outputs
        return tuple(results)


def trace(parts: Sequence[Part], opset: int) -> list[Traced]:
    """Trace parts and translate them.

    Args:
        parts: What to trace.
        opset: Version of the standard ONNX operators.

    Returns:
        Each part's nodes; their symbolic dims are the contract's names (or products and sums of them).
    """
    examples, dynamic = [], []
    with FakeTensorMode(shape_env=ShapeEnv()), _quiet():
        sizes = iter(range(2, 10_000))
        for part in parts:
            size_of, dim_of = _dims_of(part, sizes)
            for dims, dtype in part.inputs.values():
                shape = [dim if isinstance(dim, int) else size_of[dim] for dim in dims]
                examples.append(torch.empty(shape, dtype=dtype))
                dynamic.append({axis: dim_of[dim] for axis, dim in enumerate(dims) if isinstance(dim, str)})
        exported = torch.export.export(
            _SideBySide(parts).eval(),
            tuple(examples),
            dynamic_shapes=(tuple(dynamic),),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        # optimize=True would fold constants by calling .numpy() on fake weights.
        program = torch.onnx.export(exported, dynamo=True, optimize=False, opset_version=opset, verbose=False)
    assert program is not None
    _fold_constants(program.model)
    _name_dims(program.model.graph, parts)
    return _separate(program.model.graph, parts)


def _dims_of(part: Part, sizes: Iterator[int]) -> tuple[dict[str, int], dict[str, object]]:
    """An example size and a symbol for each named dim of a part; no two dims of all parts share a size."""
    names = sorted({dim for dims, _ in part.inputs.values() for dim in dims if isinstance(dim, str)})
    size_of = {name: next(sizes) for name in names}
    if PAST in size_of:
        size_of[TOTAL] = size_of[PAST] + size_of[SEQUENCE]
    # The total is a sum of two other dims, which torch.export finds out by itself when left free.
    symbol = f"{part.outputs[-1]}_{{}}"
    return size_of, {name: Dim.DYNAMIC if name == TOTAL else Dim(symbol.format(name)) for name in names}


def _separate(graph: ir.Graph, parts: Sequence[Part]) -> list[Traced]:
    """Give each part what its outputs are computed from, and the names that it calls things by."""
    for value in chain.from_iterable(node.outputs for node in graph):
        value.name = f"inner.{value.name}"  # torch may have called something as a part calls an output
    inputs, outputs, separated = iter(graph.inputs), iter(graph.outputs), []
    for index, part in enumerate(parts):
        taken = tuple(islice(inputs, len(part.inputs)))
        made = tuple(islice(outputs, len(part.outputs)))
        for value, name in zip((*taken, *made), (*part.inputs, *part.outputs), strict=True):
            value.name = name
        needed, pending = set[ir.Node](), [value.producer() for value in made]
        while pending:
            node = pending.pop()
            if node is not None and node not in needed:
                needed.add(node)
                pending += [value.producer() for value in node.inputs if value is not None]
        nodes = tuple(node for node in graph if node in needed)
        read = {value for value in chain.from_iterable(node.inputs for node in nodes) if value is not None}
        initializers = {
            name.removeprefix(f"parts.{index}."): value
            for name, value in graph.initializers.items()
            if value in read
        }
        separated.append(Traced(taken, made, nodes, initializers))
    return separated


def _fold_constants(model: ir.Model) -> None:
    """Compute what depends on no input, and hold every constant as an initializer with a value."""
    for weight in model.graph.initializers.values():
        weight.const_value = None  # fake: it has a shape, but nothing to compute with
    with _quiet():
        fold_constants(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveUnusedNodesPass()(model)


def _name_dims(graph: ir.Graph, parts: Sequence[Part]) -> None:
    """Replace torch's symbols (``s17``) in all shapes by the contract's names."""
    name_of: dict[str, str] = {}
    declared = chain.from_iterable(part.inputs.values() for part in parts)
    for value, (dims, _) in zip(graph.inputs, declared, strict=True):
        assert value.shape is not None
        for symbol, dim in zip(value.shape, dims, strict=True):
            if isinstance(dim, str):
                name_of.setdefault(str(symbol), dim)
    for node in graph:
        for output in node.outputs:
            if output.shape is not None:
                output.shape = ir.Shape(
                    dim
                    if isinstance(dim, int)
                    else re.sub(r"\bs\d+\b", lambda m: name_of.get(m[0], m[0]), str(dim))
                    for dim in output.shape
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice about packages and options that do not concern the user off stderr."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
