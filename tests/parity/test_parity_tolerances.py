"""The table of tolerances says what was measured over all exports here: neither less nor far more."""

from __future__ import annotations

import numpy as np
import pytest
from parity_cases import CASES, difference, logits_of
from tiny_checkpoints import DTYPES

from llama_export.parity import tolerances
from llama_export.parity.tolerances import BFLOAT16, EXACT, FLOAT16, tolerance_for


def worst(made):
    """The largest difference from the unrounded checkpoint: by the ladder's measure, and by transformers'."""
    ladder = max(rung.measured for rung in made.result.report.rungs[1:-1])
    ids = np.random.default_rng(7).integers(0, made.oracle.config.vocab_size, (1, 64))
    got = made.session.prefill(ids, made.session.new_cache(capacity=64), all_logits=True)
    return max(ladder, difference(got, logits_of(made.oracle, ids)))


@pytest.fixture(scope="module")
def measured(export_of):
    """Table entry to the largest difference under it."""
    seen = {}
    for case in CASES:
        entry = tolerance_for(DTYPES[case.stored], case.rounded_to)
        seen[entry] = max(seen.get(entry, 0.0), worst(export_of(case)))
    return seen


@pytest.mark.parametrize("name", ["EXACT", "FLOAT16", "BFLOAT16"])
def test_the_measured_column_is_honest(measured, name):
    entry = getattr(tolerances, name)
    print(f"{name}: {measured[entry]:.3g}")
    assert entry.measured / 50 < measured[entry] <= entry.measured


@pytest.mark.parametrize("entry", [EXACT, FLOAT16, BFLOAT16])
def test_a_limit_leaves_room_but_not_for_a_mistake(entry):
    assert 2 * entry.measured <= entry.limit <= 100 * entry.measured
    assert entry.reason


def test_exact_is_what_the_issue_asks_for():
    assert EXACT.limit == 1e-4


@pytest.mark.parametrize(
    ("source", "precision", "entry"),
    [
        ("float32", "float32", EXACT),
        ("bfloat16", "bfloat16", EXACT),
        ("bfloat16", "float32", EXACT),
        ("float16", "float32", EXACT),
        ("float32", "float16", FLOAT16),
        ("bfloat16", "float16", FLOAT16),
        ("float32", "bfloat16", BFLOAT16),
        ("float16", "bfloat16", BFLOAT16),
    ],
)
def test_only_rounding_earns_a_wider_limit(source, precision, entry):
    assert tolerance_for(DTYPES[source], precision) is entry
