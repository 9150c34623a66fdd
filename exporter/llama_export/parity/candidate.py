"""What the bundle computes: through the runtime that ships, and fed directly as other runtimes do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_runtime.manifest import Manifest
from llama_runtime.session import Session


@dataclass(frozen=True)
class Continuation:
    """A prompt read and continued greedily.

    Attributes:
        tokens: The n tokens chosen.
        prefill: [T, V] logits of the prompt.
        decode: [n - 1, V] logits of the tokens that were read back, by decoding with the cache.
    """

    tokens: tuple[int, ...]
    prefill: np.ndarray
    decode: np.ndarray


def continue_greedily(session: Session, prompt: Sequence[int], n: int) -> Continuation:
    """Prefill a prompt, then decode n - 1 times."""
    cache = session.new_cache(capacity=len(prompt) + n)
    prefill = session.prefill(np.array([prompt], np.int64), cache, all_logits=True)[0]
    tokens, decode = [int(prefill[-1].argmax())], []
    while len(tokens) < n:
        logits = session.decode(np.array(tokens[-1:], np.int64), cache)[0]
        decode.append(logits)
        tokens.append(int(logits.argmax()))
    return Continuation(tuple(tokens), prefill, np.array(decode).reshape(-1, prefill.shape[1]))


def prefill_in_chunks(session: Session, prompt: Sequence[int], chunk_tokens: int) -> np.ndarray:
    """[T, V] logits of a prompt that is read a few tokens at a time."""
    cache = session.new_cache(capacity=len(prompt))
    tokens = np.array([prompt], np.int64)
    logits: np.ndarray = session.prefill(tokens, cache, all_logits=True, chunk_tokens=chunk_tokens)[0]
    return logits


def padded_batch(
    session: Session, rows: Sequence[Sequence[int]], following: Sequence[int], *, left: bool
) -> list[np.ndarray]:
    """Feed all rows as one padded batch, as optimum does, then one more token to each.

    Args:
        session: The bundle.
        rows: Prompts of unequal length; short ones are padded with token 0.
        following: The token decoded after each row.
        left: Which side is padded.

    Returns:
        For each row of T tokens, [T + 1, V] logits of its own tokens.
    """
    manifest = session.manifest
    T = max(map(len, rows))
    ids, mask = np.zeros((len(rows), T), np.int64), np.zeros((len(rows), T), np.int64)
    for row, tokens in enumerate(rows):
        real = slice(T - len(tokens), T) if left else slice(0, len(tokens))
        ids[row, real], mask[row, real] = tokens, 1
    prefill = session.run(_feeds(manifest, ids, mask, None))
    mask = np.concatenate((mask, np.ones((len(rows), 1), np.int64)), axis=1)
    decode = session.run(_feeds(manifest, np.array(following, np.int64)[:, None], mask, prefill))
    return [
        np.concatenate((prefill["logits"][row][mask[row, :T] == 1], decode["logits"][row]))
        for row in range(len(rows))
    ]


def _feeds(
    manifest: Manifest, ids: np.ndarray, mask: np.ndarray, before: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Inputs of one step; the cache is what the step before returned, or empty."""
    shape = manifest.cache
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    empty = np.zeros((len(ids), shape.num_key_value_heads, 0, shape.head_dim), shape.dtype)
    pairs = ((shape.key_name, shape.present_key_name), (shape.value_name, shape.present_value_name))
    for i in range(shape.num_hidden_layers):
        for past, present in pairs:
            feeds[past.format(i=i)] = empty if before is None else before[present.format(i=i)]
    return feeds
