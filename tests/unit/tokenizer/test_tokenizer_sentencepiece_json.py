"""tokenizer.json gives SentencePiece's ids, on Llama 2's real vocabulary and on a small one made here."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import Tokenizer

from llama_export.errors import CheckpointError
from llama_export.tokenizer import write_tokenizer_json

REPO = Path(__file__).parents[3]
VOCABULARIES = Path(os.environ.get("LLAMA_EXPORT_TOKENIZERS", REPO.parent / "shared" / "tokenizers"))
LLAMA2 = VOCABULARIES / "llama2_tokenizer.model"
VECTORS = VOCABULARIES / "ggml-vocab-llama-spm.gguf.inp"
needs_llama2 = pytest.mark.skipif(
    not LLAMA2.exists(), reason="Llama 2's tokenizer.model may not be copied; set LLAMA_EXPORT_TOKENIZERS"
)


class Pair:
    """One model, read by SentencePiece and, converted, by tokenizers."""

    def __init__(self, model: Path, folder: Path):
        write_tokenizer_json(model, folder / "tokenizer.json")
        self.reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.candidate = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def check(self, text: str) -> None:
        ids = self.reference.encode(text)
        assert self.candidate.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert self.candidate.decode(ids, skip_special_tokens=False) == self.reference.decode(ids), repr(text)


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    return Pair(LLAMA2, tmp_path_factory.mktemp("llama2"))


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "tokenizer.model"
    path.write_bytes(train())
    return path


def train(**changes):
    model = io.BytesIO()
    lines = ["the cat sat on the mat with the other cats", "a hat, a bat; the rat sat", "aa aaa aaaa 12 34"]
    options = {
        "model_type": "bpe",
        "vocab_size": 300,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "num_threads": 1,
        "minloglevel": 2,
        "hard_vocab_limit": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(options | changes)
    )
    return model.getvalue()


def random_text(rng: random.Random, pieces: list[str]) -> str:
    """Mix what tokenizers stumble over: runs of spaces, newlines, digits, rare letters, emoji, controls."""
    makers = (
        lambda: " " * rng.randint(1, 20),
        lambda: rng.choice("\n\t\r") * rng.randint(1, 5),
        lambda: str(rng.randint(0, 10**9)),
        lambda: rng.choice(pieces),
        lambda: rng.choice(pieces),
        lambda: rng.choice(".,!?<>/'\"-=_▁aeo") * rng.randint(1, 12),
        lambda: chr(rng.randint(0x20, 0x24F)),
        lambda: chr(rng.randint(0x370, 0xD7FF)),
        lambda: chr(rng.randint(0x1F300, 0x1FAFF)),
        lambda: chr(rng.choice((rng.randint(0, 31), rng.randint(0xE000, 0x10FFFF)))),
        lambda: "e\u0301\u200d👩\u200d👩\u200d👧",
    )
    return "".join(rng.choice(makers)() for _ in range(rng.randint(0, 16)))


def fuzz(pair: Pair, count: int) -> None:
    rng = random.Random(20240229)
    size = pair.reference.vocab_size()
    pieces = [pair.reference.id_to_piece(index).replace("▁", " ") for index in range(259, size)]
    for _ in range(count):
        pair.check(random_text(rng, pieces))


@needs_llama2
def test_llama2_vectors(llama2):
    texts = VECTORS.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    answers = VECTORS.with_suffix(".out").read_text().split("\n")
    assert len(texts) > 40
    for text, answer in zip(texts, answers, strict=False):
        ids = llama2.candidate.encode(text, add_special_tokens=False).ids
        assert ids == [int(number) for number in answer.split()], repr(text)
        llama2.check(text)


@needs_llama2
def test_llama2_fuzz(llama2):
    fuzz(llama2, 4000)


@needs_llama2
@pytest.mark.parametrize("text", ["", " ", "Hello  world", "<0x0A>", "▁", "\0", "a" * 500, " " * 100])
def test_llama2_corners(llama2, text):
    llama2.check(text)


@needs_llama2
def test_llama2_merges_cover_every_piece(llama2):
    """A piece that no merge makes could never come out of tokenizers."""
    model = json.loads(llama2.candidate.to_str())["model"]
    made = {left + right for left, right in model["merges"]}
    assert all(name in made or len(name) == 1 for index, name in enumerate(model["vocab"]) if index >= 259)


@needs_llama2
def test_transformers_reads_the_same_ids(llama2, tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.json").write_text(llama2.candidate.to_str(), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello  world", "", "  \n\n🦙 12345", "naïve — Äpfel"):
        assert loaded(text)["input_ids"] == llama2.reference.encode(text, add_bos=True)


@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_small_vocabulary_fuzz(tmp_path, add_dummy_prefix):
    model = tmp_path / "tokenizer.model"
    model.write_bytes(train(add_dummy_prefix=add_dummy_prefix))
    fuzz(Pair(model, tmp_path), 1000)


def test_bos_is_put_in_front(small_model, tmp_path):
    pair = Pair(small_model, tmp_path)
    assert pair.candidate.encode("the cat").ids == pair.reference.encode("the cat", add_bos=True)
    assert pair.candidate.encode("").ids == [1]
    assert pair.candidate.encode("a", "b").ids.count(1) == 2


def test_special_names_in_text(small_model, tmp_path):
    """By default tokenizers reads <s> in a text as the token; SentencePiece, and we on request, as text."""
    pair = Pair(small_model, tmp_path)
    spelled = pair.reference.encode("<s>the</s>")
    assert pair.candidate.encode("<s>the</s>", add_special_tokens=False).ids[0] == 1
    pair.candidate.encode_special_tokens = True
    assert pair.candidate.encode("<s>the</s>", add_special_tokens=False).ids == spelled
    assert 1 not in spelled and 2 not in spelled


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "unigram", "vocab_size": 290}, "not a BPE model"),
        ({"byte_fallback": False, "vocab_size": 40}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises characters"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
        ({"treat_whitespace_as_suffix": True}, "puts the space behind"),
        ({"user_defined_symbols": ["<mask>"]}, "user-defined pieces"),
        ({"bos_id": -1}, "no <s>"),
    ],
)
def test_what_cannot_be_exact_is_refused(tmp_path, changes, what):
    model = tmp_path / "tokenizer.model"
    model.write_bytes(train(**changes))
    with pytest.raises(CheckpointError, match=what):
        write_tokenizer_json(model, tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "is empty"), (b"not a model", "SentencePiece model"), (b"\xff" * 100, "SentencePiece model")],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content, what):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=what):
        write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")


def test_unused_pieces_are_refused(small_model, tmp_path):
    model = proto.ModelProto()
    model.ParseFromString(small_model.read_bytes())
    model.pieces[270].type = proto.ModelProto.SentencePiece.UNUSED
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="marked as unused"):
        write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")
