"""``llama-export convert``: any layout becomes a folder that transformers loads with identical tensors."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from layout_checkpoints import (
    FLAT,
    LAYOUTS,
    META_FLASH,
    PARAMS,
    without_prefix,
    write_flax,
    write_meta,
    write_pickles,
)
from safetensors import safe_open
from talking_checkpoint import files_in, train_tokenizer
from tiny_checkpoints import DTYPES, random_weights, write_checkpoint

from llama_export.bundle import stage
from llama_export.checkpoint import open_checkpoint
from llama_export.cli import main


def run(*arguments: object) -> dict:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    return result.stderr


def assert_transformers_loads(folder: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    from transformers import LlamaForCausalLM

    model, info = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    state = model.state_dict()
    for name, value in weights.items():
        assert torch.equal(state[name], value), name
    assert set(state) == set(weights)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_loads_identical_tensors(tmp_path, layout, dtype):
    config, write = LAYOUTS[layout]
    source = write(tmp_path / "source", dtype=dtype)
    before = files_in(source)
    facts = run(source, tmp_path / "out")
    assert facts["tensors"] == len(config.tensor_shapes())
    assert {name: (tmp_path / "out" / name).stat().st_size for name in facts["files"]} == facts["files"]
    assert sorted(facts["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files_in(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out", "source"] or len(
        list(tmp_path.iterdir())
    ) == 2
    assert_transformers_loads(tmp_path / "out", random_weights(config, DTYPES[dtype]), DTYPES[dtype])
    assert open_checkpoint(tmp_path / "out").config == config


def test_shards_are_bounded_and_indexed(tmp_path):
    config, write = LAYOUTS["meta 2 shards"]
    facts = run(write(tmp_path / "source"), tmp_path / "out", "--max-shard-size", "60KB")
    files = [name for name in facts["files"] if name.endswith(".safetensors")]
    assert len(files) > 3
    assert all(re.fullmatch(rf"model-\d{{5}}-of-{len(files):05}\.safetensors", name) for name in files)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    for file in files:
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            inside = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        assert inside.keys() == {name for name, place in index["weight_map"].items() if place == file}
        assert len(inside) == 1 or sum(value.nbytes for value in inside.values()) <= 60_000
    weights = random_weights(config)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights.values())
    assert_transformers_loads(tmp_path / "out", weights, torch.float32)


def test_two_dtypes_stay_two(tmp_path):
    config, write = LAYOUTS["pickle"]
    weights = {name: v if v.ndim == 1 else v.bfloat16() for name, v in random_weights(config).items()}
    run(write(tmp_path / "source", weights=weights), tmp_path / "out")
    for name, tensor in open_checkpoint(tmp_path / "out").tensors.items():
        assert tensor.dtype == weights[name].dtype
        assert tensor.stored[0].offset % tensor.dtype.itemsize == 0
        assert torch.equal(tensor.read(), weights[name])


def test_a_conversion_of_a_conversion_is_the_same_bytes(tmp_path):
    _, write = LAYOUTS["meta llama 3"]
    run(write(tmp_path / "source"), tmp_path / "first")
    run(tmp_path / "first", tmp_path / "second")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / which).iterdir()}
        for which in ("first", "second")
    )
    assert first == second


def test_the_tokenizer_one_level_up_comes_along(tmp_path):
    from transformers import AutoTokenizer

    config = dataclasses.replace(META_FLASH, vocab_size=320)
    source = write_meta(tmp_path / "llama/7B", config, PARAMS | {"vocab_size": -1})
    train_tokenizer(tmp_path / "llama/tokenizer.model")
    (tmp_path / "llama/LICENSE").write_text("Do good.\n")
    facts = run(source, tmp_path / "out")
    assert {"LICENSE", "tokenizer.model", "tokenizer.json", "config.json", "generation_config.json"} <= set(
        facts["files"]
    )
    raw = json.loads((tmp_path / "out/config.json").read_text())
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (1, 2)
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, [2])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "a small red fox by the sea"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True).strip() == text


def test_an_existing_folder_is_not_overwritten(tmp_path):
    source = LAYOUTS["pickle"][1](tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    assert "exists, convert writes a new folder" in refused(source, tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "precious"
    (tmp_path / "out/mine").unlink()
    run(source, tmp_path / "out")
    assert "exists" in refused(source, tmp_path / "out")
    assert "is inside the checkpoint" in refused(source, source / "out")


@pytest.mark.parametrize("text", ["5", "GB", "0GB", "-1GB", "5XB", "five GB", ""])
def test_other_sizes_are_refused(tmp_path, text):
    assert "must be a number and a unit" in refused(tmp_path, tmp_path / "out", "--max-shard-size", text)


def test_too_little_space_is_refused_before_any_work(tmp_path, monkeypatch):
    source = LAYOUTS["pickle"][1](tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "the output needs" in refused(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("layout", ["pickle", "flax", "meta 2 shards"])
def test_nothing_is_left_where_a_weight_is_not_finite(tmp_path, layout):
    config, write = LAYOUTS[layout]
    weights = random_weights(config)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    source = write(tmp_path / "source", weights=weights)
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in refused(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_damaged_tokenizer_is_refused_before_any_output(tmp_path):
    source = LAYOUTS["meta 1 shard"][1](tmp_path / "source")
    (source / "tokenizer.model").write_bytes(b"\x00\x01 damaged")
    assert "tokenizer.model" in refused(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch {self.target}",)


def put_code(folder: Path) -> None:
    file = next(folder.glob("*.bin"), None) or next(folder.glob("*.pth"))
    torch.save({"weight": Attack(folder.parent / "ran")}, file)


def compress(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def claim_more(folder: Path) -> None:
    """The first array's extension says that it is longer than the file."""
    data = bytearray((folder / "flax_model.msgpack").read_bytes())
    at = data.index(0xC8)  # an extension with two bytes of length
    data[at + 1 : at + 3] = b"\xff\xff"
    (folder / "flax_model.msgpack").write_bytes(data[: at + 300])


