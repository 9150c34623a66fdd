"""A scene: tokens fed to the graph in one or several runs, as another runtime would, padding included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llama_export.parity.reference import Past
from llama_runtime.manifest import Manifest

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        first: Tokens of the first run.
        following: Tokens of the runs after it.
        left: Whether padding goes in front of ``first`` rather than behind.
    """

    first: tuple[int, ...]
    following: tuple[int, ...] = ()
    left: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        """The row without padding: what the reference reads."""
        return self.first + self.following


@dataclass(frozen=True)
class Scene:
    """Rows that are read together; short ones are padded with token 0.

    Attributes:
        rows: The batch.
        steps: How many of the following tokens each run after the first reads.
        first_position: Where the first token stands; in front of it are hidden slots of the cache.
        past: A learned prompt's keys and values in front of every row, first_position being 0; default none.
    """

    rows: tuple[Row, ...]
    steps: tuple[int, ...] = ()
    first_position: int = 0
    past: Past | None = None


def play(run: Run, manifest: Manifest, scene: Scene, outputs: Sequence[str] = ("logits",)) -> list[Arrays]:
    """Feed a scene to the graph and gather outputs by row.

    Args:
        run: The graph: all inputs in, all outputs out.
        manifest: Names and shapes.
        scene: What to feed; one run alone where the graph has no cache.
        outputs: Which outputs to gather; each has one entry for each of the B * T tokens of a run.

    Returns:
        For each row of N tokens, every output as [N, ...], padding left out.
    """
    T = max(len(row.first) for row in scene.rows)
    ids, mask = np.zeros((len(scene.rows), T), np.int64), np.zeros((len(scene.rows), T), np.int64)
    for index, row in enumerate(scene.rows):
        real = slice(T - len(row.first), T) if row.left else slice(0, len(row.first))
        ids[index, real], mask[index, real] = row.first, 1
    past, front = _start(manifest, scene)
    seen = np.concatenate((front, mask), axis=1)
    gathered: list[dict[str, list[np.ndarray]]] = [{name: [] for name in outputs} for _ in scene.rows]
    done = 0
    for step in (0, *scene.steps):
        if step:
            ids = np.array([row.following[done : done + step] for row in scene.rows], np.int64)
            done, mask = done + step, np.ones_like(ids)
            seen = np.concatenate((seen, mask), axis=1)
        positions = np.maximum(seen.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :] + scene.first_position
        results = run(past | {"input_ids": ids, "attention_mask": seen, "position_ids": positions})
        for name in outputs:
            by_row = results[name].reshape(*ids.shape, -1)
            for index, found in enumerate(gathered):
                found[name].append(by_row[index][mask[index] == 1])
        past = _presents(manifest, results) if scene.steps else {}
    return [{name: np.concatenate(parts) for name, parts in found.items()} for found in gathered]


def _pasts(manifest: Manifest) -> Mapping[str, str]:
    """The name of every past input to that of its present output."""
    shape = manifest.kv_cache
    pairs = ((shape.key_name, shape.present_key_name), (shape.value_name, shape.present_value_name))
    return {
        past.format(i=i): present.format(i=i)
        for i in range(shape.num_hidden_layers)
        for past, present in pairs
    }


def _start(manifest: Manifest, scene: Scene) -> tuple[Arrays, np.ndarray]:
    """A cache without tokens, and the mask of the slots that it has: hidden ones, or a learned prompt's.

    The flash graph reads no ``position_ids``: there, a token stands behind as many slots as its position,
    and a mask of zeros hides them.
    """
    rows, shape = len(scene.rows), manifest.cache
    if shape is None:
        return {}, np.zeros((rows, 0), np.int64)
    if scene.past is not None:
        tensors = [tensor.numpy().repeat(rows, axis=0) for layer in scene.past for tensor in layer]
        return dict(zip(_pasts(manifest), tensors, strict=True)), np.ones(
            (rows, tensors[0].shape[2]), np.int64
        )
    hidden = scene.first_position if shape.in_place else 0
    cache = np.zeros((rows, shape.num_key_value_heads, hidden, shape.head_dim), shape.dtype)
    return dict.fromkeys(_pasts(manifest), cache), np.zeros((rows, hidden), np.int64)


def _presents(manifest: Manifest, results: Arrays) -> Arrays:
    return {past: results[present] for past, present in _pasts(manifest).items()}
