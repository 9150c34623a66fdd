"""Prompt lookup: what followed the same tokens earlier is read ahead, and kept where it is what comes.

A text that quotes its prompt or repeats itself then takes several tokens from one run of the graph. The
tokens are those of plain decoding: whatever a run of several tokens rounds differently from a run of one
must not decide a token, so wherever it could, that token is read again alone.

After "Prompt Lookup Decoding" (A. Saxena, 2023); accepting as in speculative decoding (arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from weakref import WeakKeyDictionary

import numpy as np

from llama_runtime.errors import OptionError
from llama_runtime.generation import Piece
from llama_runtime.manifest import Manifest
from llama_runtime.prefix_cache import PrefixCache
from llama_runtime.row import Row
from llama_runtime.session import Session

# Equal runs of so many tokens are looked for, the longest first.
NGRAMS = (4, 3, 2)
# How far a logit may move with the number of tokens in a run, in standard deviations of the logits. Seen on
# the demo: 4e-6 in float32, 0.02 where activations are rounded to 8 bits. Our own operators move none: their
# rows are independent (runtime/FORMAT.md, "Own kernels").
FLOAT32_MOVES, MOVES = 1e-4, 0.1
_ASKED = 8  # tokens
_MOVES_OF: WeakKeyDictionary[Session, float] = WeakKeyDictionary()


class Drafts:
    """The tokens so far, and where each short run of them came last."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens; a run is remembered once a token has followed it."""
        for token in tokens:
            place = len(self.tokens)
            for n in NGRAMS:
                if place >= n:
                    self._follows[tuple(self.tokens[place - n :])] = place
            self.tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """The ``count`` tokens that followed when the text last ended as it ends now; [] if it never did.

        Where these reach the end of the text, they go on into themselves, as a text of one period does.
        """
        for n in NGRAMS:
            place = self._follows.get(tuple(self.tokens[-n:]))
            if place is not None:
                return list(islice(cycle(self.tokens[place:]), count))
        return []


def check_lookup(manifest: Manifest) -> None:
    """Refuse a model whose tokens must be read one by one.

    Raises:
        OptionError: Its rotary angles depend on the length of the text, so that a token read ahead would
            turn those in front of it; or it is an engine, a run of which gives the last token's logits alone.
    """
    optional = [spec.name for spec in manifest.optional_inputs]
    if "rope_length" in optional:
        raise OptionError(
            "prompt_lookup_num_tokens: this model's rotary angles depend on the length of the text",
            "leave it out",
        )
    if "num_logits_to_keep" not in optional:
        raise OptionError(
            "prompt_lookup_num_tokens: an engine gives the logits of a run's last token alone", "leave it out"
        )


class Reader:
    """Reads a row's tokens, several in one run, and answers for what a run of one would have given."""

    def __init__(self, row: Row, cache: PrefixCache) -> None:
        self._row, self._cache = row, cache
        self._moves = _moves(cache.session)
        # The first positions of the cache, which are what plain decoding leaves there.
        self._plain = len(cache.tokens)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Read tokens behind those that are there; returns the logits that follow each, [T, V] float32."""
        if len(tokens) > 1:
            return self._cache.extend(tokens)
        if self._plain == len(self._cache.tokens):
            self._plain += 1
        return self._cache.decode(tokens[0])

    def take(self, logits: np.ndarray, unread: int) -> tuple[Piece, bool]:
        """Choose the next token.

        Args:
            logits: [V] float32, what follows all that is in the cache but its last tokens.
            unread: How many these are.

        Returns:
            The piece, and whether the cache still holds them.
        """
        cache = self._cache
        certain = not self._moves or self._plain == len(cache.tokens)
        certain = certain or self._row.is_certain(logits, self._moves * float(logits.std()))
        if not certain:
            again = cache.tokens[self._plain : len(cache.tokens) - unread]
            cache.keep(self._plain)
            for token in again:
                logits = cache.decode(token)[0]
            self._plain = len(cache.tokens)
        return self._row.take(logits), certain


def _moves(session: Session) -> float:
    """How far a logit may move; a session is asked once, by reading a few tokens alone and together."""
    if session not in _MOVES_OF:
        limits = session.manifest.limits
        count = min(_ASKED, limits.max_position_embeddings)
        tokens = np.arange(count, dtype=np.int64)[None] % limits.vocab_size
        alone, together = (session.new_cache(capacity=count) for _ in range(2))
        logits = np.stack([session.decode(tokens[:, i], alone)[0] for i in range(count)])
        same = np.array_equal(logits, session.prefill(tokens, together, all_logits=True)[0])
        moves = FLOAT32_MOVES if session.manifest.precision == "float32" else MOVES
        _MOVES_OF[session] = 0.0 if same else moves
    return _MOVES_OF[session]


def pieces(row: Row, cache: PrefixCache, logits: np.ndarray) -> Iterator[Piece]:
    """Generate a row to its end, reading ahead.

    Args:
        row: Its prompt is in the cache.
        cache: The row's.
        logits: [V] float32, what follows the prompt.
    """
    reader, drafts, options = Reader(row, cache), Drafts(row.prompt_tokens), row.options
    piece = row.take(logits)
    while True:
        yield piece
        if piece.finish_reason:
            return
        drafts.extend([piece.token])
        room = options.max_new_tokens - len(row.tokens) - 1
        ahead = [piece.token, *drafts.draft(min(options.prompt_lookup_num_tokens, room))]
        for count, following in enumerate(reader.read(ahead), 1):  # [V], behind the first ``count`` of them
            unread = len(ahead) - count
            piece, there = reader.take(following, unread)
            if not (there and unread and piece.token == ahead[count]) or piece.finish_reason:
                if there and unread:
                    cache.keep(len(cache.tokens) - unread)
                break
            yield piece
            drafts.extend([piece.token])
