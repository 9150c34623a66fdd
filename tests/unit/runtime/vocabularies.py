"""Vocabularies for the tokenizer's tests: a small one trained here, and the real ones where they are."""

from __future__ import annotations

import base64
import gzip
import os
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

REPOSITORY = Path(__file__).resolve().parents[3]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a banana is a yellow fruit, and bananas grow in bunches",
    "seven small streams run down to the still green sea",
    "User: who are you? Assistant: i am a small model",
] * 20


def real_vocabulary(name: str) -> Path:
    """A file of the shared folder of real vocabularies, which the repository may not contain."""
    default = REPOSITORY.parent / "shared/tokenizers"
    path = Path(os.environ.get("LLAMA_EXPORT_TOKENIZERS", default)) / name
    if not path.is_file():
        pytest.skip("no real vocabularies: set LLAMA_EXPORT_TOKENIZERS to the folder that has them")
    return path


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's texts and ids."""
    # The file ends with a separator.
    *texts, _ = real_vocabulary(f"{name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = real_vocabulary(f"{name}.out").read_text().splitlines()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


def train_sentencepiece(path: Path) -> Path:
    """A 400-piece BPE model with byte fallback, as Llama's."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=file,
            model_type="bpe",
            vocab_size=400,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            minloglevel=2,
        )
    return path


def piece_tokenizer_json(model: Path, path: Path) -> Path:
    """The same vocabulary as a tokenizer.json, with a post-processor that adds BOS on its own."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [processor.id_to_piece(token) for token in range(processor.vocab_size())]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    bpe = models.BPE(vocab, _merges(vocab), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    library = tokenizers.Tokenizer(bpe)
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    library.enable_truncation(8)
    library.enable_padding(length=16)
    library.save(str(path))
    return path


def byte_level_tokenizer_json(ranks_file: Path, path: Path) -> Path:
    """Llama 3's ranks as a tokenizer.json."""
    table = _characters_of_bytes()
    lines = gzip.decompress(ranks_file.read_bytes()).splitlines()
    vocab = {}
    for line in lines:
        token, rank = line.split()
        vocab["".join(table[byte] for byte in base64.b64decode(token))] = int(rank)
    library = tokenizers.Tokenizer(models.BPE(vocab, _merges(vocab), ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    library.save(str(path))
    return path


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for token, rank in vocab.items():
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        merges += [(rank, pair) for pair in sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    return [pair for _, pair in sorted(merges, key=lambda merge: merge[0])]


def _characters_of_bytes() -> dict[int, str]:
    library = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table = {byte: library.pre_tokenize_str(chr(byte))[0][0] for byte in range(128)}
    # A two-byte character gives its lead and its continuation byte; these pairs reach all that can occur.
    for code in [*range(0x80, 0x800, 0x40), *range(0x80, 0xC0)]:
        encoded, shown = chr(code).encode(), library.pre_tokenize_str(chr(code))[0][0]
        table |= dict(zip(encoded, shown, strict=True))
    for code in [*range(0x800, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x40000)]:
        if not 0xD800 <= code < 0xE000:
            encoded, shown = chr(code).encode(), library.pre_tokenize_str(chr(code))[0][0]
            table |= dict(zip(encoded, shown, strict=True))
    return table | {byte: f"<no such byte {byte}>" for byte in range(256) if byte not in table}


def small_byte_level_tokenizer_json(path: Path, special: list[str], *, size: int = 400) -> Path:
    """A byte-level BPE trained here, split as Llama 3's, with the given special tokens behind it."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.add_special_tokens(special)
    library.save(str(path))
    return path


def metaspace_tokenizer_json(model: Path, path: Path) -> Path:
    """The same with a space in front of a whole text only (transformers' legacy=False)."""
    library = tokenizers.Tokenizer.from_file(str(piece_tokenizer_json(model, path)))
    library.normalizer = None
    library.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    library.save(str(path))
    return path
