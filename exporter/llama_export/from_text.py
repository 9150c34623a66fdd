"""What is learned from a text while a model is exported: what GPTQ needs, and the scales of an int8 cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_export.checkpoint import Checkpoint
from llama_export.quantize.calibration import Calibration
from llama_export.recipe import Recipe
from llama_export.tokenizer import open_source
from llama_export.tokenizer.calibration import calibration_windows
from llama_export.weights.precision import GPTQ

if TYPE_CHECKING:
    import onnx_ir as ir

Windows = list[list[int]]
"""Token ids, each window read by itself."""


def read_windows(source: Checkpoint, recipe: Recipe) -> Windows:
    """What the model will read; nothing where nothing is to be learned.

    Raises:
        OptionError: The text cannot be read, or is too short; or there is no tokenizer to read it with.
    """
    if recipe.calibration is not None:
        return calibration_windows(recipe.calibration, open_source(source), source.config)
    if recipe.cache == "float32":
        return []
    from llama_export.parity.prompts import default_windows

    return default_windows(open_source(source), source.config)


def calibration_of(source: Checkpoint, recipe: Recipe, windows: Windows) -> Calibration | None:
    """What GPTQ needs; None where it is not asked for."""
    if recipe.quantization is None or recipe.quantization.method != GPTQ:
        return None
    return Calibration(source.config, source.read, windows)


def store_cache_in_int8(graph: ir.Model, source: Checkpoint, windows: Windows) -> None:
    """Let a graph keep keys and values in 8 bits, with scales that the windows show."""
    from llama_export.graph import passes
    from llama_export.quantize.cache import cache_scales

    scales = cache_scales(source.config, source.read, windows)
    passes.store_cache_in_int8(graph.graph, [(layer.keys.numpy(), layer.values.numpy()) for layer in scales])
