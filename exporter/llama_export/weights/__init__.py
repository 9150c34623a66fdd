"""Stage 4: the checkpoint's tensors become the graph's initializers, streamed, never gathered."""

from __future__ import annotations

from llama_export.weights.plan import WeightMode, WeightPlan, plan_weights
from llama_export.weights.sink import FileDigest
from llama_export.weights.stream import write_weights

__all__ = ["FileDigest", "WeightMode", "WeightPlan", "plan_weights", "write_weights"]
