"""Exports of tiny checkpoints, each made once and shared; their graphs are traced once for the whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parity_cases import Case, Export, snapshot
from tiny_checkpoints import CONFIGS, VARIANTS, link_like_the_hub, transformers_model, write_checkpoint

from llama_export import pipeline
from llama_export.recipe import Recipe
from llama_export.weights.precision import BITS
from llama_runtime.opening import open_session


@pytest.fixture(scope="session", autouse=True)
def traced_once(graph_of):
    """The pipeline takes its graphs from those that are traced already; see tests/conftest.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "build_graph", graph_of)
        yield


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory) -> Callable[[Case], Path]:
    """Write a case's checkpoint; cases with the same one share it."""
    written: dict[tuple[object, ...], Path] = {}

    def checkpoint(case: Case) -> Path:
        key = case.config, case.stored, case.shards, case.from_hub
        if key not in written:
            root = tmp_path_factory.mktemp("checkpoints")
            folder = write_checkpoint(
                root / "written", (CONFIGS | VARIANTS)[case.config], case.stored, shards=case.shards
            )
            for path in folder.iterdir():
                path.chmod(0o640)
            written[key] = link_like_the_hub(folder, root / "cache") if case.from_hub else folder
        return written[key]

    return checkpoint


@pytest.fixture(scope="session")
def oracle_of(checkpoint_of) -> Callable[[Case, str], Any]:
    """Transformers' model of a case's checkpoint, its weights rounded to a dtype."""
    loaded: dict[tuple[Path, str], Any] = {}

    def oracle(case: Case, rounded_to: str) -> Any:
        key = checkpoint_of(case), rounded_to
        if key not in loaded:
            loaded[key] = transformers_model(*key)
        return loaded[key]

    return oracle


@pytest.fixture(scope="session")
def export_of(tmp_path_factory, checkpoint_of, oracle_of) -> Callable[[Case], Export]:
    """Export a case, verified, as a person would."""
    made: dict[Case, Export] = {}

    def export(case: Case) -> Export:
        if case not in made:
            checkpoint, output = checkpoint_of(case), tmp_path_factory.mktemp("bundles") / "bundle"
            options = {"block_size": case.block_size, "asymmetric": case.asymmetric, "keep": case.keep}
            recipe = Recipe(case.attention, case.weights, case.precision, **options)
            before = snapshot(checkpoint)
            result = pipeline.export(checkpoint, output, recipe=recipe)
            after = snapshot(checkpoint)
            session = open_session(output, result.manifest, threads=1)
            rounded = "float32" if case.precision in BITS else case.rounded_to  # blocks are for the tests
            oracles = oracle_of(case, "float32"), oracle_of(case, rounded)
            made[case] = Export(case, checkpoint, result, session, *oracles, before, after)
        return made[case]

    return export
