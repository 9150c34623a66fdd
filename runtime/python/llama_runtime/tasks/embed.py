"""Embed texts: the last hidden states, pooled to one vector a text, or left as one a token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from llama_runtime.errors import OptionError
from llama_runtime.extras import hidden_state_names
from llama_runtime.opening import Device
from llama_runtime.tasks.batch import BATCH_SIZE, Text, TextModel
from llama_runtime.tasks.opening import open_text_model

TASK = "feature-extraction"
Pooling = Literal["mean", "last", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


class Embedder:
    """An open bundle that embeds texts; threads may share it."""

    def __init__(self, model: TextModel) -> None:
        self.model = model

    def embed(
        self,
        texts: Sequence[Text],
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Embed texts, padded to batches; each as if it were alone.

        Args:
            texts: Strings, or token ids.
            pooling: Over a text's own tokens: their mean, the last one's state (the only one that has
                seen the whole text), or the first one's.
            normalize: Scale every vector to length 1.
            truncate: Cut texts that are longer than the model has positions.
            batch_size: The most texts in one run of the graph.

        Returns:
            [texts, hidden_size] float32.

        Raises:
            OptionError: An unknown pooling, or ``batch_size`` below 1.
            PromptError: A text is empty or too long.
            TokenizerError: Strings for a bundle without a tokenizer.
            SessionError: ONNX Runtime failed.
        """
        if pooling not in POOLINGS:
            raise OptionError(f"pooling is {pooling!r}, must be one of {', '.join(POOLINGS)}")
        states = self.hidden_states(texts, truncate=truncate, batch_size=batch_size)
        pooled = [_pool(row, pooling) for row in states]
        return _normalized(np.stack(pooled)) if normalize and pooled else np.array(pooled, np.float32)

    def hidden_states(
        self, texts: Sequence[Text], *, truncate: bool = False, batch_size: int = BATCH_SIZE
    ) -> list[np.ndarray]:
        """Return the last hidden states without pooling: [tokens, hidden_size] float32 for each text."""
        rows = [self.model.encode(text, truncate=truncate) for text in texts]
        last = hidden_state_names(self.model.manifest)[-1]
        return [found[last] for found in self.model.outputs(rows, [last], batch_size=batch_size)]


def load_embedder(
    path: str | Path, threads: int | None = None, *, device: Device = "cpu", engine: str | None = None
) -> Embedder:
    """Open a bundle of task ``feature-extraction``, or a language model that gives its hidden states.

    Arguments and errors are ``open_text_model``'s.
    """
    return Embedder(open_text_model(path, TASK, threads, device, engine))


def _pool(states: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Map [t, hidden_size] of a text's own tokens to [hidden_size]."""
    if pooling == "mean":
        mean: np.ndarray = states.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean
    row: np.ndarray = states[-1 if pooling == "last" else 0]
    return row


def _normalized(vectors: np.ndarray) -> np.ndarray:
    # A vector of zeros has no direction and stays.
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
