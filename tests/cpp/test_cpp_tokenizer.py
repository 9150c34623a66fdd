"""The C++ tokenizer against sentencepiece and tiktoken, and our Python runtime where names are parsed."""

from __future__ import annotations

import base64
import gzip
import random
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from c_abi import AbiError, Model
from cpp_bundles import DEMO, REPO, copy_bundle
from sentencepiece import SentencePieceProcessor
from tokenizer_sources import (
    PIECES,
    RANKS,
    as_checkpoint,
    random_text,
    real_vocabulary,
    vectors,
    write_pieces,
    write_ranks,
)

from llama_export.bundle.manifest import tokenizer_file, tokens
from llama_export.tokenizer import open_source, write_flat_file, write_tokenizer_files
from llama_export.tokenizer.awkward_texts import AWKWARD_TEXTS
from llama_export.tokenizer.rank_file import SPLIT
from llama_runtime.tokenizer import Tokenizer, open_tokenizer

NAMES = ["demo", "small pieces", "small ranks", "llama 2", "llama 3"]
SIZES = {
    "small pieces": PIECES,
    "small ranks": RANKS + 256,
    "llama 2": 32000,
    "llama 3": 128256,
    "demo": 1024,
}
CLASSES = runpy.run_path(str(REPO / "runtime/cpp/src/make_unicode_classes.py"))


@dataclass(frozen=True)
class Both:
    """One vocabulary in C++ and in Python, and the library that defines its ids."""

    cpp: Model
    python: Tokenizer
    reference: SentencePieceProcessor | tiktoken.Encoding
    texts: list[str]

    def wanted(self, text: str) -> list[int]:
        if isinstance(self.reference, tiktoken.Encoding):
            return self.reference.encode_ordinary(text)
        return list(self.reference.encode(text))


@pytest.fixture(scope="module")
def both_of(tmp_path_factory, library, onnxruntime_library, demo_of):
    made: dict[str, Both] = {}

    def both(name: str) -> Both:
        if name not in made:
            folder = tmp_path_factory.mktemp("vocabulary")
            made[name] = open_both(name, folder, library, onnxruntime_library, demo_of(verify=False))
        return made[name]

    yield both
    for opened in made.values():
        opened.cpp.close()


def write_model(name: str, path: Path) -> None:
    if name == "demo":
        path.write_bytes((DEMO / "tokenizer.model").read_bytes())
    elif name.startswith("small"):
        (write_pieces if name == "small pieces" else write_ranks)(path)
    else:
        data = real_vocabulary("llama2_tokenizer.model" if name == "llama 2" else "llama3_tokenizer.model.gz")
        path.write_bytes(data.read_bytes() if name == "llama 2" else gzip.decompress(data.read_bytes()))


