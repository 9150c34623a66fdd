"""place_file: a second name for the same bytes where possible, and never a change to the first."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llama_export.bundle.place import can_share, place_file


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"weights")
    path.chmod(0o640)
    return path


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no second file system to copy to")
    assert shm.stat().st_dev != tmp_path.stat().st_dev
    folder = shm / f"llama-export-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_shares_the_bytes_on_one_file_system(source, tmp_path):
    how = place_file(source, tmp_path / "target")
    assert how in ("reflink", "hard link")
    assert (tmp_path / "target").read_bytes() == b"weights"
    assert (tmp_path / "target").samefile(source) == (how == "hard link")
    assert source.stat().st_mode & 0o777 == 0o640


def test_copies_across_file_systems(source, elsewhere):
    before = os.umask(0o022)
    try:
        assert place_file(source, elsewhere / "target") == "copy"
    finally:
        os.umask(before)
    assert (elsewhere / "target").read_bytes() == b"weights"
    # A copy is ours: readable by others even where the source is not.
    assert (elsewhere / "target").stat().st_mode & 0o777 == 0o644


def test_copies_where_links_are_forbidden(source, tmp_path, monkeypatch):
    """fs.protected_hardlinks forbids links to other people's files."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("llama_export.bundle.place._reflink", lambda *_: False)
    monkeypatch.setattr(os, "link", refuse)
    assert place_file(source, tmp_path / "target") == "copy"
    assert (tmp_path / "target").stat().st_nlink == 1


def test_a_symlink_is_resolved_first(source, tmp_path):
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/model").symlink_to("../source")
    place_file(tmp_path / "snapshot/model", tmp_path / "target")
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"weights"


def test_a_full_disk_is_not_taken_for_a_missing_reflink(source, tmp_path, monkeypatch):
    import fcntl

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "ioctl", fail)
    with pytest.raises(OSError, match="No space left"):
        place_file(source, tmp_path / "target")


def test_knows_beforehand_whether_bytes_can_be_shared(source, tmp_path, elsewhere):
    assert can_share(source, tmp_path / "not/made/yet")
    assert not can_share(source, elsewhere / "not/made/yet")
