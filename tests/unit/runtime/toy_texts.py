"""A session that needs no graph: it computes its output from each row's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from llama_runtime.manifest import TensorSpec
from llama_runtime.tasks.batch import TextModel


class TextToy:
    """A text model with one output, and a record of the shapes that were run.

    Args:
        shape: Of the output, symbolic.
        compute: From a row's own tokens to its part of the output.
        tokenizer: For texts; None where rows are ids.
    """

    def __init__(
        self, shape: tuple[int | str, ...], compute: Callable[[Sequence[int]], Any], tokenizer: Any = None
    ) -> None:
        self.runs: list[tuple[int, int]] = []
        self._shape, self._compute = shape, compute
        manifest = SimpleNamespace(
            outputs=tuple(
                TensorSpec(name, "float32", shape) for name in ("out", "logits", "last_hidden_state")
            ),
            cache=None,
            limits=SimpleNamespace(vocab_size=50, max_position_embeddings=20),
            tokens=SimpleNamespace(pad_token_id=None),
        )
        self.model = TextModel(SimpleNamespace(manifest=manifest, run=self._run), tokenizer)

    def _run(self, feeds: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        self.runs.append(ids.shape)
        sizes = [size if isinstance(size, int) else ids.shape[axis] for axis, size in enumerate(self._shape)]
        out = np.full(sizes, np.nan, np.float32)
        for row, real in enumerate(mask == 1):
            own = np.array(self._compute(ids[row][real].tolist()), np.float32)
            if "sequence_length" in self._shape:
                out[row, real] = own
            else:
                out[row] = own
        return dict.fromkeys(names, out)
