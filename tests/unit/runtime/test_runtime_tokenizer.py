"""Encoding and decoding against sentencepiece, tokenizers and llama.cpp's vectors; streaming against both."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import sentencepiece
import tokenizers
from vocabularies import (
    byte_level_tokenizer_json,
    piece_tokenizer_json,
    real_vocabulary,
    train_sentencepiece,
    vectors,
)

from llama_runtime.errors import PromptError, TokenizerError
from llama_runtime.manifest import TokenizerFile, Tokens
from llama_runtime.streaming import TextStream
from llama_runtime.tokenizer import open_tokenizer

IDS = Tokens(bos_token_id=1, eos_token_ids=(2, 5), pad_token_id=None)
TEXTS = [
    "",
    " ",
    "  ",
    "Banana",
    " banana",
    "the  quick   brown",
    "fox\njumps\t\tover",
    "grüße, 日本語 and 🦙🏽",
    "<s> </s> <unk> <0x0A>",
    "nul\x00 inside",
    "▁ already",
    "e\u0301 \u200d \ufffd",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    model = train_sentencepiece(folder / "tokenizer.model")
    piece_tokenizer_json(model, folder / "tokenizer.json")
    return folder


def _open(folder, kind, add_bos=True, add_eos=False):
    name = "tokenizer.model" if kind == "sentencepiece" else "tokenizer.json"
    return open_tokenizer(folder, TokenizerFile(kind, name, add_bos, add_eos), IDS)


def _stream(tokenizer, ids, **options):
    stream = TextStream(tokenizer, **options)
    return [stream.push(token) for token in ids] + [stream.flush()]


KINDS = ["sentencepiece", "tokenizers"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_both_libraries_obey_one_rule(folder, kind, text):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = _open(folder, kind).encode(text)
    assert ids == [1, *reference.encode(text)]
    assert _open(folder, kind, add_bos=False, add_eos=True).encode(text) == [*ids[1:], 2]
    assert _open(folder, kind).encode(text, add_special=False) == ids[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_in_a_text_are_text(folder, kind):
    ids = _open(folder, kind).encode("<s>hello</s>")
    assert ids.count(1) == 1 and 2 not in ids


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_parsed_where_asked(folder, kind):
    tokenizer = _open(folder, kind, add_bos=False)
    hello, world = tokenizer.encode("hello"), tokenizer.encode(" world")
    assert tokenizer.encode("<s>hello</s> world", parse_special=True) == [1, *hello, 2, *world]
    assert tokenizer.encode("</s>", parse_special=True) == [2]
    assert tokenizer.encode("", parse_special=True) == []
    assert tokenizer.encode("<s><s>", parse_special=True) == [1, 1]
    assert tokenizer.encode("<s", parse_special=True) == tokenizer.encode("<s")
    assert _open(folder, kind).encode("hello", parse_special=True) == [1, *hello]
    # Asking once leaves no trace.
    assert 1 not in tokenizer.encode("<s>hello")


@pytest.mark.parametrize("kind", KINDS)
def test_threads_may_share_a_tokenizer(folder, kind):
    tokenizer, text = _open(folder, kind, add_bos=False), "<s>the quick brown fox</s>" * 50
    wanted = {parse: tokenizer.encode(text, parse_special=parse) for parse in (True, False)}
    assert wanted[True] != wanted[False]
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda i: tokenizer.encode(text, parse_special=i % 2 == 0), range(200))
        assert all(ids == wanted[i % 2 == 0] for i, ids in enumerate(got))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(folder, kind, text):
    tokenizer = _open(folder, kind, add_eos=True)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")
    assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


def _random_ids(seed, size, invalid=True):
    chooser = random.Random(seed)
    runs = []
    for _ in range(chooser.randint(1, 12)):
        kind = chooser.random()
        if kind < 0.4:
            runs += chooser.choices(range(3, size), k=chooser.randint(1, 4))
        elif kind < 0.7 and invalid:
            runs += [3 + byte for byte in chooser.choices(range(0x80, 0x100), k=chooser.randint(1, 5))]
        else:
            runs += [3 + byte for byte in chooser.choice("é€🦙日").encode()]
    return runs


def test_any_ids_decode_as_sentencepiece_does(folder):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = _open(folder, "sentencepiece")
    for seed in range(2000):
        ids = _random_ids(seed, reference.vocab_size())
        assert tokenizer.decode(ids) == reference.decode(ids), ids
        assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_valid_ids_decode_as_tokenizers_does(folder):
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = _open(folder, "tokenizers")
    for seed in range(500):
        ids = tokenizer.encode("".join(random.Random(seed).choices("abn é🦙\n", k=20)))
        assert tokenizer.decode(ids) == reference.decode(ids), ids


@pytest.mark.parametrize("kind", KINDS)
def test_streaming_never_shows_a_broken_character(folder, kind):
    tokenizer = _open(folder, kind)
    byte_ids = [3 + byte for byte in "🦙".encode()]
    assert _stream(tokenizer, byte_ids) == ["", "", "", "🦙", ""]
    assert _stream(tokenizer, byte_ids[:3]) == ["", "", "", "\ufffd\ufffd\ufffd"]
    # The next token shows that the character will not be completed.
    assert _stream(tokenizer, [*byte_ids[:2], *tokenizer.encode("x", False)[-1:]])[2].startswith(
        "\ufffd\ufffd"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_keeps_the_space_that_an_opening_loses(folder, kind):
    tokenizer = _open(folder, kind)
    ids = tokenizer.encode("banana", add_special=False)
    assert "".join(_stream(tokenizer, ids)) == "banana"
    assert "".join(_stream(tokenizer, ids, opens_text=False)) == " banana"
    assert "".join(_stream(tokenizer, [1, *ids, 2])) == "banana"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_left_out_or_shown(folder, kind):
    tokenizer = _open(folder, kind)
    assert tokenizer.decode([0]) == "" and tokenizer.decode([0], skip_special=False) == "<unk>"
    ids = tokenizer.encode("banana")
    assert tokenizer.decode([*ids, 2]) == "banana"
    assert tokenizer.decode([*ids, 2], skip_special=False) == "<s> banana</s>"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_vocabulary_stand_for_no_text(folder, kind):
    tokenizer = _open(folder, kind)
    assert tokenizer.decode([10**6, *tokenizer.encode("banana"), -1]) in ("banana", " banana")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_surrogate_is_refused(folder, kind):
    with pytest.raises(PromptError, match=r"not valid UTF-8: character 2 is '\\udcff'"):
        _open(folder, kind).encode("ab\udcff")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contents", [None, b"", b"garbage" * 50, b"{}", b'{"model": 3'])
def test_a_corrupt_vocabulary_is_one_sentence(tmp_path, kind, contents):
    name = "tokenizer.model" if kind == "sentencepiece" else "tokenizer.json"
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(TokenizerError, match=name):
        _open(tmp_path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_vocabulary_is_refused(folder, tmp_path, kind):
    name = "tokenizer.model" if kind == "sentencepiece" else "tokenizer.json"
    contents = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(contents[: len(contents) // 2 + 1])
    with pytest.raises(TokenizerError):
        _open(tmp_path, kind)


def test_an_unknown_decoder_is_refused_by_name(folder, tmp_path):
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.decoder = tokenizers.decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="decoder is WordPiece"):
        _open(tmp_path, "tokenizers")


def test_bos_without_an_id_is_refused(folder):
    file = TokenizerFile("sentencepiece", "tokenizer.model", True, False)
    with pytest.raises(TokenizerError, match="add_bos is true"):
        open_tokenizer(folder, file, Tokens(None, (2,), None))


# What transformers 4.45's LlamaTokenizer(legacy=False) says, by add_bos and add_eos: ids, token types, mask.
SEQUENCES = {
    (True, True): {
        ((7, 8), None): ([1, 7, 8, 2], [0, 0, 0, 0], [1, 0, 0, 1]),
        ((), None): ([1, 2], [0, 0], [1, 1]),
        ((7, 8), (9,)): ([1, 7, 8, 2, 1, 9, 2], [0, 0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0, 1]),
        ((7,), ()): ([1, 7, 2, 1, 2], [0, 0, 0, 1, 1], [1, 0, 1, 1, 1]),
    },
    (True, False): {
        ((7, 8), None): ([1, 7, 8], [0, 0, 0], [1, 0, 0]),
        ((7, 8), (9,)): ([1, 7, 8, 1, 9], [0, 0, 0, 1, 1], [1, 0, 0, 1, 0]),
        ((7,), ()): ([1, 7, 1], [0, 0, 1], [1, 0, 1]),
    },
    (False, True): {
        ((), None): ([2], [0], [1]),
        ((7, 8), (9,)): ([7, 8, 2, 9, 2], [0, 0, 0, 1, 1], [0, 0, 1, 0, 1]),
        ((7,), ()): ([7, 2, 2], [0, 0, 1], [0, 1, 1]),
    },
    (False, False): {
        ((7, 8), None): ([7, 8], [0, 0], [0, 0]),
        ((), None): ([], [], []),
        ((7, 8), (9,)): ([7, 8, 9], [0, 0, 1], [0, 0, 0]),
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("add_bos", "add_eos"), SEQUENCES)
def test_sequences_and_pairs_are_as_in_transformers(folder, kind, add_bos, add_eos):
    opened = _open(folder, kind, add_bos, add_eos)
    updated = _open(folder, kind).update_post_processor(add_bos=add_bos, add_eos=add_eos)
    assert opened.encode("the fox") == updated.encode("the fox")
    for tokenizer in (opened, updated):
        for (ids, pair), (built, types, mask) in SEQUENCES[add_bos, add_eos].items():
            assert tokenizer.build_inputs_with_special_tokens(ids, pair) == built
            assert tokenizer.create_token_type_ids_from_sequences(ids, pair) == types
            assert tokenizer.get_special_tokens_mask(ids, pair) == mask


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_of_a_finished_sequence(folder, kind):
    tokenizer = _open(folder, kind)
    assert tokenizer.get_special_tokens_mask([1, 7, 0, 2, 300], None, True) == [1, 0, 1, 1, 0]
    with pytest.raises(PromptError, match="a pair is given"):
        tokenizer.get_special_tokens_mask([1], [2], True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_saved_as_its_file(folder, tmp_path, kind):
    tokenizer = _open(folder, kind)
    name = tokenizer.path.name
    assert tokenizer.save_vocabulary(tmp_path) == (str(tmp_path / name),)
    assert tokenizer.save_vocabulary(str(tmp_path), "x") == (str(tmp_path / f"x-{name}"),)
    assert {path.name for path in tmp_path.iterdir()} == {name, f"x-{name}"}
    assert (
        (tmp_path / name).read_bytes() == (tmp_path / f"x-{name}").read_bytes() == tokenizer.path.read_bytes()
    )
    # Onto itself: nothing is lost.
    before = tokenizer.path.read_bytes()
    assert tokenizer.save_vocabulary(folder) == (str(folder / name),)
    assert tokenizer.path.read_bytes() == before
    with pytest.raises(TokenizerError, match="no such folder"):
        tokenizer.save_vocabulary(tmp_path / "none")


def test_eos_without_an_id_is_refused(folder):
    opened = open_tokenizer(
        folder, TokenizerFile("sentencepiece", "tokenizer.model", True, False), Tokens(1, (), None)
    )
    with pytest.raises(TokenizerError, match="add_eos is true"):
        opened.update_post_processor(add_bos=True, add_eos=True)


def test_llama2_vocabulary():
    path = real_vocabulary("llama2_tokenizer.model")
    tokenizer = open_tokenizer(path.parent, TokenizerFile("sentencepiece", path.name, True, False), IDS)
    assert tokenizer.encode("Hello  world") == [1, 15043, 29871, 3186]
    assert tokenizer.decode(tokenizer.encode("Banana")) == "Banana"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text, ids in vectors("ggml-vocab-llama-spm.gguf"):
        assert tokenizer.encode(text, add_special=False) == ids
        assert tokenizer.decode(ids) == "".join(_stream(tokenizer, ids)) == reference.decode(ids)
    for seed in range(1000):
        ids = _random_ids(seed, 32000)
        assert tokenizer.decode(ids) == "".join(_stream(tokenizer, ids)) == reference.decode(ids)


def test_llama3_vocabulary(tmp_path):
    byte_level_tokenizer_json(real_vocabulary("llama3_tokenizer.model.gz"), tmp_path / "tokenizer.json")
    file = TokenizerFile("tokenizers", "tokenizer.json", True, False)
    tokenizer = open_tokenizer(tmp_path, file, Tokens(128000, (128001,), None))
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, ids in vectors("ggml-vocab-llama-bpe.gguf"):
        assert tokenizer.encode(text) == [128000, *ids]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 128000 not in tokenizer.encode("<|begin_of_text|>", add_special=False)
    for seed in range(1000):
        ids = random.Random(seed).choices(range(128002), k=12)
        assert tokenizer.decode(ids) == reference.decode(ids) == "".join(_stream(tokenizer, ids))
