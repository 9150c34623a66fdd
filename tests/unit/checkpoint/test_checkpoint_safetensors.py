"""Our safetensors header parser: agrees with the library on good files, refuses every bad one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llama_export.checkpoint import StoredTensor
from llama_export.checkpoint.json_file import MAX_JSON_BYTES
from llama_export.checkpoint.safetensors import read_header
from llama_export.errors import CheckpointError

NAME = "model.safetensors"


def pack(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, dtype: Any = "F32", shape: Any = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_the_library(tmp_path, dtype):
    torch.manual_seed(0)
    shapes = {"matrix": (3, 5), "vector": (7,), "scalar": (), "empty": (0, 4), "ünïcode": (1, 1, 1)}
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / NAME, metadata={"format": "pt"})
    ours = read_header(tmp_path / NAME, NAME)
    assert set(ours) == set(shapes)
    with safe_open(tmp_path / NAME, "pt") as theirs:
        for name, stored in ours.items():
            value, wanted = stored.read(), theirs.get_tensor(name)
            assert (stored.name, stored.dtype, stored.shape) == (name, dtype, shapes[name])
            assert value.dtype == wanted.dtype
            assert torch.equal(value, wanted)
            data = (tmp_path / NAME).read_bytes()[stored.offset : stored.offset + stored.nbytes]
            assert data == wanted.view(-1).view(torch.uint8).numpy().tobytes()


def test_reading_gives_memory_of_its_own(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / NAME)
    before = (tmp_path / NAME).read_bytes()
    stored = read_header(tmp_path / NAME, NAME)["a"]
    first = stored.read()
    first.zero_()
    assert first.untyped_storage().nbytes() == stored.nbytes == 16
    assert torch.equal(stored.read(), torch.ones(4))
    assert (tmp_path / NAME).read_bytes() == before


def test_short_reads_are_continued(tmp_path, monkeypatch):
    values = torch.arange(1000.0)
    save_file({"a": values}, tmp_path / NAME)
    stored = read_header(tmp_path / NAME, NAME)["a"]
    whole = Path.open

    class Dribble:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def seek(self, offset):
            self.stream.seek(offset)

        def readinto(self, buffer):
            return self.stream.readinto(buffer[:37])

    monkeypatch.setattr(Path, "open", lambda path, *args, **kwargs: Dribble(whole(path, *args, **kwargs)))
    assert torch.equal(stored.read(), values)


def test_only_the_header_is_read(tmp_path):
    """Eight TiB of data, all hole: opening it must not touch them."""
    nbytes = 2**43
    start = pack({"a": entry(0, nbytes)}, b"")
    with (tmp_path / NAME).open("wb") as stream:
        stream.write(start)
        try:
            stream.truncate(len(start) + nbytes)
        except OSError:  # a file system with smaller files: one GiB shows it as well
            nbytes = 2**30
            stream.seek(0)
            stream.write(pack({"a": entry(0, nbytes)}, b""))
            stream.truncate(stream.tell() + nbytes)
    assert read_header(tmp_path / NAME, NAME)["a"].nbytes == nbytes


def test_padded_header_is_fine(tmp_path):
    (tmp_path / NAME).write_bytes(pack(json.dumps({"a": entry(0, 4)}).encode() + b"   ", b"1234"))
    assert list(read_header(tmp_path / NAME, NAME)) == ["a"]


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    (tmp_path / NAME).write_bytes(pack({"late": entry(8, 16), "early": entry(0, 8)}, bytes(16)))
    assert list(read_header(tmp_path / NAME, NAME)) == ["early", "late"]


ONE = {"a": entry(0, 4)}
REFUSED: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["is empty"]),
    "seven bytes": (b"1234567", ["has 7 bytes"]),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ["Git LFS pointer"]),
    "html": (b"<!DOCTYPE html><html></html>", ["is not a safetensors file"]),
    "header over the cap": (pack(ONE, bytes(4), MAX_JSON_BYTES + 1), ["100000001", str(MAX_JSON_BYTES)]),
    "header longer than file": (pack(ONE, bytes(4), 9999), ["truncated", "10007"]),
    "no header": (pack(b"", b""), ["not a JSON object"]),
    "header is a list": (pack([1], b""), ["not a JSON object"]),
    "header begins with space": (pack(b" {}", b""), ["not a JSON object"]),
    "header is not JSON": (pack(b'{"a": ', b""), ["is not JSON"]),
    "header is not UTF-8": (pack(b'{"\xff": 1}', b""), ["is not UTF-8"]),
    "header nested deeply": (pack(b'{"a":' + b"[" * 100_000, b""), ["nested too deeply"]),
    "header with endless number": (pack(b'{"a":' + b"9" * 5000 + b"}", b""), ["digits"]),
    "header cut short": (pack(ONE, bytes(4), 20), ["is not JSON"]),
    "duplicate tensor": (pack(b'{"a": 1, "a": 2}', b""), ["a occurs twice"]),
    "metadata no object": (pack({"__metadata__": 3}, b""), ["__metadata__"]),
    "metadata no text": (pack({"__metadata__": {"a": 3}}, b""), ["__metadata__"]),
    "entry no object": (pack({"a": 3}, b""), ["tensor a", "dtype, shape and data_offsets"]),
    "entry without shape": (pack({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), ["tensor a"]),
    "entry with more": (pack({"a": {**ONE["a"], "x": 1}}, bytes(4)), ["tensor a", "nothing else"]),
    "integers": (pack({"a": entry(0, 4, "I32")}, bytes(4)), ["tensor a", '"I32"', "BF16"]),
    "eight bits": (pack({"a": entry(0, 4, "F8_E4M3", [4])}, bytes(4)), ['"F8_E4M3"']),
    "double": (pack({"a": entry(0, 8, "F64", [1])}, bytes(8)), ['"F64"']),
    "dtype no text": (pack({"a": entry(0, 4, ["F32"])}, bytes(4)), ['["F32"]']),
    "shape no list": (pack({"a": entry(0, 4, shape=1)}, bytes(4)), ["shape 1"]),
    "shape negative": (pack({"a": entry(0, 4, shape=[-1, -1])}, bytes(4)), ["[-1, -1]"]),
    "shape of booleans": (pack({"a": entry(0, 4, shape=[True])}, bytes(4)), ["[true]"]),
    "shape of floats": (pack({"a": entry(0, 4, shape=[1.0])}, bytes(4)), ["[1.0]"]),
    "shape beyond 64 bits": (pack({"a": entry(0, 4, shape=[2**63])}, bytes(4)), [str(2**63)]),
    "shape wraps around 64 bits": (pack({"a": entry(0, 0, shape=[2**62, 4])}, b""), ["needs", str(2**66)]),
    "too many dimensions": (pack({"a": entry(0, 4, shape=[1] * 5000)}, bytes(4)), ["shape [1, 1,", "..."]),
    "offsets reversed": (pack({"a": entry(4, 0, shape=[1])}, bytes(4)), ["data_offsets [4, 0]"]),
    "offsets negative": (pack({"a": entry(-4, 0, shape=[1])}, bytes(4)), ["data_offsets [-4, 0]"]),
    "offsets of three": (
        pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(8)),
        ["data_offsets [0, 4, 8]"],
    ),
    "bytes do not fit the shape": (pack({"a": entry(0, 4, shape=[2])}, bytes(4)), ["has 4 bytes", "needs 8"]),
    "bytes do not fit the dtype": (
        pack({"a": entry(0, 4, "BF16", [1])}, bytes(4)),
        ["has 4 bytes", "needs 2"],
    ),
    "hole at the start": (pack({"a": entry(4, 8)}, bytes(8)), ["leaves a hole"]),
    "hole": (pack({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), ["tensor b", "leaves a hole"]),
    "overlap": (pack({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), ["tensor b", "overlaps"]),
    "same bytes twice": (pack({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), ["tensor b", "overlaps"]),
    "truncated": (pack(ONE, b"123"), ["truncated", "has 72 bytes", "needs 73"]),
    "trailing bytes": (pack(ONE, b"12345"), ["has 74 bytes", "accounts for 73"]),
    "name with a newline": (pack({"a\nb\x1b[2J": 3}, b""), ["a\\nb\\u001b[2J"]),
    "name of a megabyte": (pack({"a" * 10**6: 3}, b""), ["aaa..."]),
    "name with half a character": (pack(b'{"\\ud800": 3}', b""), ["\\ud800"]),
}


@pytest.mark.parametrize(("data", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, data, words):
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_header(tmp_path / NAME, NAME)
    message = caught.value.message
    assert message.startswith(f"{NAME}: ")
    for word in words:
        assert word in message
    assert message.isprintable()
    assert len(message) < 300
    assert caught.value.hint


def break_missing(file: Path) -> None:
    file.unlink()


def break_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def break_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def break_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def break_dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("../../blobs/gone")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_missing, "is missing"),
        (break_folder, "is a folder"),
        (break_pipe, "is a device or pipe"),
        (break_loop, "cannot be read: "),
        (break_dangling, "is missing"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, spoil, words):
    save_file({"a": torch.ones(1)}, tmp_path / NAME)
    spoil(tmp_path / NAME)
    with pytest.raises(CheckpointError, match=f"^{NAME}: {words}"):
        read_header(tmp_path / NAME, NAME)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError(5, "Input/output error"), "input/output"),
    ],
)
def test_errors_of_the_operating_system_become_sentences(tmp_path, monkeypatch, error, words):
    save_file({"a": torch.ones(1)}, tmp_path / NAME)

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(Path, "open", fail)  # chmod does not stop root, as whom CI may run
    with pytest.raises(CheckpointError, match=f"^{NAME}: cannot be read: {words}") as caught:
        read_header(tmp_path / NAME, NAME)
    assert caught.value.hint


def test_a_file_that_shrinks_later_is_refused_when_read(tmp_path):
    save_file({"a": torch.ones(100)}, tmp_path / NAME)
    stored = read_header(tmp_path / NAME, NAME)["a"]
    os.truncate(tmp_path / NAME, stored.offset + 150)
    with pytest.raises(CheckpointError, match=f"^{NAME}: ends early"):
        stored.read()
    (tmp_path / NAME).unlink()
    with pytest.raises(CheckpointError, match=f"^{NAME}: is missing"):
        stored.read()


def test_stored_tensors_are_plain_values(tmp_path):
    stored = StoredTensor("a", torch.float32, (1,), tmp_path, 8, 4)
    assert stored == StoredTensor("a", torch.float32, (1,), tmp_path, 8, 4)
