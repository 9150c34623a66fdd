"""A data file written in blocks past the page cache, or through it where there is no other way."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os

import pytest
import torch

from llama_export.weights import sink
from llama_export.weights.background import InBackground
from llama_export.weights.sink import FileDigest, Sink

PAGE = 4096
SIZES = [1, PAGE - 1, PAGE, PAGE + 1, 4 * PAGE, 37, 9 * PAGE + 5]


@pytest.fixture(params=["direct", "no such flag", "refused on opening", "refused on writing"])
def blocks(request, monkeypatch):
    """Blocks of a page, so that few bytes fill many, on every kind of system."""
    monkeypatch.setattr(sink, "BLOCK_BYTES", PAGE)
    real_open, real_write, direct = os.open, os.write, os.O_DIRECT

    def refusing_open(path, flags, *mode):
        if flags & direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *mode)

    def refusing_write(file, data):
        if fcntl.fcntl(file, fcntl.F_GETFL) & direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(file, data)

    if request.param == "no such flag":
        monkeypatch.setattr(sink, "_DIRECT", 0)
    elif request.param == "refused on opening":
        monkeypatch.setattr(os, "open", refusing_open)
    elif request.param == "refused on writing":
        monkeypatch.setattr(os, "write", refusing_write)


def pieces_of(data, sizes=SIZES):
    for size in sizes:
        yield data[:size]
        data = data[size:]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("header", [b"", b"header", bytes(range(256)) * 40])
@pytest.mark.parametrize("flush_after", [None, 0, 3])
def test_what_is_appended_is_what_the_file_holds(tmp_path, header, flush_after):
    data = torch.randint(256, (sum(SIZES),), dtype=torch.uint8)
    offset = len(header) + 100
    path = tmp_path / "data"
    with InBackground() as disk:
        written = Sink(path, header, disk)
        for i, piece in enumerate(pieces_of(data)):
            written.write(offset, "weight", piece)
            if i == flush_after:  # as where the tensors of two files alternate
                written.flush()
        written.flush()
        disk.drain()
        written.close()
    expected = header + bytes(100) + bytes(data)
    assert path.read_bytes() == expected
    assert written.digest() == FileDigest(len(expected), hashlib.sha256(expected).hexdigest())


def test_other_errors_are_not_swallowed(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with InBackground() as disk:
        written = Sink(tmp_path / "data", b"header", disk)
        written.flush()
        with pytest.raises(OSError, match="No space left"):
            disk.drain()
        written.close()


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path):
    with InBackground() as disk, pytest.raises(FileNotFoundError):
        Sink(tmp_path / "gone/data", b"", disk)
