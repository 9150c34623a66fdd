"""``tokenizer.bin`` says what ``tokenizer.json`` says, read here by a reader of its own after FORMAT.md."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizer_sources import PIECES, RANKS, as_checkpoint, real_vocabulary, write_pieces, write_ranks
from tokenizer_sources import write_json as dump

from llama_export.tokenizer import SourceTokenizer, open_source, write_flat_file
from llama_export.tokenizer.files import write_tokenizer_files
from llama_export.tokenizer.flat_file import why_not
from llama_runtime.vocabulary import open_tokenizers

VOCABULARIES = ["small pieces", "small ranks", "llama 2", "llama 3"]


@dataclass(frozen=True)
class Flat:
    kind: int
    flags: int
    unknown: int
    texts: list[bytes]
    kinds: bytes
    opening: list[int]
    merges: list[tuple[int, ...]]
    added: dict[str, tuple[int, int]]


def read_flat(data: bytes) -> Flat:
    assert data[:8] == b"llamatok"
    version, kind, flags, unknown, T, N, M, A, X, Y = struct.unpack("<10I", data[8:48])
    assert version == 1
    at = 48

    def numbers(count: int) -> list[int]:
        nonlocal at
        at += 4 * count
        return list(struct.unpack(f"<{count}I", data[at - 4 * count : at]))

    ends, opening, merges, about, name_ends = map(numbers, (T, N, 4 * M, 2 * A, A))
    kinds, texts, names = data[at : at + T], data[at + T : at + T + X], data[at + T + X :]
    assert len(names) == Y

    def cut(whole: bytes, ends: list[int]) -> list[bytes]:
        return [whole[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    named = [name.decode() for name in cut(names, name_ends)]
    quads = list(zip(*[iter(merges)] * 4, strict=True))
    added = dict(zip(named, zip(about[::2], about[1::2], strict=True), strict=True))
    return Flat(kind, flags, unknown, cut(texts, ends), kinds, opening, quads, added)


def source_of(name: str, folder: Path, **changes) -> SourceTokenizer:
    path = folder / "tokenizer.model"
    if name.startswith("small"):
        (write_pieces if name == "small pieces" else write_ranks)(path)
    else:
        file = "llama2_tokenizer.model" if name == "llama 2" else "llama3_tokenizer.model.gz"
        data = real_vocabulary(file).read_bytes()
        path.write_bytes(data if name == "llama 2" else gzip.decompress(data))
    sizes = {"small pieces": PIECES, "small ranks": RANKS + 256, "llama 2": 32000, "llama 3": 128256}
    source = open_source(as_checkpoint(folder, sizes[name], raw_config={}))
    assert source is not None
    return source


def written(source: SourceTokenizer, folder: Path) -> Flat:
    assert write_flat_file(source, folder / "tokenizer.bin") is None
    assert why_not(source) is None
    return read_flat((folder / "tokenizer.bin").read_bytes())


@pytest.mark.parametrize("name", VOCABULARIES)
def test_it_says_what_tokenizer_json_says(tmp_path, name):
    source = source_of(name, tmp_path)
    flat = written(source, tmp_path)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_tokenizer_files(source, bundle)
    document = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    opened = open_tokenizers(bundle / "tokenizer.json")
    model, vocab = document["model"], document["model"]["vocab"]

    ids = {*vocab.values(), *(entry["id"] for entry in document["added_tokens"])}
    assert [kind != 0 for kind in flat.kinds] == [index in ids for index in range(len(flat.texts))]
    for index, text in enumerate(flat.texts):
        shown = text if flat.kind == 1 or flat.kinds[index] == 2 else text.replace("\u2581".encode(), b" ")
        assert shown == opened.token_bytes(index), index
    assert {name: token for name, (token, _) in flat.added.items()} == dict(opened.added_tokens)
    assert {token for token, flags in flat.added.values() if flags == 1} == opened.special_ids

    ranked = sorted(flat.merges, key=lambda row: row[2])
    names = {index: name for name, index in vocab.items()}
    assert [(names[left], names[right]) for left, right, _, _ in ranked] == [
        tuple(pair) for pair in model["merges"]
    ]
    assert all(names[joint] == names[left] + names[right] for left, right, _, joint in ranked)
    assert [row[:2] for row in flat.merges] == sorted(row[:2] for row in flat.merges)

    opening = [flat.texts[index] for index in flat.opening]
    assert opening == sorted(opening)
    wanted = {index for name, index in vocab.items() if len(name) == 1 or flat.flags & 4}
    assert set(flat.opening) == wanted
    assert (flat.kind, flat.flags) == ((0, 3) if "pieces" in name or name == "llama 2" else (1, 4))
    assert flat.unknown == vocab.get(model["unk_token"], 2**32 - 1)


def test_without_a_space_in_front(tmp_path):
    write_pieces(tmp_path / "tokenizer.model")
    dump(tmp_path / "tokenizer_config.json", {"add_prefix_space": False})
    source = open_source(as_checkpoint(tmp_path, PIECES, raw_config={}))
    assert written(source, tmp_path).flags == 0


def test_added_tokens_stand_in_it(tmp_path):
    write_ranks(tmp_path / "tokenizer.model")
    decoder = {str(RANKS + 256): {"content": "<tool>", "special": False}}
    dump(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    source = open_source(as_checkpoint(tmp_path, RANKS + 257, raw_config={}))
    flat = written(source, tmp_path)
    assert flat.added["<tool>"] == (RANKS + 256, 2)
    assert flat.added["<|eot_id|>"][1] == 1
    assert flat.texts[-1] == b"<tool>"


def as_author(folder: Path, change) -> SourceTokenizer:
    """The small ranks as a ``tokenizer.json`` alone, with something changed in it."""
    write_ranks(folder / "tokenizer.model")
    source = open_source(as_checkpoint(folder, RANKS + 256, raw_config={}))
    (folder / "tokenizer.model").unlink()
    document = source.document()
    change(document)
    dump(folder / "tokenizer.json", document)
    dump(folder / "tokenizer_config.json", {"bos_token": "<|begin_of_text|>"})
    opened = open_source(as_checkpoint(folder, RANKS + 256, raw_config={}))
    assert opened is not None
    return opened


def test_an_author_s_json_of_the_same_kind(tmp_path):
    flat = written(as_author(tmp_path, lambda document: None), tmp_path)
    assert (flat.kind, flat.flags) == (1, 4)


def use_digits(document):
    document["pre_tokenizer"]["pretokenizers"][0] = {"type": "Digits", "individual_digits": True}


def use_nfc(document):
    document["normalizer"] = {"type": "NFC"}


def strip_a_token(document):
    document["added_tokens"][3]["lstrip"] = True


def lose_a_byte(document):
    name = next(name for name in document["model"]["vocab"] if len(name) == 1 and not name.isascii())
    del document["model"]["vocab"][name]
    document["model"]["merges"] = []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (use_digits, "it cuts or changes texts by Digits + ByteLevel"),
        (use_nfc, "it cuts or changes texts by NFC + Split + ByteLevel"),
        (strip_a_token, "is lstrip"),
        (lose_a_byte, "it has no token for 1 of the 256 bytes"),
    ],
)
def test_another_kind_is_not_written_and_says_why(tmp_path, change, reason):
    source = as_author(tmp_path, change)
    found = write_flat_file(source, tmp_path / "tokenizer.bin")
    assert found is not None
    assert reason in found
    assert why_not(source) == found
    assert not (tmp_path / "tokenizer.bin").exists()