ATTACKS = {
    "code in a pickle": ("pickle", put_code, "no code is run"),
    "code in a shard of Meta's": ("meta 2 shards", put_code, "no code is run"),
    "a zip bomb": ("pickle", compress, "is compressed"),
    "a length that lies": ("flax", claim_more, "lies about a length"),
    "a shard missing": ("meta 2 shards", lambda f: (f / "consolidated.01.pth").unlink(), "in 1 shard"),
    "a shard twice": (
        "meta 2 shards",
        lambda f: shutil.copy(f / "consolidated.00.pth", f / "consolidated.01.pth"),
        "holds the same weights",
    ),
    "a tokenizer cut short": (
        "meta 1 shard",
        lambda f: (f / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>"),
        "tokenizer.model",
    ),
}


@pytest.mark.parametrize("command", ["convert", "onnx"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_before_any_output(tmp_path, attack, command):
    layout, damage, words = ATTACKS[attack]
    source = LAYOUTS[layout][1](tmp_path / "source")
    damage(source)
    result = CliRunner().invoke(main, [command, str(source), str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert hint.startswith("hint: ")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("write", [write_checkpoint, write_pickles, write_flax])
def test_a_base_model_without_prefix_or_head_stays_one(tmp_path, write, shards):
    from transformers import LlamaModel

    base = without_prefix(random_weights(FLAT))
    source = write(tmp_path / "source", FLAT, weights=base, shards=shards, architectures=["LlamaModel"])
    checkpoint = open_checkpoint(source)
    assert list(checkpoint.tensors) == [f"model.{name}" for name in base]
    facts = run(source, tmp_path / "out")
    assert facts["tensors"] == len(base)
    model, info = LlamaModel.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    state = model.state_dict()
    assert set(state) == set(base)
    assert all(torch.equal(state[name], value) for name, value in base.items())
