"""Whatever a person can get wrong: one sentence, a hint, exit code 2, and everything is as it was before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from refusals import refused
from safetensors.torch import load_file, save_file
from talking_checkpoint import files_in, train_tokenizer, write_talking_checkpoint

from llama_export.cli import main

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
Break = Callable[[Path], object]


def edit(file: str, **changes: object) -> Break:
    def apply(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(document | changes))

    return apply


def drop(file: str, key: str) -> Break:
    def apply(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        del document[key]
        (folder / file).write_text(json.dumps(document))

    return apply


def map_tensor(shard: str) -> Break:
    def apply(folder: Path) -> None:
        document = json.loads((folder / INDEX).read_text())
        document["weight_map"][UP] = shard
        (folder / INDEX).write_text(json.dumps(document))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def apply(folder: Path) -> None:
        found = load_file(folder / SINGLE)
        change(found)
        save_file(found, folder / SINGLE)

    return apply


def poison(value: float) -> Break:
    def change(found: dict[str, torch.Tensor]) -> None:
        found[UP][-1, -1] = value

    return tensors(change)


def write(file: str, content: bytes) -> Break:
    return lambda folder: (folder / file).write_bytes(content)


def cut(file: str, nbytes: int) -> Break:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-nbytes])


def remove(file: str) -> Break:
    return lambda folder: (folder / file).unlink()


def unigram(folder: Path) -> None:
    train_tokenizer(folder / "tokenizer.model", model_type="unigram", vocab_size=300)


# What is wrong: which folder, how it is broken, what the sentence says.
CHECKPOINTS: dict[str, tuple[int, Break, tuple[str, ...]]] = {
    "no config": (1, remove("config.json"), ("config.json", "is missing")),
    "no weights": (1, remove(SINGLE), ("holds none of", SINGLE)),
    "weights truncated": (1, cut(SINGLE, 10), (SINGLE, "is truncated")),
    "shard missing": (2, remove(SECOND), (SECOND, "is missing")),
    "shard truncated": (2, cut(SECOND, 10), (SECOND, "is truncated")),
    "shard not in the index": (2, drop(INDEX, "weight_map"), (INDEX, "weight_map is missing")),
    "index leaves the folder": (2, map_tensor("../x.safetensors"), (UP, "must be a file inside the folder")),
    "index is absolute": (2, map_tensor("/etc/passwd"), (UP, "must be a file inside the folder")),
    "missing tensor": (1, tensors(lambda t: t.pop(UP)), (SINGLE, UP, "is missing")),
    "extra tensor": (1, tensors(lambda t: t.update(extra=torch.ones(3))), (SINGLE, "extra", "not explained")),
    "wrong shape": (
        1,
        tensors(lambda t: t.update({UP: torch.ones(44, 41)})),
        (SINGLE, UP, "[44, 41]", "[44, 42]"),
    ),
    "NaN": (1, poison(float("nan")), (SINGLE, UP, "NaN")),
    "Inf": (1, poison(float("inf")), (SINGLE, UP, "infinite")),
    "config is not JSON": (1, write("config.json", b"{"), ("config.json", "not JSON")),
    "config is a list": (1, write("config.json", b"[]"), ("config.json", "must be a JSON object")),
    "field missing": (1, drop("config.json", "hidden_size"), ("hidden_size", "missing")),
    "field negative": (1, edit("config.json", num_hidden_layers=-2), ("num_hidden_layers", "-2")),
    "field zero": (1, edit("config.json", num_attention_heads=0), ("num_attention_heads", "0")),
    "field of the wrong type": (1, edit("config.json", vocab_size="many"), ("vocab_size", '"many"')),
    "unknown rope": (
        1,
        edit("config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        ("spiral",),
    ),
    "another family": (1, edit("config.json", model_type="mamba"), ("model_type", "mamba")),
    "tokenizer.model is garbage": (1, write("tokenizer.model", b"garbage"), ("tokenizer.model",)),
    "tokenizer.model is empty": (1, write("tokenizer.model", b""), ("tokenizer.model", "empty")),
    "tokenizer.model truncated": (1, cut("tokenizer.model", 100), ("tokenizer.model",)),
    "tokenizer.json cannot say it": (1, unigram, ("tokenizer.model", "is not a BPE model")),
    "settings are not JSON": (1, write("tokenizer_config.json", b"{"), ("tokenizer_config.json", "not JSON")),
    "template is not UTF-8": (1, write("chat_template.jinja", b"\xff"), ("chat_template.jinja", "UTF-8")),
    "special token outside": (
        1,
        edit("generation_config.json", eos_token_id=[2, 999]),
        ("generation_config.json", "eos_token_id is [2, 999]", "0 to 322"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shards", "spoil", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_bad_checkpoint_is_refused(quick_graphs, tmp_path, shards, spoil, words):
    checkpoint = write_talking_checkpoint(tmp_path / "fox", shards=shards)
    spoil(checkpoint)
    before = files_in(checkpoint)
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), str(tmp_path / "artifacts/out")])
    refused(result, *words)
    assert files_in(checkpoint) == before
    assert [path.name for path in tmp_path.iterdir()] == ["fox"]


TOKENIZER_JSON = {
    "not JSON": b"{",
    "of nothing": b"{}",
    "not UTF-8": b"\xff\xfe",
    "empty": b"",
}


@pytest.mark.parametrize("content", TOKENIZER_JSON.values(), ids=TOKENIZER_JSON)
def test_a_bad_tokenizer_json_is_refused(quick_graphs, tmp_path, content):
    checkpoint = write_talking_checkpoint(tmp_path / "fox")
    (checkpoint / "tokenizer.model").unlink()
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "tokenizer.json").write_bytes(content)
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), str(tmp_path / "out")])
    refused(result, "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["fox"]


def test_a_tokenizer_is_refused_before_any_work(monkeypatch, tmp_path):
    def work(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("llama_export.pipeline.build_graph", work)
    monkeypatch.setattr("llama_export.pipeline.write_weights", work)
    checkpoint = write_talking_checkpoint(tmp_path / "fox")
    (checkpoint / "tokenizer.model").write_bytes(b"garbage")
    refused(CliRunner().invoke(main, ["onnx", str(checkpoint), str(tmp_path / "out")]), "tokenizer.model")


def occupied_by_file(output: Path) -> None:
    output.write_text("mine")


def occupied_by_folder(output: Path) -> None:
    output.mkdir()
    (output / "thesis.tex").write_text("mine")


def occupied_by_bundle(output: Path) -> None:
    output.mkdir()
    (output / "manifest.json").write_text('{"format": "llama-export", "weights": "link"}')


OUTPUTS = {
    "file": (occupied_by_file, [], "is a file"),
    "file, forced": (occupied_by_file, ["--force"], "is a file"),
    "folder": (occupied_by_folder, [], "is not a bundle"),
    "folder, forced": (occupied_by_folder, ["--force"], "is not a bundle"),
    "bundle": (occupied_by_bundle, [], "is a bundle already"),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["export", "dry run"])
@pytest.mark.parametrize(("occupy", "options", "words"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_bad_output_is_refused(talking, tmp_path, occupy, options, words, dry):
    output = tmp_path / "out"
    occupy(output)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(main, ["onnx", str(talking), str(output), *options, *dry])
    refused(result, str(output), words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "words"), [("", "is the checkpoint"), ("..", "contains the"), ("below/out", "is inside the")]
)
def test_output_and_checkpoint_are_kept_apart(talking, output, words):
    before = files_in(talking)
    result = CliRunner().invoke(main, ["onnx", str(talking), str(talking / output), "--force"])
    refused(result, words)
    assert files_in(talking) == before


def test_options_that_contradict_each_other(talking, tmp_path):
    result = CliRunner().invoke(main, ["onnx", str(talking), str(tmp_path / "o"), "--precision", "float32"])
    refused(result, "--weights link keeps the checkpoint's bfloat16", "float32")
    assert "--weights copy" in result.stderr


QUANTIZED = {
    "linked": (["--precision", "int4", "--weights", "link"], ("--weights link keeps", "--precision int4")),
    "beside": (["--precision", "int8", "--weights", "beside"], ("--weights beside keeps", "int8")),
    "block size of floats": (
        ["--block-size", "32"],
        ("block_size is for quantized matrices", "no precision"),
    ),
    "asymmetric floats": (["--asymmetric", "--precision", "float32"], ("asymmetric", "precision is float32")),
    "an int8 cache elsewhere": (
        ["--cache", "int8", "--attention", "eager"],
        ("int8 cache needs the operator of the flash path", "attention is eager"),
    ),
    "no such module": (
        ["--precision", "int4", "--keep", "lm_haed=int8"],
        ("'lm_haed'", "no matrix", "matches"),
    ),
    "a norm": (["--precision", "int4", "--keep", "model.norm=int8"], ("'model.norm'", "no matrix")),
    "no precision": (["--precision", "int4", "--keep", "lm_head"], ("'lm_head'", "pattern=precision")),
    "no such precision": (
        ["--precision", "int4", "--keep", "lm_head=int2"],
        ("'lm_head=int2'", "int4, int8"),
    ),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["export", "dry run"])
@pytest.mark.parametrize(("options", "words"), QUANTIZED.values(), ids=QUANTIZED)
def test_quantization_that_cannot_be(talking, tmp_path, options, words, dry):
    result = CliRunner().invoke(main, ["onnx", str(talking), str(tmp_path / "o"), *options, *dry])
    refused(result, *words)
    assert list(tmp_path.iterdir()) == []


CALIBRATIONS = {
    "missing": (None, "cannot be read"),
    "empty": (b"", "holds 0 tokens, calibration needs at least one window"),
    "short": (b"a fox", "calibration needs at least one window"),
    "not UTF-8": (b"\xff\xfe fox", "not UTF-8"),
}


@pytest.mark.parametrize(("content", "words"), CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_a_text_that_cannot_calibrate(talking, tmp_path, content, words):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    options = ["--precision", "int4", "--calibration", str(file), "--dry-run"]
    refused(CliRunner().invoke(main, ["onnx", str(talking), str(tmp_path / "o"), *options]), str(file), words)


@pytest.mark.parametrize(
    "options", [["--quantizer", "gptq"], ["--quantizer", "search", "--calibration", "x"]]
)
def test_gptq_and_its_text_go_together(talking, tmp_path, options):
    result = CliRunner().invoke(
        main, ["onnx", str(talking), str(tmp_path / "o"), "--precision", "int4", *options]
    )
    refused(result, "quantizer gptq and a text to calibrate with go together")


@pytest.mark.parametrize("path", ["sdpa", "flash"])
def test_attentions_are_refused_where_nothing_computes_them(talking, tmp_path, path):
    options = ["--attention", path, "--attentions"]
    result = CliRunner().invoke(main, ["onnx", str(talking), str(tmp_path / "o"), *options])
    refused(result, "attentions are computed on the eager path alone", f"attention is {path}")
    assert "--attention eager" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--hidden-states", "last"], ["--inputs-embeds"]])
def test_extras_are_a_language_models(talking, tmp_path, option):
    options = ["--task", "feature-extraction", *option]
    result = CliRunner().invoke(main, ["onnx", str(talking), str(tmp_path / "o"), *options])
    refused(result, "are for text-generation, the task is feature-extraction")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_float16_cannot_hold(quick_graphs, tmp_path):
    checkpoint = write_talking_checkpoint(tmp_path / "fox")
    poison(1e6)(checkpoint)
    options = ["--weights", "copy", "--precision", "float16"]
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), str(tmp_path / "out"), *options])
    refused(result, UP, "float16 ends at 65504")
    assert "bfloat16" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fox"]


RECIPES = {
    "unknown key": ('atention = "sdpa"', ("unknown key atention", "attention")),
    "bad value": ('attention = "ring"', ("attention is 'ring'", "eager, sdpa, flash")),
    "bad type": ("attention = 3", ("attention is 3", "eager, sdpa, flash")),
    "a list": ('weights = ["link"]', ("weights is ['link']", "link, copy, beside")),
    "bad precision": ('precision = "int3"', ("precision is 'int3'", "float32")),
    "verify is a number": ("verify = 1", ("verify is 1", "true or false")),
    "bad block size": ('precision = "int4"\nblock_size = 48', ("block size is 48", "32, 64, 128")),
    "no block size": ('precision = "int4"\nblock_size = 0', ("block size is 0", "32, 64, 128")),
    "keep is a table": (
        'precision = "int4"\nkeep = {lm_head = "int8"}',
        ("keep is {'lm_head': 'int8'}", "text"),
    ),
    "bad quantizer": (
        'precision = "int8"\nquantizer = ["best"]',
        ("quantizer is ['best']", "search, nearest"),
    ),
    "asymmetric is a word": (
        'precision = "int8"\nasymmetric = "yes"',
        ("asymmetric is 'yes'", "true or false"),
    ),
    "bad states": ('hidden_states = "first"', ("hidden_states is 'first'", "last, all")),
    "embeds is a word": ('inputs_embeds = "yes"', ("inputs_embeds is 'yes'", "true or false")),
    "not TOML": ("attention: sdpa", ("not TOML",)),
    "a table": ("[attention]", ("attention is {}",)),
}


@pytest.mark.parametrize(("text", "words"), RECIPES.values(), ids=RECIPES)
def test_a_bad_recipe_is_refused(talking, tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    result = CliRunner().invoke(main, ["onnx", str(talking), str(tmp_path / "out"), "--recipe", str(file)])
    refused(result, str(file), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_recipe_that_cannot_be_read(talking, tmp_path, content):
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    refused(CliRunner().invoke(main, ["onnx", str(talking), "--recipe", str(file)]), str(file))


COMMANDS = {
    "onnx": ["onnx", "{}"],
    "inspect": ["inspect", "{}"],
    "run": ["run", "{}", "hello"],
    "selftest": ["selftest", "{}"],
}


@pytest.mark.parametrize("kind", ["missing", "file", "empty folder"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_folder_that_is_not_there(tmp_path, command, kind):
    folder = tmp_path / "model"
    if kind == "file":
        folder.write_text("x")
    elif kind == "empty folder":
        folder.mkdir()
    arguments = [argument.format(folder) for argument in command]
    refused(CliRunner().invoke(main, arguments), str(folder))


@pytest.fixture
def bundle(talking_bundle, tmp_path):
    """A byte copy to tamper with: a linked file would take the checkpoint's along."""
    return shutil.copytree(talking_bundle, tmp_path / "bundle")


