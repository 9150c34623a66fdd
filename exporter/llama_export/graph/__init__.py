"""The model's parts, traced once each, become one ONNX graph whose weights have names but no values yet."""

from __future__ import annotations

from llama_export.graph.assemble import build_graph

__all__ = ["build_graph"]
