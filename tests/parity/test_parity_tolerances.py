"""The table of tolerances says what was measured over all exports here: neither less nor far more."""

from __future__ import annotations

import numpy as np
import pytest
from parity_cases import CASES, difference, logits_of
from tiny_checkpoints import DTYPES

from llama_export.parity.evidence import RUNTIME
from llama_export.parity.ladder import LADDER
from llama_export.parity.tolerances import TOLERANCES, UNITS, rounding_of

QUANTITY = {rung.name: rung.quantity for rung in LADDER}
ROUNDINGS = ("exact", "float16", "bfloat16")
ENTRIES = [(key, quantity) for key, column in TOLERANCES.items() for quantity in column]
MEASURED = [(key, quantity) for key, quantity in ENTRIES if quantity != "texts"]  # no tokenizer here


@pytest.fixture(scope="module")
def measured(export_of):
    """Rounding and quantity to the largest value that any export here had on any rung of it."""
    seen = {}
    for case in CASES:
        made = export_of(case)
        rounding = rounding_of(DTYPES[case.stored], case.rounded_to)
        for rung in made.result.report.rungs:
            if rung.measured is not None:
                key = (rounding, RUNTIME), QUANTITY[rung.name]
                seen[key] = max(seen.get(key, 0.0), rung.measured)
        ids = np.random.default_rng(7).integers(0, made.oracle.config.vocab_size, (1, 64))
        got = made.session.prefill(ids, made.session.new_cache(capacity=64), all_logits=True)
        key = (rounding, RUNTIME), "logits"
        seen[key] = max(seen[key], difference(got, logits_of(made.rounded_oracle, ids)))
    return seen


@pytest.mark.parametrize(
    ("key", "quantity"), MEASURED, ids=lambda value: "-".join(value) if isinstance(value, tuple) else value
)
def test_the_measured_column_is_honest(measured, key, quantity):
    entry, found = TOLERANCES[key][quantity], measured[key, quantity]
    print(f"{key} {quantity}: {found:.3g}, table {entry.measured:g}")
    assert found <= entry.measured
    assert found >= entry.measured / 50


@pytest.mark.parametrize(("key", "quantity"), ENTRIES)
def test_a_limit_leaves_room_but_not_for_a_mistake(key, quantity):
    entry = TOLERANCES[key][quantity]
    assert entry.reason
    assert 2 * entry.measured <= entry.limit
    # Where nothing was ever seen, the limit is the least that its reason can mean.
    assert entry.limit <= (100 * entry.measured if entry.measured else 0.02)


def test_exact_logits_are_what_the_issue_asks_for():
    for column in TOLERANCES.values():
        assert column["logits"].limit == 1e-4
        assert column["weights"].limit == 0
        assert column["tokens"].limit == 0


def test_every_rung_has_its_entry_and_every_entry_its_rung():
    assert set(UNITS) == {rung.quantity for rung in LADDER}
    assert set().union(*TOLERANCES.values()) == set(UNITS)
    names = [rung.name for rung in LADDER]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("source", "precision", "rounding"),
    [
        ("float32", "float32", "exact"),
        ("bfloat16", "bfloat16", "exact"),
        ("bfloat16", "float32", "exact"),
        ("float16", "float32", "exact"),
        ("float32", "float16", "float16"),
        ("bfloat16", "float16", "float16"),
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "bfloat16", "bfloat16"),
    ],
)
def test_only_rounding_has_a_cost(source, precision, rounding):
    assert rounding_of(DTYPES[source], precision) == rounding
