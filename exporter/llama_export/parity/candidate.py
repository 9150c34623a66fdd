"""What the bundle computes through the runtime that ships; ``scene`` feeds the graph itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_runtime.session import Session


@dataclass(frozen=True)
class Continuation:
    """A prompt read, continued greedily, and read on.

    Attributes:
        prompt: T tokens.
        tokens: The n tokens chosen.
        chunk: The m tokens read in one go behind all others but the last: ``tokens[-1]`` and some more.
        prefill: [T, V] logits of the prompt.
        decode: [n - 1, V] logits of the tokens that were read back, by decoding with the cache.
        chunked: [m, V] logits of the chunk, which had a past.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    chunk: tuple[int, ...]
    prefill: np.ndarray
    decode: np.ndarray
    chunked: np.ndarray

    @property
    def reads(self) -> tuple[int, ...]:
        """How many of them each run read."""
        return (len(self.prompt), *(1 for _ in self.tokens[1:]), len(self.chunk))

    @property
    def sequence(self) -> tuple[int, ...]:
        """All tokens that were read: what the reference reads in one pass."""
        return (*self.prompt, *self.tokens[:-1], *self.chunk)


def continue_greedily(
    session: Session, prompt: Sequence[int], n: int, more: Sequence[int] = ()
) -> Continuation:
    """Prefill a prompt, decode n - 1 times, then read the last token and ``more`` as one chunk."""
    cache = session.new_cache(capacity=len(prompt) + n + len(more))
    prefill = session.prefill(np.array([prompt], np.int64), cache, all_logits=True)[0]
    tokens, decode = [int(prefill[-1].argmax())], []
    while len(tokens) < n:
        logits = session.decode(np.array(tokens[-1:], np.int64), cache)[0]
        decode.append(logits)
        tokens.append(int(logits.argmax()))
    chunk = (tokens[-1], *more)
    chunked = session.prefill(np.array([chunk], np.int64), cache, all_logits=True)[0]
    decoded = np.array(decode).reshape(-1, prefill.shape[1])
    return Continuation(tuple(prompt), tuple(tokens), chunk, prefill, decoded, chunked)


def read_again(session: Session, found: Continuation) -> np.ndarray:
    """[T + n - 1 + m, V] logits of the same tokens, read in the same steps by another session."""
    cache = session.new_cache(capacity=len(found.sequence))
    logits = [session.prefill(np.array([found.prompt], np.int64), cache, all_logits=True)[0]]
    logits += [session.decode(np.array([token], np.int64), cache) for token in found.tokens[:-1]]
    logits.append(session.prefill(np.array([found.chunk], np.int64), cache, all_logits=True)[0])
    return np.concatenate(logits)


def prefill_in_chunks(session: Session, tokens: Sequence[int], chunk_tokens: int, last: int) -> np.ndarray:
    """[last, V] logits at the end of a sequence that is read a chunk at a time."""
    cache = session.new_cache(capacity=len(tokens))
    ids = np.array([tokens], np.int64)
    if len(tokens) > last:
        session.prefill(ids[:, :-last], cache, chunk_tokens=chunk_tokens, text_tokens=len(tokens))
    logits: np.ndarray = session.prefill(ids[:, -last:], cache, all_logits=True)[0]
    return logits
