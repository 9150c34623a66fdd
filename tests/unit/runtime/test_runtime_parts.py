"""Texts with special tokens between them: as the library parses the whole, but only where we say so."""

from __future__ import annotations

import random

import pytest
import tokenizers
from vocabularies import (
    metaspace_tokenizer_json,
    piece_tokenizer_json,
    small_byte_level_tokenizer_json,
    train_sentencepiece,
)

from llama_runtime.errors import PromptError
from llama_runtime.manifest import TokenizerFile, Tokens
from llama_runtime.tokenizer import open_tokenizer

TEXTS = ["the quick", " fox", "\n\nlazy  dog\n", "naïve 🦙", "a", " ", "\n", "1234 banana</s", "<s", "日本 "]


@pytest.fixture(scope="module", params=["pieces", "metaspace", "bytes"])
def vocabulary(request, tmp_path_factory):
    """A tokenizer.json of each kind, its two special tokens, and ours over it."""
    folder = tmp_path_factory.mktemp(request.param)
    path, specials = folder / "tokenizer.json", ["<s>", "</s>"]
    if request.param == "bytes":
        specials = ["<|begin_of_text|>", "<|eot_id|>"]
        small_byte_level_tokenizer_json(path, specials)
    else:
        write = piece_tokenizer_json if request.param == "pieces" else metaspace_tokenizer_json
        write(train_sentencepiece(folder / "tokenizer.model"), path)
    library = tokenizers.Tokenizer.from_file(str(path))
    library.no_padding()
    library.no_truncation()
    file = TokenizerFile("tokenizers", path.name, False, False)
    ours = open_tokenizer(folder, file, Tokens(None, (), None))
    return library, [(name, library.token_to_id(name)) for name in specials], ours


def test_parts_are_what_the_library_parses_in_the_whole(vocabulary):
    library, specials, ours = vocabulary
    for seed in range(300):
        chooser = random.Random(seed)
        names, parts = "", []
        for _ in range(chooser.randint(1, 4)):
            text = "".join(chooser.choices(TEXTS, k=chooser.randint(0, 2)))
            name, token = chooser.choice(specials)
            # The library opens a text in front of the first special token only where there is one.
            names, parts = names + text + name, [*parts, text, token]
        ids = library.encode(names, add_special_tokens=False).ids
        assert ours.encode_parts(parts) == ids, names


def test_the_special_tokens_are_known_by_name(vocabulary):
    _, specials, ours = vocabulary
    for name, token in specials:
        assert ours.vocabulary.added_tokens[name] == token
        assert token in ours.vocabulary.special_ids


def test_a_special_token_in_a_text_is_text(vocabulary):
    _, specials, ours = vocabulary
    for name, token in specials:
        ids = ours.encode_parts([f"the {name} fox", token, name])
        assert ids.count(token) == 1
        between = ids.index(token)
        assert ours.decode(ids[:between]) == f"the {name} fox"
        assert ours.decode(ids[between:]) == name


def test_a_text_in_pieces_has_no_space_between_them(vocabulary):
    _, _, ours = vocabulary
    for left, right in (("the qu", "ick fox"), ("banana", " is"), ("a", "\n"), ("x", "\0y")):
        ids = ours.encode_parts([left, "", right])
        assert ours.decode(ids) == left + right
        assert ids[: len(ours.encode(left))] == ours.encode(left)


def test_sentencepiece_opens_a_text_behind_every_special_token(tmp_path):
    """As Meta encodes each turn of a Llama 2 dialogue, by itself, and joins the ids."""
    train_sentencepiece(tmp_path / "tokenizer.model")
    file = TokenizerFile("sentencepiece", "tokenizer.model", True, False)
    ours = open_tokenizer(tmp_path, file, Tokens(1, (2,), None))
    ids = ours.encode_parts([1, "the fox ", 2, 1, "a dog"])
    fox, dog = ours.encode("the fox ", add_special=False), ours.encode("a dog", add_special=False)
    assert ids == [1, *fox, 2, 1, *dog]
    assert ours.vocabulary.added_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert ours.decode(ours.encode_parts(["the qu", "ick"])) == "the quick"


def test_a_lone_surrogate_in_a_part_is_refused(vocabulary):
    with pytest.raises(PromptError, match="not valid UTF-8"):
        vocabulary[2].encode_parts(["fine", "\ud800"])
