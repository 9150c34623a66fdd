"""How far a bundle may be from the reference: one table, each entry with its reason and what was measured.

All are fractions of the largest absolute reference logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llama_export.weights.plan import PRECISIONS


@dataclass(frozen=True)
class Tolerance:
    """One entry of the table.

    Attributes:
        limit: Largest difference allowed.
        reason: Why there is any difference at all.
        measured: Largest difference seen so far (tests/parity keeps it honest).
    """

    limit: float
    reason: str
    measured: float


EXACT = Tolerance(1e-4, "the same weights, float32 sums in another order", 4e-6)
FLOAT16 = Tolerance(2e-2, "weights rounded to float16's 11 significant bits", 7e-3)
BFLOAT16 = Tolerance(1e-1, "weights rounded to bfloat16's 8 significant bits", 3e-2)


def tolerance_for(source: torch.dtype, precision: str) -> Tolerance:
    """The entry for weights of one dtype stored as another."""
    stored = PRECISIONS[precision]
    if stored in (source, torch.float32):
        return EXACT
    return FLOAT16 if stored == torch.float16 else BFLOAT16
