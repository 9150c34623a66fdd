"""Files of torch.save: read where they stand, whatever wrote them; attacks are refused and never run."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_export.checkpoint.tensor import ComputedTensor, StoredTensor
from llama_export.checkpoint.torch_file import read_torch_file
from llama_export.errors import CheckpointError

NAME = "pytorch_model.bin"


def read(path: Path) -> dict[str, Any]:
    return read_torch_file(path, path.name)


def save(tmp_path: Path, state: object, **options: Any) -> Path:
    torch.save(state, tmp_path / NAME, **options)
    return tmp_path / NAME


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_stand_where_the_file_has_them(tmp_path, dtype):
    state = {
        "a": torch.randn(7, 5).to(dtype),
        "b": torch.randn(3).to(dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    found = read(save(tmp_path, state))
    assert list(found) == list(state)
    for name, value in state.items():
        assert isinstance(found[name], StoredTensor)
        assert (found[name].name, found[name].dtype, found[name].shape) == (name, dtype, tuple(value.shape))
        assert torch.equal(found[name].read(), value)


def test_views_of_one_storage(tmp_path):
    flat = torch.randn(60)
    state = {"first": flat[:30].view(5, 6), "second": flat[30:].view(3, 10), "again": flat[:30].view(5, 6)}
    path = save(tmp_path, state)
    found = read(path)
    for name, value in state.items():
        assert torch.equal(found[name].read(), value)
    assert found["first"].offset == found["again"].offset
    assert path.stat().st_size < 4 * 60 + 4096  # one storage, or the test shows nothing


def test_a_transposed_view_is_turned_back_and_other_views_are_refused(tmp_path):
    turned = torch.randn(4, 6).T
    found = read(save(tmp_path, {"t": turned}))["t"]
    assert isinstance(found, ComputedTensor)
    assert torch.equal(found.read(), turned)
    with pytest.raises(CheckpointError, match=r"tensor c is a view with strides \[6, 1\], .* in order"):
        read(save(tmp_path, {"c": torch.randn(4, 6)[:, 1:3]}))


@pytest.mark.parametrize(
    "wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: torch.nn.ParameterDict(s).state_dict()]
)
def test_usual_wrappings(tmp_path, wrap):
    state = {"a": torch.randn(2, 3)}
    assert torch.equal(read(save(tmp_path, wrap(state)))["a"].read(), state["a"])


def test_the_data_is_not_read(tmp_path):
    """Data that is gone matters only to whoever reads it."""
    path = save(tmp_path, {"a": torch.randn(1000)})
    found = read(path)["a"]
    os.truncate(path, found.offset + 100)
    assert found.nbytes == 4000
    with pytest.raises(CheckpointError, match="ends early"):
        found.read()


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


def attacks(target: Path) -> dict[str, Any]:
    return {
        "os.system": Attack(os.system, f"touch {target}"),
        "open": Attack(open, str(target), "w"),
        "eval": Attack(eval, f"open({str(target)!r}, 'w')"),
        "exec": Attack(exec, f"open({str(target)!r}, 'w')"),
        "nested": {"weight": torch.ones(2), "x": [{"y": Attack(os.system, f"touch {target}")}]},
        "import": Attack(__import__, "antigravity"),
        "Path.touch": Attack(Path.touch, target),
        "torch.load": Attack(torch.load, str(target)),
    }


@pytest.mark.parametrize("attack", list(attacks(Path())))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, attack, zipped):
    target = tmp_path / "ran"
    path = save(tmp_path, {"w": attacks(target)[attack]}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f"^{NAME}: ") as refused:
        read(path)
    assert not target.exists()
    assert refused.value.hint
    assert "\n" not in refused.value.message
    if zipped:
        assert "no code is run" in refused.value.message


def test_the_attacks_are_real(tmp_path):
    target = tmp_path / "ran"
    pickle.loads(pickle.dumps(attacks(target)["os.system"]))
    assert target.exists()


def test_formats_before_the_zip_are_refused_by_name(tmp_path):
    path = save(tmp_path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"bare pickle, as PyTorch wrote before 1\.6") as refused:
        read(path)
    assert "torch.save" in refused.value.hint


def repack(path: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes | None) -> None:
    """Write the archive anew; records may be changed or left out by their names' ends (``_`` for ``/``)."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            new = changed.get(re.sub(r"\W", "_", name.partition("/")[2]), data)
            if new is not None:
                archive.writestr(name, new)


def test_an_old_zip_that_says_nothing_of_its_alignment_is_read(tmp_path):
    state = {"a": torch.randn(5, 3), "b": torch.randn(11)}
    path = save(tmp_path, state)
    repack(path, _format_version=None, _storage_alignment=None, byteorder=None, _data_serialization_id=None)
    with zipfile.ZipFile(path) as archive:
        assert not any("alignment" in name or "byteorder" in name for name in archive.namelist())
    for name, tensor in read(path).items():
        assert torch.equal(tensor.read(), state[name])


def test_an_archive_that_lies_about_its_alignment_is_refused(tmp_path):
    path = save(tmp_path, {"a": torch.randn(5, 3), "b": torch.randn(11)})
    repack(path)
    with pytest.raises(
        CheckpointError, match=r"tensor b does not stand where torch\.save puts it"
    ) as refused:
        read(path)
    assert "torch.save" in refused.value.hint


def test_a_zip_bomb_is_refused(tmp_path):
    path = save(tmp_path, {"a": torch.zeros(25_000_000)})
    repack(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000  # 100 MB in it
    with pytest.raises(CheckpointError, match=r"is compressed, torch\.save stores records as they are"):
        read(path)


def test_a_record_that_is_shorter_than_its_tensor_is_refused(tmp_path):
    path = save(tmp_path, {"a": torch.randn(100)})
    repack(path, data_0=b"\0" * 40)
    with pytest.raises(CheckpointError, match=f"^{NAME}: ") as refused:
        read(path)
    assert "\n" not in refused.value.message


def test_a_big_endian_file_is_refused(tmp_path):
    path = save(tmp_path, {"a": torch.ones(2)})
    repack(path, byteorder=b"big")
    with pytest.raises(CheckpointError, match="is big-endian"):
        read(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"hello, world", "not a file of torch.save"),
        (b"PK\x03\x04 and no more", "truncated or damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, data, words):
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"^{NAME}: .*{words}"):
        read(tmp_path / NAME)


@pytest.mark.parametrize("state", [[torch.ones(2)], torch.ones(2), {1: torch.ones(2)}, 7])
def test_anything_but_tensors_by_name_is_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match="must hold a dictionary of tensors by name"):
        read(save(tmp_path, state))


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.float64)])
def test_other_precisions_are_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="supported are float32, float16 and bfloat16"):
        read(save(tmp_path, {"a": value}))


def test_every_truncation_is_one_sentence(tmp_path):
    whole = save(tmp_path, {"a": torch.randn(9), "b": torch.randn(2, 3)}).read_bytes()
    for end in range(0, len(whole), 37):
        (tmp_path / NAME).write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=f"^{NAME}: "):
            read(tmp_path / NAME)


def test_every_changed_byte_is_read_or_one_sentence(tmp_path):
    whole = bytearray(save(tmp_path, {"a": torch.randn(9)}).read_bytes())
    for position in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        (tmp_path / NAME).write_bytes(changed)
        try:
            for tensor in read(tmp_path / NAME).values():
                tensor.read()
        except CheckpointError as refused:
            assert "\n" not in refused.message
