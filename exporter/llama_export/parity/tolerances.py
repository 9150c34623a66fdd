"""How far a bundle may be from the reference: one table, each entry with its reason and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from llama_export.weights.precision import BITS, PRECISIONS
from llama_runtime.manifest import Cache

Quantity = Literal[
    "texts",
    "weights",
    "layer",
    "logits",
    "tokens",
    "rounding",
    "kl",
    "top1",
    "perplexity",
    "labels",
    "cosine",
]
UNITS: dict[Quantity, str] = {
    "texts": "texts with other ids than the checkpoint's tokenizer gives, or that come back otherwise",
    "weights": "stored values that are not the checkpoint's, rounded to the stored dtype",
    "layer": "largest difference, as a fraction of the reference's largest value",
    "logits": "largest output difference, as a fraction of the reference's largest",
    "tokens": "tokens that the reference would not have chosen, near ties apart",
    "rounding": "largest output difference from the unrounded checkpoint, as a fraction of its largest",
    "kl": "mean Kullback-Leibler divergence from the unrounded checkpoint, in nats a token or a label",
    "top1": "share of tokens whose likeliest successor is another than the unrounded checkpoint's",
    "perplexity": "difference of the perplexity, as a fraction of the unrounded checkpoint's",
    "labels": "share of labels, or of places of an answer, that are others than the unrounded checkpoint's",
    "cosine": "1 less the cosine of an embedding and the unrounded checkpoint's, the worst",
}


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


_SUMS = "the same weights, float32 sums in another order"
_BITS16 = "weights rounded to float16's 11 significant bits"
_BITS8 = "weights rounded to bfloat16's 8 significant bits"
_TIES = "; a model with random weights hesitates often"
_IN_BLOCKS = "every block is the checkpoint's, within what rounding to its codes can do"
_ACTIVATIONS = "activations rounded to int8, 32 to 128 of them by one scale"
_INT8 = "weights rounded to 8 bits, and activations"
_CACHE = "keys and values rounded to 8 bits"
_CACHE_CODES = "keys of a padded batch are rotated from another position, and so rounded otherwise"
_INT4 = "weights rounded to 4 bits, and activations to 8"

INT8_CACHE = "int8 cache"

# What every precision owes: it is compared with the reference on the weights that it stores.
_COMPUTED: dict[Quantity, Tolerance] = {
    "texts": Tolerance(0, "ids are exact", 0),
    "weights": Tolerance(0, "the weights are the checkpoint's, to the bit", 0),
    "layer": Tolerance(1e-4, _SUMS, 2e-6),
    "logits": Tolerance(1e-4, _SUMS, 8e-6),
    "tokens": Tolerance(0, "a token counts where the reference's choice is clear", 0),
}
TOLERANCES: dict[tuple[str, str], dict[Quantity, Tolerance]] = {
    ("exact", "onnxruntime-cpu"): _COMPUTED,
    ("float16", "onnxruntime-cpu"): _COMPUTED
    | {
        "rounding": Tolerance(2e-2, _BITS16, 6e-3),
        "kl": Tolerance(2e-4, _BITS16, 4e-5),
        "top1": Tolerance(0.15, _BITS16 + _TIES, 4e-2),
        "perplexity": Tolerance(2e-2, _BITS16, 4e-3),
        "labels": Tolerance(0.17, _BITS16 + ": two texts of the dozen", 0),
        "cosine": Tolerance(1e-4, _BITS16, 1e-5),
    },
    ("bfloat16", "onnxruntime-cpu"): _COMPUTED
    | {
        "rounding": Tolerance(2e-1, _BITS8, 5e-2),
        "kl": Tolerance(1e-2, _BITS8, 2e-3),
        "top1": Tolerance(0.15, _BITS8 + _TIES, 4e-2),
        "perplexity": Tolerance(2e-2, _BITS8, 5e-3),
        "labels": Tolerance(0.25, _BITS8 + _TIES, 5e-2),
        "cosine": Tolerance(2e-3, _BITS8, 4e-4),
    },
    ("int8", "onnxruntime-cpu"): _COMPUTED
    | {
        "weights": Tolerance(0, _IN_BLOCKS, 0),
        "logits": Tolerance(0.25, _ACTIVATIONS, 0.09),
        "rounding": Tolerance(0.4, _INT8, 0.1),
        "kl": Tolerance(0.1, _INT8, 0.02),
        "top1": Tolerance(0.3, _INT8, 0.08),
        "perplexity": Tolerance(0.15, _INT8, 0.03),
        "labels": Tolerance(0.3, _INT8, 0.09),
        "cosine": Tolerance(0.02, _INT8, 0.004),
    },
    ("int4", "onnxruntime-cpu"): _COMPUTED
    | {
        "weights": Tolerance(0, _IN_BLOCKS, 0),
        "logits": Tolerance(0.25, _ACTIVATIONS, 0.09),
        "rounding": Tolerance(2, _INT4, 0.8),
        "kl": Tolerance(4, _INT4, 1.1),
        "top1": Tolerance(0.98, _INT4, 0.49),
        "perplexity": Tolerance(1, _INT4, 0.4),
        "labels": Tolerance(0.95, _INT4, 0.46),
        "cosine": Tolerance(0.6, _INT4, 0.26),
    },
    (INT8_CACHE, "onnxruntime-cpu"): _COMPUTED
    | {
        "layer": Tolerance(1.5e-1, _CACHE_CODES, 6e-2),
        "logits": Tolerance(1.2e-1, _CACHE_CODES, 5e-2),
        "rounding": Tolerance(0.3, _CACHE, 0.1),
        "kl": Tolerance(3e-2, _CACHE, 1.2e-2),
        "top1": Tolerance(0.3, _CACHE + _TIES, 0.07),
        "perplexity": Tolerance(0.1, _CACHE, 0.035),
        "cosine": Tolerance(5e-3, _CACHE, 2e-3),
    },
}
"""By what the weights lost on their way into the bundle, and by what runs it."""

_HALF = "each operator's result rounded to float16's 11 significant bits"
_IN_HALF: dict[Quantity, Tolerance] = {
    "layer": Tolerance(1e-2, _HALF, 2e-3),
    "logits": Tolerance(2e-2, _HALF, 5e-3),
}


def tolerances_of(rounding: str, runtime: str, cache: Cache | None) -> dict[Quantity, Tolerance]:
    """The table's column for a bundle.

    Args:
        rounding: What its weights lost.
        runtime: What runs it.
        cache: Its cache: float16 where the graph computes in that, int8 where it keeps codes; or None.
    """
    found = TOLERANCES[rounding, runtime]
    if cache is None or cache.dtype == "float32":
        return found
    if cache.dtype == "float16":
        return found | _IN_HALF
    rounded = TOLERANCES[INT8_CACHE, runtime]
    return found | {name: entry for name, entry in rounded.items() if entry.limit > found[name].limit}


def rounding_of(source: torch.dtype, precision: str) -> str:
    """What weights of one dtype lose when they are stored as ``precision``: ``"exact"`` is nothing."""
    if precision in BITS:
        return precision
    stored = PRECISIONS[precision]
    return "exact" if stored in (source, torch.float32) else precision