def open_both(name: str, folder: Path, library, onnxruntime_library: Path, demo: Path) -> Both:
    path = folder / "tokenizer.model"
    write_model(name, path)
    checkpoint = as_checkpoint(folder, SIZES[name], raw_config={"bos_token_id": 1, "eos_token_id": 2})
    source = open_source(checkpoint)
    file, special = tokenizer_file(source, beside=False), tokens(checkpoint, source)
    out = folder / "bundle"

    # The demo's graph, which is opened and never run, with another vocabulary.
    def change(document):
        document["limits"]["vocab_size"] = SIZES[name]
        document["known_answers"] = []
        document["tokens"] = {
            "bos_token_id": special.bos_token_id,
            "eos_token_ids": list(special.eos_token_ids),
            "pad_token_id": None,
        }
        flat = next(entry for entry in document["files"] if entry["path"] == "tokenizer.bin")
        flat["size_bytes"] = (folder / "tokenizer.bin").stat().st_size

    assert write_flat_file(source, folder / "tokenizer.bin") is None
    copy_bundle(demo, out, change)
    (out / "tokenizer.bin").write_bytes((folder / "tokenizer.bin").read_bytes())
    files = folder / "files"
    files.mkdir()
    write_tokenizer_files(source, files)
    if source.kind == "sentencepiece":
        reference = SentencePieceProcessor(model_file=str(path))
    else:
        lines = (line.split() for line in path.read_bytes().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        reference = tiktoken.Encoding("x", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    python = open_tokenizer(files, file, special)
    return Both(Model(library, onnxruntime_library, out), python, reference, source.texts())


def check(both: Both, text: str) -> None:
    wanted = both.wanted(text)
    assert both.cpp.encode(text, add_special=False) == wanted, repr(text)
    assert both.cpp.encode(text) == both.python.encode(text), repr(text)
    assert both.cpp.decode(wanted) == both.reference.decode(wanted), repr(text)


@pytest.mark.parametrize("name", NAMES)
def test_random_texts(both_of, name):
    """25,000 over all vocabularies."""
    both, rng = both_of(name), random.Random(20240418)
    for _ in range(5000):
        check(both, random_text(rng, both.texts))


@pytest.mark.parametrize("name", NAMES)
def test_awkward_texts_and_every_piece(both_of, name):
    both = both_of(name)
    for text in [*AWKWARD_TEXTS, *both.texts[:2000]]:
        check(both, text)


@pytest.mark.parametrize("name", NAMES)
def test_any_ids(both_of, name):
    """Most of them no text that anybody would write, many of them cut characters."""
    both, rng = both_of(name), random.Random(7)
    if isinstance(both.reference, tiktoken.Encoding):
        cut = [both.reference.encode_single_token(bytes([byte])) for byte in range(128, 256)]
        plain = range(both.reference.n_vocab)
    else:
        cut, plain = list(range(3 + 128, 3 + 256)), range(3, both.reference.vocab_size())
    for _ in range(1000):
        runs = [rng.choices(plain if rng.random() < 0.6 else cut, k=rng.randint(1, 4)) for _ in range(4)]
        ids = [token for run in runs for token in run]
        assert both.cpp.decode(ids) == both.reference.decode(ids), ids
        assert both.cpp.decode([-1, *ids, 1 << 30]) == both.python.decode([-1, *ids, 1 << 30]), ids


@pytest.mark.parametrize("name", NAMES)
def test_names_of_special_tokens(both_of, name):
    """In a text that a program made they are tokens, and each rest is a text of its own."""
    both, rng = both_of(name), random.Random(3)
    names = [*both.python.vocabulary.added_tokens][:20]
    for _ in range(500):
        parts = [rng.choice([rng.choice(names), random_text(rng, both.texts)]) for _ in range(4)]
        text = "".join(parts)
        ids = both.python.encode(text, parse_special=True)
        assert both.cpp.encode(text, parse_special=True) == ids, repr(text)
        for skip in (True, False):
            assert both.cpp.decode(ids, skip) == both.python.decode(ids, skip), repr(text)


@pytest.mark.parametrize(
    ("name", "file"), [("llama 2", "ggml-vocab-llama-spm.gguf"), ("llama 3", "ggml-vocab-llama-bpe.gguf")]
)
def test_published_vectors(both_of, name, file):
    both, published = both_of(name), vectors(file)
    assert len(published) > 40
    for text, ids in published:
        assert both.cpp.encode(text, add_special=False) == ids, repr(text)
        check(both, text)


def test_long_runs_take_no_long_time(both_of):
    for name in ("small pieces", "small ranks"):
        for text in (" " * 50_000, "a" * 50_000, "the quick " * 5_000, "\n" * 50_000):
            check(both_of(name), text)


@pytest.mark.parametrize("text", [b"\xff", b"ab\xe2\x82", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80"])
def test_text_that_is_not_utf8_is_refused(both_of, text):
    with pytest.raises(AbiError, match="the text is not valid UTF-8: byte") as caught:
        both_of("demo").cpp.encode(text)
    assert caught.value.status == "prompt"
    assert both_of("demo").cpp.encode("ok")  # the handle is still usable


def test_nul_is_a_character(both_of):
    check(both_of("demo"), "a\x00b")


@pytest.mark.parametrize("name", ["letters", "numbers", "spaces"])
def test_classes_of_characters(name):
    """The table is tiktoken's, and tokenizers', which runs tokenizer.json, has the same classes."""
    pattern = CLASSES["CLASSES"][name]
    points = CLASSES["characters"](pattern)
    rows = [f"{{0x{first:X}, 0x{last:X}}}" for first, last in CLASSES["ranges"](points)]
    table = (REPO / "runtime/cpp/src/unicode_classes.inc").read_text()
    section = table.split(f"k_{name}[] = {{")[1].split("};")[0]
    assert [
        row.strip().rstrip(",") for row in section.replace("}, {", "},\n{").splitlines() if row.strip()
    ] == rows
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
    every = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    kept: set[int] = set()
    for start in range(0, len(every), 1 << 16):
        for piece, _ in split.pre_tokenize_str("".join(every[start : start + (1 << 16)])):
            kept.update(map(ord, piece))
    assert set(points) == set(map(ord, every)) - kept
