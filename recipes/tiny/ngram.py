"""A 5-gram model with interpolated, modified Kneser-Ney smoothing: what the LLaMA has to beat.

Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER = 5
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Level(NamedTuple):
    """The n-grams of one order, each packed into one integer, and what is left over for shorter ones.

    Attributes:
        grams: Sorted n-grams, context and word.
        discounted: Count of each n-gram, less its discount.
        contexts: Sorted contexts.
        totals: Sum of the counts after each context.
        backoff: Sum of the discounts after each context.
    """

    grams: Ints
    discounted: Floats
    contexts: Ints
    totals: Floats
    backoff: Floats


class NgramModel:
    """Counts of a token stream, as smoothed probabilities.

    Args:
        sequences: Ids of each training text, from <s> to </s>.
        vocab_size: V; ``V ** ORDER`` must fit 63 bits.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        windows = np.concatenate([_windows(ids) for ids in sequences])  # [N, ORDER]
        grams, counts = np.unique(self._pack(windows), return_counts=True)
        self.levels = [self._level(grams, counts)]
        for order in range(ORDER - 1, 0, -1):
            # A shorter n-gram counts once for each word it was seen after: that is Kneser and Ney's idea.
            grams, counts = np.unique(grams % vocab_size**order, return_counts=True)
            self.levels.insert(0, self._level(grams, counts))

    def probabilities(self, ids: Sequence[int]) -> Floats:
        """Return the probability of each token of a text after the first, which is <s>."""
        return self.window_probabilities(_windows(ids))

    def window_probabilities(self, windows: Ints) -> Floats:
        """Return the probability of the last token of each [N, ORDER] window after the tokens before it."""
        packed = self._pack(windows)
        result = np.full(len(packed), 1 / self.vocab_size)
        for order, level in enumerate(self.levels, start=1):
            gram = packed % self.vocab_size**order
            at, seen = _find(level.contexts, gram // self.vocab_size)
            hit, known = _find(level.grams, gram)
            direct = np.where(known, level.discounted[hit], 0.0)
            mixed = (direct + level.backoff[at] * result) / level.totals[at]
            result = np.where(seen, mixed, result)
        return result

    def _pack(self, windows: Ints) -> Ints:
        return windows @ (self.vocab_size ** np.arange(ORDER - 1, -1, -1, dtype=np.int64))

    def _level(self, grams: Ints, counts: Ints) -> Level:
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        contexts, first = np.unique(grams // self.vocab_size, return_index=True)
        totals, backoff = np.add.reduceat(counts, first), np.add.reduceat(discounts, first)
        return Level(grams, counts - discounts, contexts, totals.astype(np.float64), backoff)


def _windows(ids: Sequence[int]) -> Ints:
    """[len(ids) - 1, ORDER]: each token after the first with those before it, <s> repeated in front."""
    padded = np.array([ids[0]] * (ORDER - 2) + list(ids), dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(padded, ORDER)


def _discounts(counts: Ints) -> Floats:
    """Chen and Goodman's discounts of counts 0, 1, 2 and 3 or more; never 0, or unseen tokens get nothing."""
    n1, n2, n3, n4 = (max(int((counts == times).sum()), 1) for times in (1, 2, 3, 4))
    share = n1 / (n1 + 2 * n2)
    raw = [0.0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3]
    return np.clip(raw, [0.0, 0.1, 0.1, 0.1], [0.0, 1.0, 2.0, 3.0])


def _find(table: Ints, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Index of each key in a sorted table, and whether it is there at all."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys
