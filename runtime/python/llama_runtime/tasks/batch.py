"""Texts of unequal length through a graph that reads them whole: padded, a few at a time, cut apart again.

B rows, T tokens of the longest, and for each row only its own t tokens come back.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama_runtime.errors import OptionError, PromptError, TokenizerError
from llama_runtime.manifest import Manifest
from llama_runtime.session import Session
from llama_runtime.tokenizer import Tokenizer

Text = str | Sequence[int]
BATCH_SIZE = 8
SEQUENCE = "sequence_length"


@dataclass(frozen=True)
class TextModel:
    """An open bundle whose graph reads whole texts.

    Attributes:
        session: Its graph.
        tokenizer: Its vocabulary; None where texts must come as token ids.
    """

    session: Session
    tokenizer: Tokenizer | None

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.session.manifest

    def encode(self, text: Text, *, truncate: bool = False) -> list[int]:
        """Turn a text into tokens and refuse what the model cannot read, before any work.

        Args:
            text: Text, or the ids of all its tokens.
            truncate: Cut what is longer than the model has positions, instead of refusing it.

        Raises:
            PromptError: No token, an unknown one, or more than the model has positions.
            TokenizerError: Text for a bundle without a tokenizer.
        """
        tokens = self._tokens(text)
        if not tokens:
            raise PromptError("the text is empty, and the model has no token that opens one")
        V, limit = self.manifest.limits.vocab_size, self.manifest.limits.max_position_embeddings
        for token in tokens:
            if not 0 <= token < V:
                raise PromptError(f"the text has token {token}, the model knows 0 to {V - 1}")
        if len(tokens) > limit and not truncate:
            raise PromptError(
                f"the text is {len(tokens)} tokens long, the model has {limit} positions",
                "shorten it, or ask for truncation",
            )
        return tokens[:limit]

    def _tokens(self, text: Text) -> list[int]:
        if isinstance(text, str):
            if self.tokenizer is None:
                raise TokenizerError("the bundle has no tokenizer", "give the text as token ids")
            return self.tokenizer.encode(text)
        try:
            if isinstance(text, bytes):  # a sequence of integers too, but nobody means token ids by it
                raise TypeError
            return [operator.index(token) for token in text]
        except TypeError:
            raise PromptError(
                f"the text is {text!r:.60}, needs a string or a sequence of token ids"
            ) from None

    def outputs(
        self, rows: Sequence[Sequence[int]], names: Sequence[str], *, batch_size: int = BATCH_SIZE
    ) -> list[dict[str, np.ndarray]]:
        """Run the graph over all rows.

        Args:
            rows: Token ids, as ``encode`` returns them.
            names: The outputs that are wanted.
            batch_size: The most rows in one run.

        Returns:
            For each row in its place, output name to numbers: [t, ...] of its own tokens, or [...] where
            the output has one entry a text.

        Raises:
            OptionError: ``batch_size`` below 1.
            SessionError: ONNX Runtime failed.
        """
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}, needs at least 1")
        found: list[dict[str, np.ndarray]] = [{} for _ in rows]
        for places in _batches([len(row) for row in rows], batch_size):
            batch = [rows[place] for place in places]
            for place, row in zip(places, run_padded(self.session, batch, names), strict=True):
                found[place] = row
        return found


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Group rows of similar length, so that little of a batch is padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def run_padded(
    session: Session, rows: Sequence[Sequence[int]], names: Sequence[str], *, left: bool = False
) -> list[dict[str, np.ndarray]]:
    """Run rows as one padded batch.

    Args:
        session: The bundle.
        rows: Token ids of unequal length.
        names: The outputs that are wanted.
        left: Pad in front instead of behind.

    Returns:
        For each row, output name to its own numbers, without those of padding.
    """
    manifest, T = session.manifest, max(map(len, rows))
    ids = np.full((len(rows), T), manifest.tokens.pad_token_id or 0, np.int64)
    mask = np.zeros((len(rows), T), np.int64)
    for row, tokens in enumerate(rows):
        real = slice(T - len(tokens), T) if left else slice(0, len(tokens))
        ids[row, real], mask[row, real] = tokens, 1
    fed = feeds(manifest, ids, mask)
    if manifest.cache is not None and "logits" not in names:
        fed["num_logits_to_keep"] = np.ones(1, np.int64)  # nobody reads them: compute as few as can be
    outputs = session.run(fed, names)
    # An output has one entry a token, or one a text.
    by_token = {spec.name for spec in manifest.outputs if len(spec.shape) > 1 and spec.shape[1] == SEQUENCE}
    return [
        {
            name: value[row][mask[row] == 1] if name in by_token else value[row]
            for name, value in outputs.items()
        }
        for row in range(len(rows))
    ]


def feeds(manifest: Manifest, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of a run over whole texts: [B, T] ids and mask, and an empty past where the graph has one."""
    fed = {"input_ids": ids, "attention_mask": mask}
    if manifest.cache is None:
        return fed
    shape = manifest.cache
    empty = np.zeros((len(ids), shape.num_key_value_heads, 0, shape.head_dim), shape.dtype)
    for i in range(shape.num_hidden_layers):
        fed |= {name.replace("{i}", str(i)): empty for name in (shape.key_name, shape.value_name)}
    return fed | {"position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)}
