"""Llama 3's ``tokenizer.model`` as Meta publishes it: not SentencePiece, but lines of ``base64 rank``.

The file holds byte sequences alone. Where text is cut before they are joined, and what the 256 special
tokens behind them are called, is in Meta's code, so both stand here.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, shown
from llama_export.errors import CheckpointError
from llama_runtime.vocabulary import byte_of_character

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = 256
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,9})")
# By id, counted from the end of the ranks; None is the next of the reserved ones.
_LLAMA_3 = [BOS, EOS, None, None, None, None, "<|start_header_id|>", "<|end_header_id|>", None, "<|eot_id|>"]
_LLAMA_3_1 = [
    *(BOS, EOS, None, None, "<|finetune_right_pad_id|>", None, "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]


def is_rank_file(data: bytes) -> bool:
    """Whether a file begins as a rank file does; a SentencePiece model never has such a line."""
    return _LINE.fullmatch(data[:4096].partition(b"\n")[0].rstrip(b"\r")) is not None


def parse_ranks(data: bytes, name: str) -> dict[bytes, int]:
    """Read all lines, in the order of their ranks.

    Args:
        data: The file.
        name: What messages call it.

    Raises:
        CheckpointError: A line is malformed, a token or rank occurs twice, a rank or a byte is missing.
    """
    ranks: dict[bytes, int] = {}
    token_of: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise _damaged(name, number, f"is {shown(line.decode('latin-1'))}, must be base64 and a rank")
        try:
            token = base64.b64decode(match[1], validate=True)
        except binascii.Error as error:
            raise _damaged(name, number, f"has {match[1].decode()}, which is not base64") from error
        rank = int(match[2])
        if rank in token_of or token in ranks:
            what = f"rank {rank}" if rank in token_of else f"token {match[1].decode()}"
            raise _damaged(name, number, f"has {what}, which an earlier line has")
        ranks[token], token_of[rank] = rank, token
    missing = next(rank for rank in range(len(ranks) + 1) if rank not in token_of)
    if missing != len(ranks):
        found = f"rank {missing} is missing, the last is {max(token_of)}"
        raise CheckpointError(f"{name}: {found}", DOWNLOAD_AGAIN)
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise CheckpointError(f"{name}: byte {byte} has no rank, every byte needs one", DOWNLOAD_AGAIN)
    return {token_of[rank]: rank for rank in range(len(ranks))}


def special_names(*, llama_3_1: bool) -> list[str]:
    """The names of the 256 tokens behind the ranks, as in the ``tokenizer.json`` that Meta publishes.

    Args:
        llama_3_1: Llama 3.1 and later put names of their own in the place of reserved ones.
    """
    named = _LLAMA_3_1 if llama_3_1 else _LLAMA_3
    reserved = (f"<|reserved_special_token_{index}|>" for index in range(SPECIAL_TOKENS))
    return [name or next(reserved) for name in [*named, *[None] * (SPECIAL_TOKENS - len(named))]]


def rank_names(ranks: dict[bytes, int]) -> dict[bytes, str]:
    """How ``tokenizer.json`` writes the tokens: one character for each byte."""
    character_of = {byte: character for character, byte in byte_of_character().items()}
    return {token: "".join(map(character_of.__getitem__, token)) for token in ranks}


def rank_parts(ranks: dict[bytes, int]) -> dict[str, Any]:
    """Say in ``tokenizer.json``'s terms what the ranks do, without special tokens.

    tiktoken takes a part that has a rank whole, and else joins the neighbours whose joint bytes have the
    lowest rank; tokenizers does the former when told to ignore merges, and the latter from a list of pairs.
    """
    name_of = rank_names(ranks)
    pairs: list[list[str]] = []
    for token in ranks:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        pairs += [[name_of[left], name_of[right]] for left, right in known]
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    to_characters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_characters]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {name_of[token]: rank for token, rank in ranks.items()},
            "merges": pairs,
        },
    }


def _damaged(name: str, number: int, what: str) -> CheckpointError:
    return CheckpointError(f"{name}: line {number} {what}", DOWNLOAD_AGAIN)