def flip(file: str) -> Break:
    def apply(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(content)

    return apply


# What the structure shows: every command refuses it.
BROKEN: dict[str, tuple[Break, tuple[str, ...]]] = {
    "data truncated": (cut("onnx/model.onnx_data", 1), ("onnx/model.onnx_data", "bytes, the manifest lists")),
    "data missing": (remove("onnx/model.onnx_data"), ("onnx/model.onnx_data", "missing")),
    "graph missing": (remove("onnx/model.onnx"), ("onnx/model.onnx", "missing")),
    "licence missing": (remove("LICENSE"), ("LICENSE", "missing")),
    "no manifest": (remove("manifest.json"), ("not a bundle",)),
    "manifest is not JSON": (write("manifest.json", b"{"), ("manifest.json",)),
    "manifest of somebody else": (write("manifest.json", b"{}"), ("not a bundle of ours",)),
    "newer version": (edit("manifest.json", version=2), ("version 2 is newer",)),
    "a file outside": (
        edit("manifest.json", files=[{"path": "../x", "size_bytes": 1, "sha256": "0" * 64}]),
        ("../x",),
    ),
    "field missing": (drop("manifest.json", "cache"), ("manifest.json", "cache")),
    "token outside": (
        edit("manifest.json", tokens={"bos_token_id": 1, "eos_token_ids": [999], "pad_token_id": None}),
        ("999",),
    ),
}


@pytest.mark.parametrize("command", ["run", "selftest", "verify"])
@pytest.mark.parametrize(("spoil", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_bundle_is_refused(talking, bundle, command, spoil, words):
    spoil(bundle)
    options = {"run": ["hello"], "selftest": [], "verify": ["--checkpoint", str(talking)]}[command]
    result = CliRunner().invoke(main, [command, str(bundle), *options])
    refused(result, *words, hint="hint:" in result.stderr)


# What only the hashes show.
TAMPERED = ["onnx/model.onnx_data", "onnx/model.onnx", "tokenizer.json", "LICENSE", "config.json"]


@pytest.mark.parametrize("file", TAMPERED)
def test_a_tampered_bundle_is_refused_by_hash(talking, bundle, file):
    flip(file)(bundle)
    result = CliRunner().invoke(main, ["verify", str(bundle), "--checkpoint", str(talking)])
    refused(result, file, "SHA-256")


def test_verify_refuses_another_checkpoint(talking_bundle, tmp_path):
    other = write_talking_checkpoint(tmp_path / "other")
    poison(0.25)(other)
    result = CliRunner().invoke(main, ["verify", str(talking_bundle), "--checkpoint", str(other)])
    refused(result, "model.safetensors", "is not a file that", str(talking_bundle))


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), (b"\xff", "not UTF-8"), (b"\n \n", "holds no prompt")]
)
def test_bad_prompt_files(talking, talking_bundle, tmp_path, content, words):
    file = tmp_path / "prompts"
    if content is not None:
        file.write_bytes(content)
    arguments = ["verify", str(talking_bundle), "--checkpoint", str(talking), "--prompts", str(file)]
    refused(CliRunner().invoke(main, arguments), str(file), words)


