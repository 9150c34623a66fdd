"""Tokens to text, seeded fuzz: whole characters only, and no part of a stop string, however it is cut."""

from __future__ import annotations

import random

import pytest
from vocabularies import small_byte_level_tokenizer_json, train_sentencepiece

from llama_runtime import SamplingOptions
from llama_runtime.manifest import TokenizerFile, Tokens
from llama_runtime.row import Row
from llama_runtime.tokenizer import open_tokenizer

WORDS = ["fox", " lazy", "🦙", "é", "日本", "\n", "\nUser:", "</s", ">", "<|eot", "_id|>", " ", "ab", "a"]


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    if request.param == "tokenizer.model":
        train_sentencepiece(folder / request.param)
        kind = "sentencepiece"
    else:
        small_byte_level_tokenizer_json(folder / request.param, ["<|eot_id|>"])
        kind = "tokenizers"
    return open_tokenizer(folder, TokenizerFile(kind, request.param, False, False), Tokens(None, (), None))


@pytest.mark.parametrize("seed", range(200))
def test_only_what_is_certain_is_shown(tokenizer, seed):
    chooser = random.Random(seed)
    # Encoded in bits and pieces, as a model may generate it; byte tokens cut characters.
    text = "x" + "".join(chooser.choices(WORDS, k=chooser.randint(1, 12)))
    cuts = sorted(chooser.sample(range(len(text) + 1), min(3, len(text))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    tokens = tokenizer.encode_parts(pieces)
    stops = tuple(
        "".join(chooser.choices(WORDS, k=chooser.randint(1, 2))) for _ in range(chooser.randint(0, 3))
    )
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text

    options = SamplingOptions(stop=stops, max_new_tokens=len(tokens))
    row, shown = Row([5], options, tokenizer=tokenizer, opens_text=True), ""
    for token in tokens:
        piece = row.push(token)
        shown += piece.text
        assert expected.startswith(shown)
        if piece.finish_reason:
            break
    assert shown == expected
    assert row.finish_reason == ("stop" if ends else "length")
