"""--weights beside: the checkpoint's folder becomes the bundle, and every byte in it stays where it is."""

from __future__ import annotations

import json
import shutil

import pytest
from talking_checkpoint import files_in
from tiny_checkpoints import link_like_the_hub

import llama_export
import llama_runtime
from llama_export.bundle import beside as room
from llama_export.errors import BundleError, OptionError
from llama_export.recipe import Recipe

BESIDE = Recipe(weights="beside")
UNVERIFIED = Recipe(weights="beside", verify=False)
OURS = [
    *("manifest.json", "onnx/model.onnx", "onnx/tokenizer.json", "parity.html", "parity.json"),
    "tokenizer.bin",
]
pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture
def checkpoint(talking, tmp_path):
    folder = shutil.copytree(talking, tmp_path / "fox")
    (folder / "LICENSE").chmod(0o400)
    (folder / "model.safetensors").chmod(0o640)
    return folder


def test_the_folder_becomes_the_bundle(checkpoint):
    before = files_in(checkpoint)
    exported = llama_export.export(checkpoint, recipe=BESIDE)
    assert exported.output == checkpoint
    after = files_in(checkpoint)
    assert sorted(after.keys() - before.keys()) == OURS
    assert {name: after[name] for name in before} == before
    assert (checkpoint / "model.safetensors").stat().st_nlink == 1
    assert not [path for path in checkpoint.iterdir() if path.name.startswith(".")]


def test_our_runtime_opens_it(checkpoint):
    llama_export.export(checkpoint, recipe=BESIDE)
    assert llama_runtime.selftest(checkpoint).ok
    assert llama_export.verify(checkpoint, checkpoint).passed
    assert llama_export.inspect(checkpoint)["weights"] == "beside"


def test_it_can_be_moved_as_a_whole(checkpoint, tmp_path):
    llama_export.export(checkpoint, recipe=BESIDE)
    moved = checkpoint.rename(tmp_path / "elsewhere")
    assert llama_runtime.selftest(moved).ok


def test_the_output_may_be_named_if_it_is_the_checkpoint(checkpoint):
    (checkpoint.parent / "link").symlink_to(checkpoint)
    llama_export.export(checkpoint, checkpoint.parent / "link", recipe=UNVERIFIED)


def test_another_output_is_refused(checkpoint, tmp_path):
    before = files_in(checkpoint)
    with pytest.raises(OptionError, match="keeps everything in"):
        llama_export.export(checkpoint, tmp_path / "out", recipe=BESIDE)
    assert files_in(checkpoint) == before
    assert not (tmp_path / "out").exists()


def test_force_replaces_our_files_alone(checkpoint):
    llama_export.export(checkpoint, recipe=UNVERIFIED)
    before = files_in(checkpoint)
    with pytest.raises(BundleError, match="is a bundle already") as caught:
        llama_export.export(checkpoint, recipe=UNVERIFIED)
    assert "--force" in caught.value.hint
    assert files_in(checkpoint) == before
    llama_export.export(checkpoint, recipe=BESIDE, force=True)
    after = files_in(checkpoint)
    assert after["manifest.json"] != before["manifest.json"]
    assert {n: f for n, f in after.items() if n not in OURS} == {
        n: f for n, f in before.items() if n not in OURS
    }


@pytest.mark.parametrize("name", ["onnx/model.onnx", "parity.json", "manifest.json"])
@pytest.mark.parametrize("force", [False, True])
def test_somebody_elses_file_is_not_replaced(checkpoint, name, force):
    (checkpoint / "onnx").mkdir()
    (checkpoint / name).write_text('{"by": "optimum"}')
    before = files_in(checkpoint)
    with pytest.raises(BundleError, match="exists and is not ours") as caught:
        llama_export.export(checkpoint, recipe=BESIDE, force=force)
    assert caught.value.message.startswith(f"{checkpoint / name}: ")
    assert files_in(checkpoint) == before


def test_other_files_in_onnx_stay(checkpoint):
    (checkpoint / "onnx").mkdir()
    (checkpoint / "onnx/model_q4.onnx").write_text("optimum's")
    llama_export.export(checkpoint, recipe=UNVERIFIED)
    assert (checkpoint / "onnx/model_q4.onnx").read_text() == "optimum's"


def test_a_hub_snapshot_is_refused(checkpoint, tmp_path):
    """Its weights stand in blobs/, outside the folder, where ONNX Runtime would not look."""
    snapshot = link_like_the_hub(checkpoint, tmp_path / "hub")
    before = files_in(tmp_path / "hub")
    with pytest.raises(OptionError, match="needs it in") as caught:
        llama_export.export(snapshot, recipe=BESIDE)
    assert "--weights link" in caught.value.hint
    assert files_in(tmp_path / "hub") == before


def test_a_precision_is_refused(checkpoint):
    with pytest.raises(OptionError, match="keeps the checkpoint's bfloat16"):
        llama_export.export(checkpoint, recipe=Recipe(weights="beside", precision="float32"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_checkpoint_as_it_was(checkpoint, monkeypatch, error):
    before = files_in(checkpoint)

    def fail(path):
        if path.name == "manifest.json":
            raise error

    monkeypatch.setattr(room, "fsync", fail)
    with pytest.raises((BundleError, KeyboardInterrupt)):
        llama_export.export(checkpoint, recipe=UNVERIFIED)
    assert files_in(checkpoint) == before
    assert not (checkpoint / "onnx").exists()


def test_a_link_export_never_replaces_it(checkpoint, talking):
    """With --force the checkpoint itself would go."""
    llama_export.export(checkpoint, recipe=UNVERIFIED)
    before = files_in(checkpoint)
    with pytest.raises(BundleError, match="would delete the checkpoint"):
        llama_export.export(talking, checkpoint, force=True)
    assert files_in(checkpoint) == before


def test_the_manifest_lists_the_checkpoints_own_files(checkpoint):
    llama_export.export(checkpoint, recipe=UNVERIFIED)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["model"]["external_data_folder"] == "."
    assert {entry["path"] for entry in manifest["files"]} >= {"model.safetensors", "LICENSE", "config.json"}
