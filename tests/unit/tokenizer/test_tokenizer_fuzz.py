"""The bundle's ids against sentencepiece and tiktoken: published vectors and seeded random texts."""

from __future__ import annotations

import gzip
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiktoken
import tokenizers
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
from llama_export.tokenizer import open_source, write_tokenizer_files
from llama_export.tokenizer.rank_file import SPLIT
from llama_runtime.streaming import TextStream
from llama_runtime.tokenizer import Tokenizer, open_tokenizer

LLAMA2, LLAMA3 = "llama2_tokenizer.model", "llama3_tokenizer.model.gz"
VOCABULARY_NAMES = ["small pieces", "small ranks", "llama 2", "llama 3"]


@dataclass(frozen=True)
class Bundle:
    """A bundle's tokenizer files, what our runtime opens of them, and the library that defines the ids."""

    ours: Tokenizer
    others: tokenizers.Tokenizer
    reference: SentencePieceProcessor | tiktoken.Encoding
    texts: list[str]

    def wanted(self, text: str) -> list[int]:
        if isinstance(self.reference, tiktoken.Encoding):
            return self.reference.encode_ordinary(text)
        return list(self.reference.encode(text))

    def check(self, text: str) -> None:
        wanted = self.wanted(text)
        assert self.ours.encode(text, add_special=False) == wanted, repr(text)
        self.others.encode_special_tokens = True
        assert self.others.encode(text, add_special_tokens=False).ids == wanted, repr(text)
        assert self.others.encode(text).ids == self.ours.encode(text), repr(text)
        whole = self.ours.decode(wanted)
        assert whole == self.reference.decode(wanted), repr(text)
        assert stream(self.ours, wanted) == whole, repr(text)
        assert "\ufffd" not in whole or "\ufffd" in text, repr(text)

    def check_ids(self, ids: list[int]) -> None:
        whole = self.ours.decode(ids)
        assert whole == self.reference.decode(ids), ids
        assert stream(self.ours, ids) == whole, ids


def stream(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Piece by piece; only what is invalid may show as broken, so no piece may end in half a character."""
    pieces = TextStream(tokenizer)
    return "".join([*(pieces.push(token) for token in ids), pieces.flush()])


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    made: dict[str, Bundle] = {}

    def bundle(name: str) -> Bundle:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("bundle"))
        return made[name]

    return bundle


def make(name: str, source: Path, bundle: Path) -> Bundle:
    path = source / "tokenizer.model"
    if name.startswith("small"):
        (write_pieces if name == "small pieces" else write_ranks)(path)
    else:
        data = real_vocabulary(LLAMA2 if name == "llama 2" else LLAMA3).read_bytes()
        path.write_bytes(data if name == "llama 2" else gzip.decompress(data))
    sizes = {"small pieces": PIECES, "small ranks": RANKS + 256, "llama 2": 32000, "llama 3": 128256}
    checkpoint = as_checkpoint(source, sizes[name], raw_config={})
    opened = open_source(checkpoint)
    write_tokenizer_files(opened, bundle)
    reference: SentencePieceProcessor | tiktoken.Encoding
    if opened.kind == "sentencepiece":
        reference = SentencePieceProcessor(model_file=str(path))
    else:
        lines = (line.split() for line in path.read_bytes().splitlines())
        ranks = {tiktoken_bytes(token): int(rank) for token, rank in lines}
        reference = tiktoken.Encoding("x", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    others = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    ours = open_tokenizer(bundle, tokenizer_file(opened, beside=False), tokens(checkpoint, opened))
    return Bundle(ours, others, reference, opened.texts())


def tiktoken_bytes(token: bytes) -> bytes:
    import base64

    return base64.b64decode(token)


def fuzz(bundle: Bundle, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        bundle.check(random_text(rng, bundle.texts))


def fuzz_ids(bundle: Bundle, seed: int, count: int) -> None:
    """Any ids, most of them no text that anybody would write, many of them cut characters."""
    rng = random.Random(seed)
    if isinstance(bundle.reference, tiktoken.Encoding):
        cut = [bundle.reference.encode_single_token(bytes([byte])) for byte in range(128, 256)]
        plain = range(bundle.reference.n_vocab)
    else:
        cut, plain = list(range(3 + 128, 3 + 256)), range(3, bundle.reference.vocab_size())
    for _ in range(count):
        runs = [rng.choices(plain if rng.random() < 0.6 else cut, k=rng.randint(1, 4)) for _ in range(4)]
        bundle.check_ids([token for run in runs for token in run])


@pytest.mark.parametrize("name", VOCABULARY_NAMES)
def test_random_texts_and_ids(bundle_of, name):
    fuzz(bundle_of(name), 20240418, 1000)
    fuzz_ids(bundle_of(name), 20240418, 500)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", VOCABULARY_NAMES)
def test_many_random_texts_and_ids(bundle_of, name, seed):
    fuzz(bundle_of(name), seed, 2500)
    fuzz_ids(bundle_of(name), seed, 1000)


@pytest.mark.parametrize(
    ("name", "file"), [("llama 2", "ggml-vocab-llama-spm.gguf"), ("llama 3", "ggml-vocab-llama-bpe.gguf")]
)
def test_published_vectors(bundle_of, name, file):
    bundle = bundle_of(name)
    published = vectors(file)
    assert len(published) > 40
    for text, ids in published:
        assert bundle.ours.encode(text, add_special=False) == ids, repr(text)
        bundle.check(text)


def test_llama2_by_hand(bundle_of):
    ours = bundle_of("llama 2").ours
    assert ours.encode("Hello  world") == [1, 15043, 29871, 3186]
    assert ours.decode(ours.encode("Banana")) == "Banana"
    assert ours.encode("") == [1]


def test_llama3_by_hand(bundle_of):
    ours = bundle_of("llama 3").ours
    assert ours.encode("Hello world") == [128000, 9906, 1917]
    turn = "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    assert ours.encode(turn, parse_special=True) == [128000, 128006, 882, 128007, 271, 6151, 128009]
    assert not {128006, 128007, 128009} & set(ours.encode(turn))
    assert ours.encode("<|reserved_special_token_250|>", False, parse_special=True) == [128255]
    assert ours.decode([128000, 9906, 1917, 128009]) == "Hello world"
