"""Every recipe loads, says what it is for, and a checkpoint can be planned with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llama_export.cli import main
from llama_export.recipe import Recipe, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def named(path: Path) -> str:
    return path.stem


def test_there_is_one_for_each_common_choice():
    names = {path.stem for path in RECIPES}
    assert names >= {"exact", "standard", "basic", "cpu-float32", "half", "bfloat16", "beside"}


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_recipe_loads_and_says_what_it_is_for(path):
    read_recipe(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 40


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_recipe_is_accepted_by_the_command_line(path, talking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["onnx", str(talking), "--recipe", str(path), "--dry-run", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    declared = json.dumps(dataclasses.asdict(read_recipe(path)), default=str)
    assert json.loads(result.stdout)["recipe"] == json.loads(declared)


def test_exact_is_the_default():
    assert read_recipe(RECIPES[[path.stem for path in RECIPES].index("exact")]) == Recipe()


def test_no_two_recipes_are_the_same():
    recipes = [read_recipe(path) for path in RECIPES]
    assert len(set(recipes)) == len(recipes)


def test_every_choice_is_in_some_recipe():
    recipes = [read_recipe(path) for path in RECIPES]
    assert {recipe.attention for recipe in recipes} == {"eager", "sdpa", "flash"}
    assert {recipe.weights for recipe in recipes} == {None, "copy", "beside"}  # None links where it can
    assert {recipe.precision for recipe in recipes} == {
        None,
        "float32",
        "float16",
        "bfloat16",
        "int8",
        "int4",
    }
