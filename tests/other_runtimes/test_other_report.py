"""A verification's report in headless Chromium, from disk: readable on a phone, and no network is asked."""

from __future__ import annotations

import pytest
from asking import HERE, asked
from tiny_heads import write_head_checkpoint

import llama_export
from llama_export.recipe import Recipe

pytestmark = pytest.mark.long
PLOTS = {
    "text-generation": [
        "Error by layer",
        "Error by position",
        "Greedy tokens",
        "Outputs",
        "Weights by tensor",
    ],
    "question-answering": ["Error by layer", "Outputs", "Weights by tensor"],
}


@pytest.fixture(scope="module")
def reports(sources, tmp_path_factory):
    """The reports of rounded bundles, which have every plot."""
    folder = tmp_path_factory.mktemp("reports")
    write_head_checkpoint(folder / "head", "question-answering")
    found = {}
    for task, checkpoint in (("text-generation", sources["demo"]), ("question-answering", folder / "head")):
        recipe = Recipe("flash", "copy", "float16")
        found[task] = llama_export.export(checkpoint, folder / task, recipe=recipe).output / "parity.html"
    return found


@pytest.mark.parametrize("task", PLOTS)
@pytest.mark.parametrize("window", [(390, "light"), (390, "dark"), (1280, "light")], ids=str)
def test_it_can_be_read(node, chromium, reports, task, window, tmp_path):
    width, scheme = window
    shot = tmp_path / "report.png"
    answer = asked(
        [node, HERE / "workers" / "browser.mjs"],
        {"scenario": "report", "url": reports[task].as_uri(), "chromium": chromium}
        | {"width": width, "height": 844, "scheme": scheme, "screenshot": str(shot)},
    )
    assert answer["headings"] == ["The ladder, lowest rung first", *PLOTS[task]]
    assert answer["plots"] == len(PLOTS[task])
    assert answer["overflow"] <= 0
    assert answer["cut"] == []
    assert answer["smallest"] >= 9
    assert answer["errors"] == []
    assert answer["origins"] == ["null"]  # the file alone
    assert shot.stat().st_size > 5000
