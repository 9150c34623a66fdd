"""A bundle that gives its hidden states besides still generates in the runtimes that know nothing of them."""

from __future__ import annotations

import pytest
from asking import HERE, Ours, asked

import llama_export
from llama_export.recipe import Recipe

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ours(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states") / "demo"
    return Ours(llama_export.export(sources["demo"], folder, recipe=Recipe(hidden_states="all")).output)


def test_optimum(optimum, ours):
    answer = asked([optimum, HERE / "workers" / "generate_optimum.py"], ours.question)
    assert answer["greedy"] == ours.greedy
    assert answer["batch"] == ours.greedy


def test_genai(genai, ours):
    assert asked([genai, HERE / "workers" / "generate_genai.py"], ours.question)["greedy"] == ours.greedy
