"""flax_model.msgpack: read where it stands, as flax.serialization packs it; lies about length are refused."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from layout_checkpoints import flax_array, flax_bytes, flax_chunked

from llama_export.checkpoint.flax_file import model_name, read_flax_file
from llama_export.checkpoint.tensor import StoredTensor, read_bytes
from llama_export.errors import CheckpointError

NAME = "flax_model.msgpack"


def read(folder: Path, data: bytes) -> dict[str, Any]:
    (folder / NAME).write_bytes(data)
    return read_flax_file(folder / NAME, NAME)


def pack(tree: object) -> bytes:
    return msgpack.packb(tree, use_bin_type=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_values", [None, 1, 7, 100])
def test_kernels_are_turned_and_all_else_stays(tmp_path, dtype, chunk_values):
    flat = {
        "model/embed_tokens/embedding": torch.randn(11, 6),
        "model/layers/0/self_attn/q_proj/kernel": torch.randn(6, 9),
        "model/layers/0/input_layernorm/weight": torch.randn(6),
        "lm_head/kernel": torch.randn(6, 300),
    }
    flat = {name: value.to(dtype) for name, value in flat.items()}
    found = read(tmp_path, flax_bytes(flat, chunk_values=chunk_values))
    assert list(found) == [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "lm_head.weight",
    ]
    for (name, tensor), (path, value) in zip(found.items(), flat.items(), strict=True):
        want = value.T if path.endswith("kernel") else value
        assert (tensor.name, tensor.dtype, tensor.shape) == (name, dtype, tuple(want.shape))
        assert torch.equal(tensor.read(), want)
        assert torch.equal(torch.cat(list(tensor.pieces())), want)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model/layers/3/mlp/up_proj/kernel", "model.layers.3.mlp.up_proj.weight"),
        ("params/model/norm/weight", "model.norm.weight"),
        ("embed_tokens/embedding", "embed_tokens.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("score/bias", "score.bias"),
    ],
)
def test_names(key, name):
    assert model_name(key) == name


def test_arrays_are_not_read(tmp_path, monkeypatch):
    seen = []

    def spy(file: Path, offset: int, nbytes: int) -> torch.Tensor:
        seen.append(nbytes)
        return read_bytes(file, offset, nbytes)

    value = torch.randn(500, 1000)
    found = read(tmp_path, flax_bytes({"a/embedding": value}))
    assert isinstance(found["a.weight"], StoredTensor)
    assert seen == []
    assert torch.equal(found["a.weight"].read(spy), value)
    assert seen == [value.nbytes]


def test_every_width_of_length(tmp_path):
    """MessagePack has several ways to write a length; msgpack picks by size, so all sizes are tried."""
    for values in (0, 1, 3, 60, 70, 300, 20_000):
        many = {f"tensor{i}/weight": torch.randn(values) for i in range(40)}
        found = read(tmp_path, flax_bytes(many))
        assert all(torch.equal(found[n.replace("/", ".")].read(), v) for n, v in many.items())


def array(shape: object, dtype: object, data: object, kind: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(kind, pack([shape, dtype, data]))


ONES = torch.ones(6)
CHUNKS = flax_chunked(ONES, 4)
REFUSED = {
    "nothing": (b"", "truncated or lies"),
    "text": (b"hello", "must be a map"),
    "a list": (pack([1, 2]), "not what Flax writes"),
    "a number": (pack(7), "must be a map"),
    "more behind": (pack({}) + b"\0", "has 2 bytes, its map accounts for 1"),
    "a text as leaf": (pack({"a": "b"}), "not what Flax writes"),
    "a number as leaf": (pack({"step": 3}), "step is no tensor"),
    "float as leaf": (pack({"a": 0.5}), "not what Flax writes"),
    "nil": (pack({"a": None}), "not what Flax writes"),
    "keys that are numbers": (pack({1: flax_array(ONES)}), "not what Flax writes"),
    "a key twice": (b"\x82" + pack("a") + pack(flax_array(ONES)) + pack("a") + pack({}), "a twice"),
    "one name twice": (
        pack({"params": {"a": {"b": flax_array(ONES)}}, "a": {"b": flax_array(ONES)}}),
        "occurs twice",
    ),
    "a long name": (pack({"a" * 2000: flax_array(ONES)}), "a name of 2000 bytes"),
    "no UTF-8": (b"\x81\xa2\xff\xfe" + pack({}), "not UTF-8"),
    "deep": (b"\x81\xa1a" * 5000 + b"\x80", "is nested over"),
    "another extension": (pack({"a": array([6], "float32", b"\0" * 24, 3)}), "extension of type 3"),
    "float64": (pack({"a": array([6], "float64", b"\0" * 48)}), "float64"),
    "int8": (pack({"a": array([6], "int8", b"\0" * 6)}), "int8"),
    "no dtype": (pack({"a": msgpack.ExtType(1, pack([[6], b"\0" * 24]))}), "must be .shape, dtype, bytes"),
    "too short": (pack({"a": array([6], "float32", b"\0" * 20)}), "needs 24"),
    "too long": (pack({"a": array([6], "float32", b"\0" * 28)}), "needs 24"),
    "huge shape": (pack({"a": array([2**40, 2**40], "float32", b"\0" * 24)}), "needs"),
    "negative shape": (pack({"a": array([-6], "float32", b"\0" * 24)}), "not what Flax writes"),
    "many dimensions": (pack({"a": array([1] * 9, "float32", b"\0" * 4)}), "9 dimensions"),
    "a shape that is none": (pack({"a": array("6", "float32", b"\0" * 24)}), "not what Flax writes"),
    "an extension of 4 GiB": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + b"\0" * 9, "lies about a length"),
    "a map of 4 G": (b"\xdf\xff\xff\xff\xff" + b"\xa1a" * 9, "lies about a length"),
    "a name of 4 GiB": (b"\x81\xdb\xff\xff\xff\xffa", "a name of 4294967295 bytes"),
    "data that lies": (
        b"\x81\xa1a\xc7\x12\x01\x93\x91\x06\xa7float32\xc6\xff\xff\xff\xff" + b"\0" * 30,
        "claims 4294967295",
    ),
    "a chunk is missing": (pack({"a": CHUNKS | {"chunks": {"0": flax_array(ONES[:4])}}}), "in chunks"),
    "a chunk too many": (
        pack({"a": CHUNKS | {"chunks": {str(i): flax_array(ONES[:4]) for i in range(3)}}}),
        "in chunks",
    ),
    "chunks of two dtypes": (
        pack({"a": CHUNKS | {"chunks": {"0": flax_array(ONES[:4]), "1": flax_array(ONES[:2].half())}}}),
        "in chunks",
    ),
    "chunks misnumbered": (pack({"a": CHUNKS | {"chunks": {"5": flax_array(ONES)}}}), "in chunks"),
    "chunks without shape": (pack({"a": {"__msgpack_chunked_array__": True, "chunks": {}}}), "in chunks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(tmp_path, case):
    data, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=f"^{NAME}: .*{words}") as refused:
        read(tmp_path, data)
    assert "\n" not in refused.value.message
    assert refused.value.hint


def small() -> bytes:
    flat = {"model/norm/weight": torch.ones(3), "lm_head/kernel": torch.ones(4, 5)}
    return flax_bytes(flat, chunk_values=7)


def test_every_truncation_is_refused(tmp_path):
    whole = small()
    for end in range(len(whole)):
        with pytest.raises(CheckpointError, match=f"^{NAME}: "):
            read(tmp_path, whole[:end])


def test_random_changes_are_refused_or_fit_the_file(tmp_path):
    whole, generator = small(), random.Random(0)
    for _ in range(500):
        changed = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        try:
            found = read(tmp_path, bytes(changed))
        except CheckpointError as refused:
            assert "\n" not in refused.message
            continue
        for tensor in found.values():
            assert sum(part.nbytes for part in tensor.stored) < len(whole)
            assert tensor.read().numel() == math.prod(tensor.shape)
