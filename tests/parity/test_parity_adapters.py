"""An adapter exported with its base, verified, and compared with PEFT's unmerged model."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from parity_cases import difference
from peft_adapters import peft_logits, write_adapter
from tiny_checkpoints import CONFIGS, transformers_model, write_checkpoint

from llama_export import pipeline
from llama_export.cli import main
from llama_export.errors import LlamaExportError, OptionError
from llama_export.parity import verify
from llama_export.recipe import Recipe, read_recipe
from llama_runtime.opening import open_session

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("adapters") / "base", CONFIGS["gqa"], "bfloat16")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, base):
    root = tmp_path_factory.mktemp("adapters")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = write_adapter(base, root / "first", target_modules=[*LINEAR, "embed_tokens"])
        second = write_adapter(base, root / "second", seed=1, target_modules=LINEAR, use_dora=True)
    return first, second


@pytest.fixture(scope="module")
def made(tmp_path_factory, base, adapters):
    output = tmp_path_factory.mktemp("adapters") / "bundle"
    return pipeline.export(base, output, recipe=Recipe(adapters=adapters))


def test_it_computes_what_peft_computes_unmerged(made, base, adapters):
    ids = np.random.default_rng(0).integers(0, CONFIGS["gqa"].vocab_size, (1, 40))
    session = open_session(made.output, made.manifest, threads=1)
    got = session.prefill(ids, session.new_cache(capacity=40), all_logits=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = peft_logits(base, list(adapters), torch.from_numpy(ids)).numpy()
    assert difference(got, want) <= 1e-4
    with torch.no_grad():
        assert difference(transformers_model(base)(torch.from_numpy(ids)).logits.numpy(), want) > 1e-2


def test_it_was_verified_and_can_be_again(made, base, adapters):
    assert made.report.passed
    assert (made.manifest.precision, made.manifest.weights) == ("float32", "copy")
    sources = {entry.path for entry in made.manifest.source}
    assert {f"adapters/{i}/adapter_model.safetensors" for i in (0, 1)} <= sources
    assert verify(made.output, base, adapters=adapters).passed
    with pytest.raises(OptionError, match="not a file that"):
        verify(made.output, base, adapters=adapters[::-1])


def test_a_recipe_names_adapters(tmp_path, adapters):
    (tmp_path / "recipe.toml").write_text(f"adapters = [{json.dumps(str(adapters[0]))}]\n")
    assert read_recipe(tmp_path / "recipe.toml").adapters == adapters[:1]
    (tmp_path / "recipe.toml").write_text('adapters = "one"\n')
    with pytest.raises(LlamaExportError, match="adapters is 'one', must be a list of folders"):
        read_recipe(tmp_path / "recipe.toml")


def test_a_bad_adapter_leaves_nothing_behind(tmp_path, base, adapters):
    arguments = ["onnx", str(base), str(tmp_path / "out"), "--adapter", str(adapters[0])]
    result = CliRunner().invoke(main, [*arguments, "--adapter", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "nowhere: no such folder" in result.stderr
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(main, [*arguments, "--weights", "link"])
    assert result.exit_code == 2
    assert "merged with an adapter" in result.stderr


def test_the_plan_shows_what_an_adapter_costs(tmp_path, base, adapters):
    arguments = [
        "onnx",
        str(base),
        str(tmp_path / "out"),
        "--dry-run",
        "--json",
        "--adapter",
        str(adapters[0]),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    values = sum(np.prod(shape) for shape in CONFIGS["gqa"].tensor_shapes().values())
    assert json.loads(result.stdout)["written_bytes"] >= 4 * values


def test_convert_merges_them_too(tmp_path, base, adapters):
    arguments = ["convert", str(base), str(tmp_path / "merged")]
    for adapter in adapters:
        arguments += ["--adapter", str(adapter)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    ids = torch.arange(30).view(1, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = peft_logits(base, list(adapters), ids).numpy()
    with torch.no_grad():
        got = transformers_model(tmp_path / "merged")(ids).logits.numpy()
    assert difference(got, want) <= 1e-4
