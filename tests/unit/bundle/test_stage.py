"""Stage: a folder that becomes the bundle in one step, or leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_export.bundle.stage import Stage, check_target
from llama_export.errors import BundleError

# flock knows processes by their open files, so a second process is needed to be somebody else.
STAGE_AND_WAIT = """
import sys
from pathlib import Path
from llama_export.bundle.stage import Stage
stage = Stage(Path(sys.argv[1]), 0)
print(stage.folder, flush=True)
sys.stdin.read()
"""


def make_bundle(folder: Path, weights: str = "link", note: str = "old") -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"format": "llama-export", "weights": weights}))
    (folder / "note").write_text(note)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_publishes_by_rename(tmp_path):
    target = tmp_path / "out"
    with Stage(target, 0) as stage:
        (stage.folder / "file").write_text("new")
        inode = (stage.folder / "file").stat().st_ino
        assert stage.folder.parent == tmp_path
        assert not target.exists()
        stage.publish()
    assert names(tmp_path) == ["out"]
    assert (target / "file").stat().st_ino == inode


def test_makes_the_parents_of_the_target(tmp_path):
    with Stage(tmp_path / "a/b/out", 0) as stage:
        stage.publish()
    assert names(tmp_path / "a/b") == ["out"]


def test_replaces_a_bundle_as_a_whole(tmp_path):
    target = make_bundle(tmp_path / "out")
    with Stage(target, 0) as stage:
        (stage.folder / "manifest.json").write_text("{}")
        stage.publish()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["manifest.json"]


def test_replaces_where_folders_cannot_be_exchanged(tmp_path, monkeypatch):
    """Neither every file system nor every system has renameat2."""
    monkeypatch.setattr("ctypes.CDLL", lambda *args, **kwargs: object())
    target = make_bundle(tmp_path / "out")
    with Stage(target, 0) as stage:
        (stage.folder / "new").touch()
        stage.publish()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["new"]


def test_follows_a_link_to_the_target(tmp_path):
    real = make_bundle(tmp_path / "disk/real")
    (tmp_path / "out").symlink_to(real)
    with Stage(tmp_path / "out", 0) as stage:
        (stage.folder / "new").touch()
        stage.publish()
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk") == ["real"]
    assert names(real) == ["new"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(143)])
def test_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(type(error)), Stage(tmp_path / "a/b/out", 0) as stage:
        (stage.folder / "onnx").mkdir()
        (stage.folder / "onnx/model.onnx").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_an_existing_bundle_survives_a_failure(tmp_path):
    target = make_bundle(tmp_path / "out")
    with pytest.raises(RuntimeError), Stage(target, 0):
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert (target / "note").read_text() == "old"


def test_parents_that_somebody_else_uses_stay(tmp_path):
    with pytest.raises(RuntimeError), Stage(tmp_path / "a/b/out", 0):
        (tmp_path / "a/other").touch()
        raise RuntimeError
    assert names(tmp_path / "a") == ["other"]


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(BundleError) as caught, Stage(tmp_path / "out", 0):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.message == f"{tmp_path / 'out'}: cannot be read or written (No space left on device)"
    assert "nothing was left behind" in caught.value.hint
    assert names(tmp_path) == []


def test_a_file_outside_the_stage_is_named(tmp_path):
    with pytest.raises(BundleError, match="/gone: cannot be read or written"), Stage(tmp_path / "out", 0):
        (tmp_path / "gone").read_bytes()


def test_too_little_space_is_refused_before_any_work(tmp_path):
    with pytest.raises(BundleError) as caught:
        Stage(tmp_path / "a/out", 1 << 60)
    assert "GiB free, the output needs 1073741824.0 GiB" in caught.value.message
    assert "--weights link" in caught.value.hint
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written"):
        Stage(tmp_path / "file/out", 0)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_the_folder_is_for_whom_the_umask_allows(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with Stage(tmp_path / "out", 0) as stage:
            stage.publish()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_a_failed_stage_is_kept_under_another_name(tmp_path):
    for note in ("first", "second"):
        with Stage(tmp_path / "out", 0) as stage:
            make_bundle(stage.folder / "inner", note=note)
            (stage.folder / "inner").rename(stage.folder.with_name("whole"))
            stage.folder.rmdir()
            stage.folder.with_name("whole").rename(stage.folder)
            kept = stage.keep_failed()
        assert kept == tmp_path / "out.failed"
        assert (kept / "note").read_text() == note
    assert names(tmp_path) == ["out.failed"]


def test_somebody_elses_failed_folder_is_not_removed(tmp_path):
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed/thesis").touch()
    with Stage(tmp_path / "out", 0) as stage:
        kept = stage.keep_failed()
    assert kept.name.startswith("out.failed-")
    assert names(tmp_path / "out.failed") == ["thesis"]


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    target = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", STAGE_AND_WAIT, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        abandoned = Path(other.stdout.readline().strip())
        with Stage(target, 0):
            assert abandoned.is_dir()  # its owner is at work
        other.kill()
        other.wait()
        assert abandoned.is_dir()
        with Stage(target, 0):
            assert not abandoned.exists()
    assert names(tmp_path) == []


class TestTarget:
    """check_target: what may be replaced."""

    def refused(self, target: Path, *, force: bool = False) -> BundleError:
        before = sorted(target.parent.rglob("*"))
        with pytest.raises(BundleError) as caught:
            check_target(target, force=force)
        assert sorted(target.parent.rglob("*")) == before
        assert caught.value.message.startswith(f"{target}: ")
        assert caught.value.hint
        return caught.value

    def test_new_or_empty_is_fine(self, tmp_path):
        (tmp_path / "empty").mkdir()
        check_target(tmp_path / "empty", force=False)
        check_target(tmp_path / "new/below", force=False)

    def test_bundle_needs_force(self, tmp_path):
        target = make_bundle(tmp_path / "out")
        assert "--force" in self.refused(target).hint
        check_target(target, force=True)

    @pytest.mark.parametrize("force", [False, True])
    def test_file(self, tmp_path, force):
        (tmp_path / "out").write_text("mine")
        assert "is a file" in self.refused(tmp_path / "out", force=force).message

    @pytest.mark.parametrize("force", [False, True])
    def test_dangling_link(self, tmp_path, force):
        (tmp_path / "out").symlink_to("nowhere")
        assert "link into nowhere" in self.refused(tmp_path / "out", force=force).message

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("manifest", [None, "", "[]", '{"manifest_version": 3}', "[" * 100_000])
    def test_what_is_no_bundle(self, tmp_path, manifest, force):
        """A browser extension has a manifest.json too."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").touch()
        if manifest is not None:
            (tmp_path / "out/manifest.json").write_text(manifest)
        assert "is not a bundle" in self.refused(tmp_path / "out", force=force).message

    def test_a_checkpoint_with_its_bundle_beside_is_never_replaced(self, tmp_path):
        target = make_bundle(tmp_path / "out", weights="beside")
        assert "would delete the checkpoint" in self.refused(target, force=True).message

    def test_current_folder(self, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert "current folder" in self.refused(tmp_path / "here").message
        assert "current folder" in self.refused(Path()).message

    def test_mount_point(self):
        """A container's output folder is often one; it is found before the work, not after it."""
        with pytest.raises(BundleError, match="is a mount point") as caught:
            check_target(Path("/"), force=True)
        assert "/bundle" in caught.value.hint