RUN = {
    "too long": (["fox " * 200], ("positions",)),
    "too many new tokens": (["fox", "-n", "160"], ("positions",)),
    "no token wanted": (["fox", "-n", "0"], ("max_new_tokens is 0",)),
    "negative temperature": (["fox", "--temperature", "-1"], ("temperature is -1.0",)),
    "temperature is no number": (["fox", "--temperature", "nan"], ("temperature is nan",)),
    "top_k": (["fox", "--top-k", "-1"], ("top_k is -1",)),
    "top_p": (["fox", "--top-p", "1.5"], ("top_p is 1.5",)),
    "seed": (["fox", "--seed", "-1"], ("seed is -1",)),
    "stop": (["fox", "--stop", ""], ("stop is",)),
}


@pytest.mark.parametrize(("arguments", "words"), RUN.values(), ids=RUN)
def test_run_refuses_before_any_work(talking_bundle, monkeypatch, arguments, words):
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("llama_runtime.session.Session.prefill", work)
    result = CliRunner().invoke(main, ["run", str(talking_bundle), *arguments])
    refused(result, *words, hint="hint:" in result.stderr)


def test_stdin_that_is_not_utf8(talking_bundle):
    result = CliRunner().invoke(main, ["run", str(talking_bundle)], input=b"caf\xe9")
    refused(result, "stdin: byte 3 is not UTF-8")
