"""Task heads with our own CPU kernels: a rung of the ladder, which sees what they compute wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_choice import choose
from tiny_heads import ARCHITECTURES, write_head_checkpoint

from llama_export import pipeline
from llama_export.parity import verify
from llama_export.recipe import Recipe
from llama_runtime.kernels import LIBRARY, VARIABLE
from llama_runtime.session import Session

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the kernels were not built: make kernels")
RUNG = "own kernels"


@pytest.fixture(autouse=True)
def _choice(monkeypatch):
    choose(monkeypatch)


@pytest.fixture(
    scope="module", params=[(t, p) for t in ARCHITECTURES for p in ("float32", "int4")], ids="-".join
)
def made(request, tmp_path_factory):
    """A verified bundle, and its checkpoint."""
    task, precision = request.param
    root = tmp_path_factory.mktemp("head-kernels")
    write_head_checkpoint(root / "source", task)
    recipe = (
        Recipe() if precision == "float32" else Recipe(precision=precision, weights="copy", block_size=32)
    )
    with pytest.MonkeyPatch.context() as patch:
        choose(patch)
        return pipeline.export(root / "source", root / "bundle", recipe=recipe), root / "source"


def rung_of(report):
    return next((rung for rung in report.rungs if rung.name == RUNG), None)


def test_the_ladder_has_a_rung_for_them(made):
    rung = rung_of(made[0].report)
    assert rung.passed and "instructions" in rung.detail
    assert rung.measured > 0


def test_the_ladder_is_silent_where_there_are_none(made, monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    report = verify(made[0].output, made[1], quick=True)
    assert report.passed and rung_of(report) is None


def padded_in_front(mask: np.ndarray) -> bool:
    return bool((mask[:, 0] == 0).any())


def padded_behind(mask: np.ndarray) -> bool:
    return bool((mask[:, -1] == 0).any())


def alone(mask: np.ndarray) -> bool:
    return len(mask) == 1


@pytest.mark.parametrize("where", [alone, padded_in_front, padded_behind])
def test_kernels_that_compute_something_else_are_red(made, monkeypatch, where):
    run = Session.run

    def wrong(self, feeds, outputs=None):
        found = run(self, feeds, outputs)
        if self.kernels is None or not where(feeds["attention_mask"]):
            return found
        return {name: values + 2 * np.abs(values).max() for name, values in found.items()}

    monkeypatch.setattr(Session, "run", wrong)
    report = verify(made[0].output, made[1], quick=True)
    assert not report.passed
    assert [rung.name for rung in report.rungs if rung.red] == [RUNG]
