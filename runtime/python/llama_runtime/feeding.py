"""What a session refuses to feed to its graph: wrong shapes, unknown tokens, more than the cache holds."""

from __future__ import annotations

import numpy as np

from llama_runtime.cache import KVCache
from llama_runtime.errors import PromptError
from llama_runtime.manifest import EMBEDS, Manifest


def check_tokens(manifest: Manifest, tokens: np.ndarray, axes: int, cache: KVCache) -> int:
    """Refuse tokens that the graph cannot read, or embeddings in place of them.

    Args:
        manifest: Of the bundle.
        tokens: [B, T] int64 or [B, T, hidden_size] float32; without T where ``axes`` is 1.
        axes: 2 or 1.
        cache: What they go into.

    Returns:
        T.

    Raises:
        PromptError: No token, an unknown one, a wrong shape, or no room in the cache.
    """
    width = next((spec.shape[-1] for spec in manifest.inputs if spec.name == EMBEDS), None)
    embedded = width is not None and tokens.dtype == np.float32
    shape = tokens.shape[:-1] if embedded and tokens.shape[-1:] == (width,) else tokens.shape
    if len(shape) != axes or shape[0] != cache.rows or not (embedded or tokens.dtype == np.int64):
        also = f", or float32 of one axis more, the last {width}" if width is not None else ""
        raise PromptError(
            f"tokens are {tokens.dtype} {list(tokens.shape)}, needs int64 of {axes} axes, "
            f"the first {cache.rows}{also}"
        )
    T = shape[1] if axes == 2 else 1
    if T == 0:
        raise PromptError("no tokens, needs at least one")
    if embedded:
        if not np.isfinite(tokens).all():
            raise PromptError("the embeddings hold NaN or infinite values, needs finite ones")
    else:
        low, high, V = int(tokens.min()), int(tokens.max()), manifest.limits.vocab_size
        if low < 0 or high >= V:
            raise PromptError(f"token id {low if low < 0 else high}, the vocabulary is 0 to {V - 1}")
    cache.require_room(T)
    return T


def check_lengths(lengths: np.ndarray, cache: KVCache) -> None:
    """Refuse lengths of rows that the cache cannot have.

    Raises:
        PromptError: A wrong shape, or a number out of range.
    """
    if lengths.shape != (cache.rows,) or lengths.dtype != np.int64:
        raise PromptError(
            f"lengths are {lengths.dtype} {list(lengths.shape)}, needs int64 [{cache.rows}], one a row"
        )
    if int(lengths.max()) != cache.length or int(lengths.min()) < 0:
        raise PromptError(
            f"lengths are {int(lengths.min())} to {int(lengths.max())}, the longest needs {cache.length}, "
            "which the cache holds"
        )
