"""What is expensive and shared by all tests: a graph costs seconds to trace, so each is traced once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import onnx_ir as ir

    from llama_export.graph.contract import Extras
    from llama_export.model import LlamaConfig

# On tiny tensors PyTorch's threads cost more than they bring, most of all where others use the cores too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["allowed_skips"]

GraphOf = Callable[..., "ir.Model"]


@pytest.fixture(scope="session")
def graph_of() -> GraphOf:
    """``build_graph``, remembered by its arguments; every call returns a copy of its own."""
    from llama_export.graph.assemble import build_graph
    from llama_export.graph.contract import NO_EXTRAS

    built: dict[tuple[LlamaConfig, str, Extras], ir.Model] = {}

    def graph(config: LlamaConfig, path: str, extras: Extras = NO_EXTRAS) -> ir.Model:
        if (config, path, extras) not in built:
            built[config, path, extras] = build_graph(config, path, extras)
        return built[config, path, extras].clone()

    return graph
