"""ONNX Runtime's own format, for minimal builds of it: the same tokens, and which operators are needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from cpp_bundles import REPO, edit_manifest

import llama_runtime
from llama_runtime import SamplingOptions
from llama_runtime.manifest import check_structure, read_manifest

SCRIPT = REPO / "runtime/cpp/convert_to_ort.py"


def convert(*words):
    command = [sys.executable, SCRIPT, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("changes", "operator"),
    [
        ({}, "GroupQueryAttention"),
        ({"attention": "sdpa"}, "Attention"),
        ({"precision": "int4"}, "MatMulNBits"),
    ],
    ids=["flash", "sdpa", "int4"],
)
def test_the_same_tokens(open_model, demo_of, tmp_path, changes, operator):
    bundle, output = demo_of(**changes), tmp_path / "made" / "tiny"
    done = convert(bundle, output)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"next      llama-selftest {output}\n"
    graph = output / read_manifest(output).model.path
    assert graph.suffix == ".ort"
    assert operator in graph.with_suffix(".config").read_text()
    check_structure(output, read_manifest(output))
    names = {path.name for path in (output / "onnx").iterdir()}
    assert names == {graph.name, graph.with_suffix(".config").name}
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]

    cpp = open_model(output)
    assert cpp.selftest()[1] == []
    wanted = llama_runtime.load(bundle, threads=1).generate("Once", SamplingOptions(max_new_tokens=40))
    assert cpp.generate("Once", max_new_tokens=40).tokens == wanted.tokens
    assert llama_runtime.load(output, threads=1).generate(
        "Once", SamplingOptions(max_new_tokens=40)
    ).tokens == wanted.tokens  # fmt: skip


def test_bad_input_is_one_sentence(demo_of, tmp_path):
    for words, told in (
        ((tmp_path / "none", tmp_path / "out"), "not a bundle"),
        ((demo_of(), tmp_path), "is there already"),
        ((demo_of(),), "usage: convert_to_ort.py BUNDLE OUTPUT"),
    ):
        done = convert(*words)
        assert done.returncode in (1, 2)
        assert (done.stdout, told in done.stderr) == ("", True)
        assert "Traceback" not in done.stderr


def test_a_graph_that_cannot_be_converted(demo_of, tmp_path):
    folder = shutil.copytree(demo_of(), tmp_path / "tiny")
    edit_manifest(folder, lambda document: document["model"].update(path="manifest.json"))
    done = convert(folder, tmp_path / "out")
    assert (done.returncode, "ONNX Runtime cannot convert it" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    edit_manifest(folder, lambda document: document.update(embed_tokens="x"))
    assert "takes embeddings" in convert(folder, tmp_path / "out").stderr


def test_the_manifest_lists_nothing_that_is_not_there(demo_of, tmp_path):
    convert(demo_of(), tmp_path / "out")
    listed = {entry["path"] for entry in json.loads((tmp_path / "out/manifest.json").read_text())["files"]}
    assert listed == {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
