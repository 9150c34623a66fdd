"""A cache that knows its tokens: whatever a prompt shares with them is not read again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llama_runtime.cache import KVCache
from llama_runtime.errors import PromptError
from llama_runtime.session import Session


class PrefixCache:
    """One row's keys and values, and the tokens they belong to; used by one caller at a time.

    An interruption at any point leaves it in order: ``tokens`` never says more than the cache holds, and
    what the cache may hold beyond them is cut off before it is used again.

    Attributes:
        session: What fills it.
        tokens: Those whose keys and values are there.
        reused_tokens: How many of the last prompt's tokens were there already.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tokens: list[int] = []
        self.reused_tokens = 0
        self._cache: KVCache | None = None

    def prefill(self, prompt_tokens: Sequence[int], new_tokens: int) -> np.ndarray:
        """Read a prompt, all of it but the longest prefix that is there already.

        Args:
            prompt_tokens: The whole prompt.
            new_tokens: How many are going to be decoded after it.

        Returns:
            [1, V] float32, the logits that follow the prompt.

        Raises:
            PromptError: The prompt is empty, or longer than the model with the new tokens.
            SessionError: ONNX Runtime failed.
        """
        # The last token is read in any case: only the graph knows the logits that follow it.
        shared = max(0, min(_common_prefix(self.tokens, prompt_tokens), len(prompt_tokens) - 1))
        self.reused_tokens = shared
        del self.tokens[shared:]
        cache = self._with_room(len(prompt_tokens) + new_tokens)
        cache.truncate(shared)
        rest = list(prompt_tokens[shared:])
        logits = self.session.prefill(np.array([rest], np.int64), cache)
        self.tokens += rest
        return logits

    def decode(self, token: int) -> np.ndarray:
        """Read one more token; returns the logits that follow it, [1, V] float32.

        Raises:
            PromptError: The model has no more positions.
            SessionError: ONNX Runtime failed.
        """
        logits = self.session.decode(np.array([token], np.int64), self._with_room(len(self.tokens) + 1))
        self.tokens.append(token)
        return logits

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Read some more tokens in one run; returns the logits that follow each, [T, V] float32.

        Raises:
            PromptError: The model has not so many positions.
            SessionError: ONNX Runtime failed.
        """
        cache = self._with_room(len(self.tokens) + len(tokens))
        logits: np.ndarray = self.session.prefill(np.array([tokens], np.int64), cache, all_logits=True)[0]
        self.tokens += tokens
        return logits

    def keep(self, count: int) -> None:
        """Forget all but the first ``count`` tokens."""
        del self.tokens[count:]
        self._with_room(max(1, count)).truncate(count)

    def read(self) -> list[np.ndarray]:
        """Copy what is there: key and value of layer 0, of layer 1, ..., each [K, P, D]."""
        P = len(self.tokens)
        return self._with_room(max(1, P)).read_row(P)

    def write(self, tokens: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
        """Take over what ``read`` gave, with its tokens."""
        P = len(tokens)
        cache = self.session.new_cache(capacity=max(1, P))
        cache.write_row(arrays)
        cache.length = P
        self._cache, self.tokens = cache, list(tokens)

    def _with_room(self, positions: int) -> KVCache:
        limit = self.session.manifest.limits.max_position_embeddings
        if self._cache is None:
            self._cache = self.session.new_cache(capacity=positions)
        elif positions > limit:
            raise PromptError(f"a cache of {positions} positions, the model has {limit}")
        elif positions > self._cache.capacity:
            # Twice as much each time, so that a chat's cache is copied a few times only.
            roomy = max(positions, min(2 * self._cache.capacity, limit))
            self._cache.truncate(len(self.tokens))
            self._cache.enlarge(roomy)
        return self._cache


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
