"""manifest.json: what is written is read back, and every wrong field is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from toy_bundle import V, known_answer, toy_weights, write_manifest

from llama_runtime import manifest as manifest_module
from llama_runtime.errors import ManifestError
from llama_runtime.manifest import ChatTemplates, TokenizerFile, check_hashes, check_structure, read_manifest

SCHEMA = json.loads((Path(manifest_module.__file__).parent / "manifest.schema.json").read_text())


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(b"graph")
    (tmp_path / "tokenizer.model").write_bytes(b"vocabulary")
    return tmp_path


@pytest.fixture
def written(bundle):
    return write_manifest(
        bundle,
        "flash",
        tokenizer=TokenizerFile("sentencepiece", "tokenizer.model", True, False),
        chat_template=ChatTemplates({"default": "{{ messages }}"}, {"bos_token": "<s>"}),
        known_answers=(known_answer(toy_weights(), [1, 5, 9], prompt="héllo", near_ties=(2,)),),
        parity={"logits": 1e-6, "perplexity": None},
    )


def _rewrite(bundle: Path, change) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_what_is_written_is_read_back(bundle, written):
    read = read_manifest(bundle)
    assert read == written
    assert read.to_json() == (bundle / "manifest.json").read_text(encoding="utf-8")


def test_json_is_stable_and_readable(written):
    text = written.to_json()
    assert text.startswith('{\n  "format": "llama-export",\n  "version": 1,\n  "created_with"')
    assert text.endswith("}\n") and "héllo" in text


def test_the_schema_accepts_what_we_write(written):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(written.to_json()), SCHEMA)


def test_unknown_keys_are_ignored_by_reader_and_schema(bundle, written):
    def add(document):
        document["later"] = document["model"]["later"] = document["files"][0]["later"] = [1]

    _rewrite(bundle, add)
    assert read_manifest(bundle) == written
    jsonschema.validate(json.loads((bundle / "manifest.json").read_text()), SCHEMA)


def _set(*path):
    """A change: ``_set("model", "opset", "23")`` puts "23" at model.opset."""
    *keys, last, value = path

    def change(document):
        for key in keys:
            document = document[key]
        document[last] = value

    return change


def _delete(*path):
    *keys, last = path

    def change(document):
        for key in keys:
            document = document[key]
        del document[last]

    return change


# Where each field is wrong: what the message must name, and the change.
REFUSED_BY_BOTH = {
    "cache.head_dim is missing": _delete("cache", "head_dim"),
    "parity is missing": _delete("parity"),
    "embed_tokens is missing": _delete("embed_tokens"),
    "soft_prompt is missing": _delete("soft_prompt"),
    "soft_prompt.positions is 0": _set("soft_prompt", {"path": "onnx/model.onnx", "positions": 0}),
    'model.opset is "23", needs an integer': _set("model", "opset", "23"),
    "model.opset is true, needs an integer": _set("model", "opset", True),
    "model.opset is 0, needs at least 1": _set("model", "opset", 0),
    "cache.in_place is 1, needs true or false": _set("cache", "in_place", 1),
    'weights is "symlink", needs one of "link", "copy", "beside"': _set("weights", "symlink"),
    "inputs is {}, needs a list": _set("inputs", {}),
    "inputs[0].shape[1] is null": _set("inputs", 0, "shape", 1, None),
    "tokens.eos_token_ids[0] is 2.5, needs an integer": _set("tokens", "eos_token_ids", [2.5]),
    "tokens.bos_token_id is": _set("tokens", "bos_token_id", "1"),
    "tokenizer is [], needs an object": _set("tokenizer", []),
    'created_with.onnx is 1, needs a string': _set("created_with", "onnx", 1),
    "files[0].size_bytes is -1": _set("files", 0, "size_bytes", -1),
    "files[0].sha256 is": _set("files", 0, "sha256", "0" * 63),
    "cache.key_name is 'past', needs a name with {i}": _set("cache", "key_name", "past"),
    "known_answers[0].tolerance is -1": _set("known_answers", 0, "tolerance", -1),
    "version is 0": _set("version", 0),
    "version is true": _set("version", True),
    "not a bundle of ours": _set("format", "safetensors"),
}  # fmt: skip

REFUSED_BY_READER = {
    f"id {V}, limits.vocab_size is {V}": _set("tokens", "eos_token_ids", [V]),
    "near_ties and probes name position 6, tokens has 6": _set("known_answers", 0, "near_ties", [6]),
    "logits has 1 numbers, token_ids 2": _set("known_answers", 0, "probes", 0, "logits", [0.5]),
    "files lists 'onnx/model.onnx', needs each file once": lambda d: d["files"].append(d["files"][0]),
    "files lists 'manifest.json'": _set("files", 0, "path", "manifest.json"),
    "files does not list 'tokenizer.json'": _set("tokenizer", "path", "tokenizer.json"),
    "embed_tokens is None, an input inputs_embeds": _set("inputs", 0, "name", "inputs_embeds"),
    "embed_tokens is 'onnx/model.onnx'": _set("embed_tokens", "onnx/model.onnx"),
    "files does not list 'onnx/x.onnx'": _set("embed_tokens", "onnx/x.onnx"),
    "files does not list 'x.safetensors'": _set("soft_prompt", {"path": "x.safetensors", "positions": 1}),
    "add_bos needs one": _set("tokens", "bos_token_id", None),
    f"known_answers name id {V}": lambda d: d["known_answers"][0]["tokens"].append(V),
}


@pytest.mark.parametrize("message", REFUSED_BY_BOTH)
def test_a_wrong_field_is_named_and_the_schema_agrees(bundle, written, message):
    _rewrite(bundle, REFUSED_BY_BOTH[message])
    with pytest.raises(ManifestError) as caught:
        read_manifest(bundle)
    assert message in caught.value.message
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads((bundle / "manifest.json").read_text()), SCHEMA)


@pytest.mark.parametrize("message", REFUSED_BY_READER)
def test_fields_that_contradict_each_other_are_refused(bundle, written, message):
    _rewrite(bundle, REFUSED_BY_READER[message])
    with pytest.raises(ManifestError) as caught:
        read_manifest(bundle)
    assert message in caught.value.message


BAD_PATHS = ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "..", "a\\b", "C:/x", "a\x00b", "a/"]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_could_leave_the_folder_is_refused(bundle, written, path):
    for place in (("model", "path"), ("files", 0, "path"), ("source", 0, "path"), ("tokenizer", "path")):
        changed = copy.deepcopy(json.loads(written.to_json()))
        changed["source"] = [{"path": "config.json", "size_bytes": 1, "sha256": "0" * 64}]
        _set(*place, path)(changed)
        (bundle / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ManifestError, match="needs a relative path"):
            read_manifest(bundle)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, SCHEMA)


@pytest.mark.parametrize("path", ["...", "a/..b", ".hidden", "a b/c-1.onnx_data", "é/ü"])
def test_a_harmless_path_is_allowed(written, path):
    manifest_module.check_relative_path("path", path)
    document = json.loads(written.to_json())
    document["files"][0]["path"] = path
    jsonschema.validate(document, SCHEMA)


def test_a_newer_version_is_refused_by_name_before_anything_else(bundle, written):
    (bundle / "manifest.json").write_text('{"format": "llama-export", "version": 2}')
    with pytest.raises(ManifestError, match="version 2 is newer than this runtime, which reads 1") as caught:
        read_manifest(bundle)
    assert "upgrade" in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"format": "llama-export", "version": 1', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"format": "llama-export", "version": NaN}', "NaN is not JSON"),
        ('{"format": "llama-export", "version": 1, "version": 1}', "'version' is given twice"),
        ('{"format": "llama-export", "version": ' + "9" * 5000 + "}", "not JSON"),
        ("[]", "not a bundle of ours"),
        ("null", "not a bundle of ours"),
    ],
)
def test_what_is_not_json_is_one_sentence(bundle, text, message):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(bundle)
    assert message in caught.value.message and "\n" not in caught.value.message


def test_a_number_beyond_double_is_refused(bundle, written):
    text = written.to_json().replace('"tolerance": 0.001', '"tolerance": 1e999')
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match="tolerance is Infinity, needs a number"):
        read_manifest(bundle)


def test_no_manifest_not_utf8_and_too_large(bundle, monkeypatch):
    with pytest.raises(ManifestError, match=r"not a bundle, manifest\.json cannot be read"):
        read_manifest(bundle)
    with pytest.raises(ManifestError, match="not a bundle"):
        read_manifest(bundle / "nowhere")
    (bundle / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(bundle)
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 1)
    with pytest.raises(ManifestError, match="2 bytes, at most 1"):
        read_manifest(bundle)


def test_structure_and_hashes(bundle, written):
    seen = []
    check_hashes(bundle, written, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (15, 15)
    (bundle / "onnx/model.onnx").write_bytes(b"grapH")
    check_structure(bundle, written)
    with pytest.raises(ManifestError, match=r"onnx/model.onnx: SHA-256 is"):
        check_hashes(bundle, written)
    (bundle / "onnx/model.onnx").write_bytes(b"grap")
    with pytest.raises(ManifestError, match="4 bytes, the manifest lists 5"):
        check_structure(bundle, written)
    (bundle / "onnx/model.onnx").unlink()
    with pytest.raises(ManifestError, match="listed in the manifest, but missing"):
        check_hashes(bundle, written)
