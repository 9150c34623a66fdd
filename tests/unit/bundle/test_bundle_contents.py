"""What stands in a published bundle, and that other runtimes and a manifest reader find it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import onnx_ir as ir
import pytest
from talking_checkpoint import TEMPLATE, files_in, write_talking_checkpoint
from tiny_checkpoints import CONFIGS, link_like_the_hub, write_checkpoint
from tokenizers import Tokenizer

import llama_export
import llama_runtime
from llama_export import pipeline
from llama_export.bundle.companions import genai_config, token_ids
from llama_export.checkpoint import open_checkpoint
from llama_export.errors import BundleError, CheckpointError, ParityError
from llama_export.recipe import Recipe
from llama_export.weights import plan_weights
from llama_runtime.manifest import ChatRoles, ChatTemplates

UNVERIFIED = Recipe(verify=False)
pytestmark = pytest.mark.usefixtures("quick_graphs")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps((read_json(path) if path.exists() else {}) | changes), encoding="utf-8")


@pytest.fixture
def checkpoint(talking, tmp_path) -> Path:
    """A copy to change."""
    return shutil.copytree(talking, tmp_path / "fox")


def test_layout(talking_bundle):
    assert sorted(files_in(talking_bundle)) == [
        "LICENSE",
        "USE_POLICY.md",
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "manifest.json",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "parity.html",
        "parity.json",
        "tokenizer.bin",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


def test_the_report_is_the_manifests(talking_bundle):
    report, manifest = read_json(talking_bundle / "parity.json"), read_json(talking_bundle / "manifest.json")
    assert report["plots"]["layers"]
    assert {key: report[key] for key in manifest["parity"]} == manifest["parity"]
    assert "<title>" in (talking_bundle / "parity.html").read_text()


def test_linked_weights_share_the_checkpoints_bytes(talking, talking_bundle):
    data, source = talking_bundle / "onnx/model.onnx_data", talking / "model.safetensors"
    assert data.read_bytes() == source.read_bytes()
    assert not data.is_symlink()
    before = source.stat()
    assert before.st_nlink in (1, 2)  # 1 on a file system with reflinks


def test_companions_travel_unchanged(talking, talking_bundle):
    for name in ("LICENSE", "USE_POLICY.md", "tokenizer.model"):
        assert (talking_bundle / name).read_bytes() == (talking / name).read_bytes()


def test_config_is_the_checkpoints_own_and_names_the_data_file(talking, talking_bundle):
    written = read_json(talking_bundle / "config.json")
    assert written.pop("transformers.js_config") == {"use_external_data_format": {"model.onnx": 1}}
    assert written == read_json(talking / "config.json")


def test_tokenizer_json_is_made_from_the_sentencepiece_model(talking_bundle):
    library = Tokenizer.from_file(str(talking_bundle / "tokenizer.json"))
    ours = llama_runtime.load(talking_bundle).tokenizer
    assert library.encode("the small red fox").ids == ours.encode("the small red fox")


def test_an_authors_tokenizer_json_is_kept(checkpoint, talking_bundle, tmp_path):
    text = (talking_bundle / "tokenizer.json").read_text() + " "
    (checkpoint / "tokenizer.json").write_text(text)
    output = llama_export.export(checkpoint, tmp_path / "out", recipe=UNVERIFIED).output
    assert (output / "tokenizer.json").read_text() == text


def test_manifest_is_what_its_schema_says(talking_bundle):
    schema = json.loads(files("llama_runtime").joinpath("manifest.schema.json").read_text())
    jsonschema.validate(read_json(talking_bundle / "manifest.json"), schema)


def test_manifest_lists_every_file_with_its_hash(talking, talking_bundle):
    manifest = llama_runtime.read_manifest(talking_bundle)
    listed = {entry.path: (entry.size_bytes, entry.sha256) for entry in manifest.files}
    found = {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, (content, *_) in files_in(talking_bundle).items()
    }
    del found["manifest.json"]
    assert listed == found
    source = {entry.path: entry.sha256 for entry in manifest.source}
    for name in ("config.json", "model.safetensors"):
        assert source[name] == hashlib.sha256((talking / name).read_bytes()).hexdigest()


def test_manifest_says_what_was_chosen_and_proven(talking_bundle):
    manifest = llama_runtime.read_manifest(talking_bundle)
    assert (manifest.attention, manifest.weights, manifest.precision) == ("flash", "link", "bfloat16")
    assert manifest.parity is not None
    assert manifest.parity["passed"] is True
    assert [answer.prompt is not None for answer in manifest.known_answers] == [True, True]
    names, nothing = {"bos_token": "<s>", "eos_token": "</s>"}, ()
    roles = ChatRoles(
        {"": {"user": nothing, "system": nothing}, "system": {"user": nothing}}
        | {"user": {"assistant": nothing}, "assistant": {"user": nothing}},
        dict.fromkeys(("assistant", "system", "user"), False),
        nothing,
    )
    assert manifest.chat_template == ChatTemplates({"default": TEMPLATE}, names, roles)
    assert manifest.tokenizer is not None
    assert (manifest.tokenizer.kind, manifest.tokenizer.add_bos) == ("sentencepiece", True)
    # generation_config.json's ids come before config.json's.
    assert manifest.tokens.eos_token_ids == (2, 7)


def test_genai_config_speaks_of_the_same_graph(talking_bundle):
    model = read_json(talking_bundle / "genai_config.json")["model"]
    decoder, manifest = model["decoder"], llama_runtime.read_manifest(talking_bundle)
    assert (talking_bundle / decoder["filename"]).is_file()
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    named = [inputs[key] for key in ("input_ids", "attention_mask", "position_ids")]
    past = ("past_key_names", "past_value_names")
    layers = range(manifest.cache.num_hidden_layers)
    named += [inputs[key].replace("%d", str(i)) for i in layers for key in past]
    assert sorted(named) == sorted(spec.name for spec in manifest.inputs)
    present = ("present_key_names", "present_value_names")
    named = ["logits"] + [outputs[key].replace("%d", str(i)) for i in layers for key in present]
    assert sorted(named) == sorted(spec.name for spec in manifest.outputs)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 7], 2)


@pytest.mark.parametrize("attention", ["flash", "sdpa", "eager"])
def test_genai_shares_one_cache_buffer_on_the_flash_path_only(talking, attention):
    source = open_checkpoint(talking)
    search = genai_config(source, plan_weights(source, "link", None), attention)["search"]
    assert search["past_present_share_buffer"] is (attention == "flash")


def test_shards_become_numbered_data_files(tmp_path):
    source = write_talking_checkpoint(tmp_path / "fox", shards=3)
    output = llama_export.export(source, tmp_path / "out").output
    shards = sorted(source.glob("*.safetensors"))
    data = [output / "onnx" / f"model.onnx_data{suffix}" for suffix in ("", "_1", "_2")]
    assert sorted((output / "onnx").iterdir()) == [output / "onnx/model.onnx", *data]
    assert [path.read_bytes() for path in data] == [path.read_bytes() for path in shards]
    settings = read_json(output / "config.json")["transformers.js_config"]
    assert settings == {"use_external_data_format": {"model.onnx": 3}}


@pytest.mark.parametrize(
    ("precision", "graph"),
    [("float32", "model.onnx"), ("bfloat16", "model.onnx"), ("float16", "model_fp16.onnx")],
)
def test_files_are_named_by_precision(checkpoint, tmp_path, precision, graph):
    recipe = Recipe(weights="copy", precision=precision, verify=False)
    output = llama_export.export(checkpoint, tmp_path / "out", recipe=recipe).output
    assert sorted(path.name for path in (output / "onnx").iterdir()) == [graph, f"{graph}_data"]
    settings = read_json(output / "config.json")["transformers.js_config"]
    assert settings == {"use_external_data_format": {graph: 1}}
    assert read_json(output / "genai_config.json")["model"]["decoder"]["filename"] == f"onnx/{graph}"
    manifest = llama_runtime.read_manifest(output)
    assert (manifest.precision, manifest.model.path) == (precision, f"onnx/{graph}")
    assert llama_runtime.generate(output, "once upon", max_new_tokens=2) is not None


def test_tied_embeddings_and_no_tokenizer(tmp_path):
    source = write_checkpoint(tmp_path / "tied", CONFIGS["mha_tied"])
    output = llama_export.export(source, tmp_path / "out").output
    manifest = llama_runtime.read_manifest(output)
    assert manifest.tokenizer is None
    assert all(answer.prompt is None for answer in manifest.known_answers)
    assert llama_runtime.selftest(output).ok


def test_a_hub_snapshot_is_exported_like_its_files(talking, talking_bundle, tmp_path):
    snapshot = link_like_the_hub(talking, tmp_path / "hub")
    output = llama_export.export(snapshot, tmp_path / "out", recipe=UNVERIFIED).output
    assert not any(path.is_symlink() for path in output.rglob("*"))
    assert files_in(output).keys() == files_in(talking_bundle).keys() - {"parity.html", "parity.json"}


def test_chat_templates_travel(checkpoint, tmp_path):
    (checkpoint / "chat_template.jinja").write_text("{{ messages }} ✓", encoding="utf-8")
    output = llama_export.export(checkpoint, tmp_path / "out", recipe=UNVERIFIED).output
    assert llama_runtime.read_manifest(output).chat_template.sources == {"default": "{{ messages }} ✓"}
    assert (output / "chat_template.jinja").is_file()
    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "chat_template.jinja").unlink()
    output = llama_export.export(checkpoint, tmp_path / "none", recipe=UNVERIFIED).output
    assert llama_runtime.read_manifest(output).chat_template is None


IDS = {
    "generation config wins": ({"eos_token_id": 5}, {"eos_token_id": 3}, {"bos": 1, "eos": [3], "pad": None}),
    "null does not": ({"eos_token_id": 5}, {"eos_token_id": None}, {"bos": 1, "eos": [5], "pad": None}),
    "several": ({"eos_token_id": [5, 6]}, {}, {"bos": 1, "eos": [5, 6], "pad": None}),
    "none": ({"eos_token_id": None, "bos_token_id": None}, {}, {"bos": None, "eos": [], "pad": None}),
    "zero": ({"bos_token_id": 0, "pad_token_id": 0}, {}, {"bos": 0, "eos": [2], "pad": 0}),
    "Llama 1 without padding": ({"pad_token_id": -1}, {}, {"bos": 1, "eos": [2], "pad": None}),
    "Llama 1 with one too many": ({"pad_token_id": 323}, {}, {"bos": 1, "eos": [2], "pad": None}),
}


@pytest.mark.parametrize(("config", "generation", "expected"), IDS.values(), ids=IDS)
def test_special_ids(checkpoint, config, generation, expected):
    edit_json(checkpoint / "config.json", **config)
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    assert token_ids(open_checkpoint(checkpoint)) == expected


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", ["2", 2.5, True, 323, -1, [3, "x"], {}])
def test_wrong_special_ids_are_refused_by_name(checkpoint, file, key, value):
    if key == "pad_token_id" and value in (323, -1):
        value = "none"
    (checkpoint / "generation_config.json").write_text("{}")
    edit_json(checkpoint / file, **{key: value})
    with pytest.raises(CheckpointError) as caught:
        token_ids(open_checkpoint(checkpoint))
    expected = f"{file}: {key} is {json.dumps(value)}, must be a token id from 0 to 322"
    assert caught.value.message == expected


def test_files_are_readable_by_others(checkpoint, tmp_path):
    """Whatever the libraries that write them prefer, and whatever mode the checkpoint's have."""
    for path in checkpoint.iterdir():
        path.chmod(0o600)
    before = os.umask(0o022)
    try:
        recipe = Recipe(weights="copy", precision="float32")
        output = llama_export.export(checkpoint, tmp_path / "out", recipe=recipe).output
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in output.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(modes, "0o644")
    assert {oct(path.stat().st_mode & 0o777) for path in (output, output / "onnx")} == {"0o755"}


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_the_checkpoint_is_untouched(checkpoint, tmp_path, mode):
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        path.chmod((0o600, 0o644, 0o440)[number % 3])
    before = files_in(checkpoint)
    llama_export.export(checkpoint, tmp_path / "out", recipe=Recipe(weights=mode))
    assert files_in(checkpoint) == before


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path):
    """The process may write 64 KiB a file: less than the weights, more than all else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(BundleError, match=r"cannot be read or written \(File too large\)"):
            llama_export.export(checkpoint, tmp_path / "a/out", recipe=Recipe(weights="copy"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["fox"]


def test_an_interrupt_does_not_wait_for_the_weights(checkpoint, tmp_path, monkeypatch):
    """Ctrl-C while a large checkpoint is being read ends the export, not in minutes but now."""
    until = time.monotonic() + 20

    def endless(source, plan, folder, advance):
        while time.monotonic() < until:
            advance(0)
            time.sleep(0.001)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_weights", endless)
    monkeypatch.setattr(pipeline, "build_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llama_export.export(checkpoint, tmp_path / "out")
    assert time.monotonic() < until
    assert [path.name for path in tmp_path.iterdir()] == ["fox"]


def test_genai_config_without_special_tokens(checkpoint):
    """genai refuses null; what the model has not is left out."""
    edit_json(checkpoint / "config.json", bos_token_id=None, eos_token_id=None)
    (checkpoint / "generation_config.json").unlink()
    source = open_checkpoint(checkpoint)
    model = genai_config(source, plan_weights(source, "link", None), "flash")["model"]
    assert not [key for key in model if key.endswith("_token_id")]


def test_a_red_verification_publishes_nothing(checkpoint, tmp_path, monkeypatch):
    """A graph with another epsilon: it loads, runs and speaks, and is wrong."""
    build = pipeline.build_graph

    def wrong(*what):
        model = build(*what)
        for node in model.graph:
            if "epsilon" in node.attributes:
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)
        return model

    monkeypatch.setattr(pipeline, "build_graph", wrong)
    with pytest.raises(ParityError) as caught:
        llama_export.export(checkpoint, tmp_path / "out")
    assert caught.value.message.startswith("attention: measured ")
    assert str(tmp_path / "out.failed") in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox", "out.failed"]
    with pytest.raises(llama_runtime.ManifestError):
        llama_runtime.load(tmp_path / "out")
    # A bundle that was there stays, and the next failure replaces the last.
    monkeypatch.setattr(pipeline, "build_graph", build)
    published = files_in(llama_export.export(checkpoint, tmp_path / "out", recipe=UNVERIFIED).output)
    monkeypatch.setattr(pipeline, "build_graph", wrong)
    with pytest.raises(ParityError):
        llama_export.export(checkpoint, tmp_path / "out", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox", "out", "out.failed"]
    assert files_in(tmp_path / "out") == published
