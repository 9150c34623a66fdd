"""Layer by layer: intermediate tensors of a debug copy of the graph against the reference's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from llama_export.model import LlamaConfig
from llama_export.parity.debug_graph import DebugGraph
from llama_export.parity.reference import Read, reference_hidden, reference_logits, reference_outputs
from llama_export.parity.report import LayerError, layer_of
from llama_export.parity.scene import Scene, play
from llama_export.quantize.cache import MakeCache, float_cache


def compare_layers(
    config: LlamaConfig,
    read: Read,
    graph: DebugGraph,
    scene: Scene,
    *,
    layers: int | None = None,
    make_cache: MakeCache = float_cache,
) -> list[LayerError]:
    """Run a scene through both and compare every intermediate tensor.

    Args:
        config: The architecture.
        read: The weights that the reference computes with.
        graph: The candidate.
        scene: What both read.
        layers: How many layers, from the first; None is the whole model, with the norm and a language
            model's logits.
        make_cache: What the reference keeps keys and values in.

    Returns:
        One entry for each tensor that the graph shows, in the order of computation.
    """
    wanted = _reference(config, read, scene, layers, make_cache)
    keys = [key for key in graph.tensors if key in wanted]
    found = play(graph.open(keys), graph.manifest, scene, keys)
    return [_error(key, [row[key] for row in found], wanted[key]) for key in keys]


def _reference(
    config: LlamaConfig, read: Read, scene: Scene, layers: int | None, make_cache: MakeCache
) -> dict[str, list[np.ndarray]]:
    """For every tensor, [N, ...] of each row."""
    rows = [row.tokens for row in scene.rows]
    reads = [(len(row.first), *scene.steps) for row in scene.rows]
    pasts = [scene.past] * len(rows)
    seen: dict[str, list[np.ndarray]] = {}

    def watch(row: int, name: str, values: Tensor) -> None:
        seen.setdefault(name, []).append(values.numpy().reshape(len(rows[row]), -1))

    if layers is None and not config.generates:
        reference_outputs(config, read, rows, watch=watch)
    elif layers is None:
        reference_logits(config, read, rows, reads=reads, watch=watch, pasts=pasts, make_cache=make_cache)
    else:
        starts = None if scene.past else [scene.first_position] * len(rows)
        reference_hidden(
            *(config, read, rows),
            reads=reads,
            first_positions=starts,
            layers=layers,
            watch=watch,
            pasts=pasts,
            make_cache=make_cache,
        )
    return seen


def _error(key: str, found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> LayerError:
    scale = max(float(np.abs(want).max()) for want in wanted) or 1.0
    differences = [np.abs(got - want).max() for got, want in zip(found, wanted, strict=True)]
    worst = float(np.nan_to_num(np.array(differences), nan=np.inf).max())
    return LayerError(layer_of(key), key, worst / scale)
