"""One part of the model becomes ONNX nodes, under fake tensors: no weight is ever allocated."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from onnxscript.optimizer import fold_constants
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from llama_export.graph.contract import TOTAL
from llama_export.graph.parts import Part

# Distinct sizes above 1, so that the tracer neither specialises a dim nor confuses two.
_EXAMPLE_SIZES = (2, 3, 5, 11, 13)


def trace(part: Part, opset: int) -> ir.Graph:
    """Trace a part and translate it.

    Args:
        part: What to trace.
        opset: Version of the standard ONNX operators.

    Returns:
        A graph whose inputs and outputs bear the part's names, whose initializers are weights without
        values and constants with them, and whose symbolic dims are the contract's names (or products and
        sums of them).
    """
    names = sorted({dim for dims, _ in part.inputs.values() for dim in dims if isinstance(dim, str)})
    size_of = dict(zip(names, _EXAMPLE_SIZES, strict=False))
    if "past_sequence_length" in size_of:
        size_of[TOTAL] = size_of["past_sequence_length"] + size_of["sequence_length"]
    # The total is a sum of two other dims, which torch.export finds out by itself when left free.
    dim_of = {name: Dim.DYNAMIC if name == TOTAL else Dim(name) for name in names}

    with FakeTensorMode(shape_env=ShapeEnv()), _quiet():
        module = part.build().eval()
        examples = [
            torch.empty([dim if isinstance(dim, int) else size_of[dim] for dim in dims], dtype=dtype)
            for dims, dtype in part.inputs.values()
        ]
        dynamic = [
            {axis: dim_of[dim] for axis, dim in enumerate(dims) if isinstance(dim, str)}
            for dims, _ in part.inputs.values()
        ]
        exported = torch.export.export(
            module,
            tuple(examples),
            dynamic_shapes=_match_varargs(module, dynamic),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        # optimize=True would fold constants by calling .numpy() on fake weights.
        program = torch.onnx.export(exported, dynamo=True, optimize=False, opset_version=opset, verbose=False)
    assert program is not None
    graph = program.model.graph
    _fold_constants(program.model)
    _name_dims(graph, part)
    for value, name in zip([*graph.inputs, *graph.outputs], [*part.inputs, *part.outputs], strict=True):
        value.name = name
    return graph


def _fold_constants(model: ir.Model) -> None:
    """Compute what depends on no input, and hold every constant as an initializer with a value."""
    for weight in model.graph.initializers.values():
        weight.const_value = None  # fake: it has a shape, but nothing to compute with
    with _quiet():
        fold_constants(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveUnusedNodesPass()(model)


def _match_varargs(module: torch.nn.Module, dynamic: list[dict[int, object]]) -> tuple[object, ...]:
    """Nest the dims of ``*args`` as torch.export wants them: one tuple for all of them."""
    named = module.forward.__code__.co_argcount - 1
    has_varargs = module.forward.__code__.co_flags & 0x04
    return (*dynamic[:named], tuple(dynamic[named:])) if has_varargs else tuple(dynamic)


def _name_dims(graph: ir.Graph, part: Part) -> None:
    """Replace torch's symbols (``s17``) in all shapes by the contract's names."""
    name_of: dict[str, str] = {}
    for value, (dims, _) in zip(graph.inputs, part.inputs.values(), strict=True):
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
