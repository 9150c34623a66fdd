"""Train the demo checkpoint's SentencePiece vocabulary, with Llama 2's conventions."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

VOCAB_SIZE = 1024
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def train_tokenizer(texts: Iterable[str], output: Path) -> None:
    """Train a BPE model with byte fallback and write ``tokenizer.model``.

    Ids are Llama 2's: <unk> 0, <s> 1, </s> 2, then 256 byte pieces. Text is not normalised, digits stand
    alone, and a space is put in front. Every printable ASCII character has a piece, so that a person may
    type anything; a newline is a byte piece, as in Llama 2.

    Args:
        texts: What to learn from; lines with letters beyond ASCII are left to the byte pieces.
        output: The file to write; the same texts always make the same bytes.
    """
    lines = [line for text in texts for line in text.splitlines() if line.isascii()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars=PRINTABLE,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    output.write_bytes(model.getvalue())
