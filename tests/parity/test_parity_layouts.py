"""Every layout of one set of weights exports to what its Hugging Face folder does; transformers agrees."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from layout_checkpoints import LAYOUTS
from parity_cases import difference, logits_of, snapshot
from tiny_checkpoints import transformers_model, write_checkpoint

from llama_export import pipeline
from llama_export.cli import main
from llama_export.errors import OptionError
from llama_export.parity import verify
from llama_export.recipe import Recipe
from llama_runtime.opening import open_session

LIMIT = 1e-4
LINKED = {"safetensors", "pickle", "pickles"}


@pytest.fixture(params=LAYOUTS, scope="module")
def made(request, tmp_path_factory):
    """The layout's name, its checkpoint, its verified bundle, and the folder it should equal."""
    config, write = LAYOUTS[request.param]
    root = tmp_path_factory.mktemp("layout")
    source, plain = (
        write(root / "source", dtype="bfloat16"),
        write_checkpoint(root / "hf", config, "bfloat16"),
    )
    before = snapshot(source)
    exported = pipeline.export(source, root / "bundle")
    assert snapshot(source) == before
    return request.param, source, exported, plain


def test_the_bundle_is_verified_and_linked_where_it_can_be(made):
    layout, _, exported, _ = made
    assert exported.report.passed
    assert exported.report.rungs[0].measured == 0
    assert exported.manifest.precision == "bfloat16"
    if layout in LINKED:
        assert (exported.placed_as, exported.manifest.weights) == ("hard link", "link")
        assert exported.notes == ()
    else:
        assert (exported.placed_as, exported.manifest.weights) == ("written", "copy")
        assert "written anew as bfloat16, since model." in exported.notes[0]


def test_tokens_and_logits_are_the_hugging_face_folders_and_transformers(made, tmp_path):
    _, _, exported, plain = made
    other = pipeline.export(plain, tmp_path / "other")
    answers = [(a.prompt_tokens, a.tokens) for a in exported.manifest.known_answers]
    assert answers == [(a.prompt_tokens, a.tokens) for a in other.manifest.known_answers]
    assert answers
    oracle = transformers_model(plain, "bfloat16")
    ids = np.random.default_rng(0).integers(0, oracle.config.vocab_size, (1, 40))
    got = []
    for result in (exported, other):
        session = open_session(result.output, result.manifest, threads=1)
        got.append(session.prefill(ids, session.new_cache(capacity=40), all_logits=True))
    assert np.array_equal(*got)
    assert difference(got[0], logits_of(oracle, ids)) <= LIMIT


def test_the_manifest_names_every_source_file_by_its_hash(made):
    _, source, exported, _ = made
    weights = {
        path.name for path in source.iterdir() if path.suffix in (".pth", ".bin", ".msgpack", ".safetensors")
    }
    facts = {"params.json"} if (source / "params.json").exists() else {"config.json"}
    assert {entry.path for entry in exported.manifest.source} == weights | facts
    for name, size, digest, _, _ in snapshot(source):
        for entry in exported.manifest.source:
            if name.endswith("/" + entry.path):
                assert (entry.size_bytes, entry.sha256) == (size, digest)


def test_it_can_be_verified_again(made):
    _, source, exported, _ = made
    assert verify(exported.output, source).passed


def test_a_link_is_refused_where_nothing_could_be_linked(made, tmp_path):
    layout, source, _, _ = made
    for mode in () if layout in LINKED else ("link", "beside"):
        with pytest.raises(
            OptionError, match=rf"--weights {mode} takes the weights as they stand, .* must be"
        ):
            pipeline.export(source, tmp_path / "bundle", recipe=Recipe(weights=mode))
    assert list(tmp_path.iterdir()) == []


def test_the_plan_and_the_last_lines_say_what_was_chosen(made, tmp_path):
    layout, source, _, _ = made
    plan = CliRunner().invoke(main, ["onnx", str(source), str(tmp_path / "b"), "--dry-run"])
    assert plan.exit_code == 0
    chosen = "link" if layout in LINKED else "copy"
    assert f"weights {chosen}, precision as in the checkpoint" in plan.stdout
    assert ("note " in plan.stdout) == (layout not in LINKED)
    facts = json.loads(
        CliRunner().invoke(main, ["onnx", str(source), str(tmp_path / "b"), "--dry-run", "--json"]).stdout
    )
    assert facts["weights"] == chosen
    assert (facts["written_bytes"] == 0) == (layout in LINKED)
