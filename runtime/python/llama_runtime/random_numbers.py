"""SplitMix64 as a function of seed and index: the same numbers in any language, from any token on.

FORMAT.md specifies it with test vectors. Number n needs none of those before it, so a text
that broke off continues with the draws it would have had.
"""

from __future__ import annotations

MASK = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def splitmix64(seed: int, index: int) -> int:
    """Number ``index`` (from 0) of the SplitMix64 sequence that starts at ``seed``, below 2**64."""
    z = (seed + (index + 1) * GOLDEN_GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed: int, index: int) -> float:
    """Number ``index`` in [0, 1): the upper 53 bits, so that every value is exact in a double."""
    return (splitmix64(seed, index) >> 11) * 2.0**-53
