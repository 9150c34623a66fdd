"""Whichever files a tokenizer comes in: one account of it, or one sentence that says why not."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizer_sources import PIECES, RANKS, as_checkpoint, write_json, write_pieces, write_ranks

from llama_export.bundle.manifest import tokenizer_file, tokens
from llama_export.errors import CheckpointError
from llama_export.model import RopeConfig
from llama_export.tokenizer import open_source, write_tokenizer_files, write_tokenizer_json
from llama_runtime.manifest import TokenizerFile
from llama_runtime.tokenizer import open_tokenizer

CHAT = {"<|im_start|>": PIECES, "<|im_end|>": PIECES + 1}
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


@pytest.fixture
def pieces(tmp_path):
    """A folder with a SentencePiece model alone."""
    (tmp_path / "source").mkdir()
    write_pieces(tmp_path / "source/tokenizer.model")
    return tmp_path / "source"


@pytest.fixture
def ranks(tmp_path):
    """A folder with Meta's kind of tokenizer.model alone."""
    (tmp_path / "source").mkdir()
    write_ranks(tmp_path / "source/tokenizer.model")
    return tmp_path / "source"


def bundled(folder, vocab_size=PIECES + 8, **changes):
    """The tokenizer that our runtime opens, and tokenizer.json as others do."""
    checkpoint = as_checkpoint(folder, vocab_size, **changes)
    source, bundle = open_source(checkpoint), folder.parent / "bundle"
    bundle.mkdir(exist_ok=True)
    write_tokenizer_files(source, bundle)
    entry = tokenizer_file(source, beside=False)
    ours = open_tokenizer(bundle, entry, tokens(checkpoint, source))
    return ours, tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json")), entry


def refused(folder, *words, vocab_size=PIECES + 8, **changes):
    with pytest.raises(CheckpointError) as caught:
        open_source(as_checkpoint(folder, vocab_size, **changes))
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def edit(path, change):
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    write_json(path, document)


# Which file is which.


def test_no_tokenizer_is_none(tmp_path):
    assert open_source(as_checkpoint(tmp_path, 10)) is None


def test_pieces_alone(pieces):
    source = open_source(as_checkpoint(pieces, PIECES))
    assert (source.kind, source.runs_model, source.notes) == ("sentencepiece", True, ())
    assert source.special.bos == ("<s>", 1) and source.special.eos == ("</s>", 2)
    ours, others, entry = bundled(pieces)
    assert entry == TokenizerFile("sentencepiece", "tokenizer.model", True, False)
    assert ours.encode("the fox") == others.encode("the fox").ids


def test_ranks_alone(ranks):
    source = open_source(as_checkpoint(ranks, RANKS + 256))
    assert (source.kind, source.runs_model) == ("tiktoken", False)
    ours, others, entry = bundled(ranks, RANKS + 256)
    # Other programs would take it for SentencePiece's.
    assert sorted(path.name for path in (ranks.parent / "bundle").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert entry == TokenizerFile("tokenizers", "tokenizer.json", True, False)
    assert ours.encode("the fox") == others.encode("the fox").ids
    assert ours.encode("")[:1] == [RANKS]
    settings = json.loads((ranks.parent / "bundle/tokenizer_config.json").read_text())
    assert settings["bos_token"] == "<|begin_of_text|>" and settings["eos_token"] == "<|end_of_text|>"


def test_special_tokens_of_llama_3_and_3_1(ranks):
    names = {}
    for rope in ("default", "llama3"):
        checkpoint = as_checkpoint(ranks, RANKS + 256)
        config = dataclasses.replace(checkpoint.config, rope=RopeConfig(rope))
        checkpoint = dataclasses.replace(checkpoint, config=config)
        added = open_source(checkpoint).added_tokens
        assert [entry["id"] for entry in added] == list(range(RANKS, RANKS + 256))
        assert len({entry["content"] for entry in added}) == 256 and all(entry["special"] for entry in added)
        names[rope] = [entry["content"] for entry in added]
    for new in names.values():
        assert new[:2] == ["<|begin_of_text|>", "<|end_of_text|>"]
        assert new[6:8] == ["<|start_header_id|>", "<|end_header_id|>"] and new[9] == "<|eot_id|>"
    assert names["default"][4:6] == ["<|reserved_special_token_2|>", "<|reserved_special_token_3|>"]
    assert names["default"][8] == "<|reserved_special_token_4|>"
    assert names["default"][255] == "<|reserved_special_token_250|>"
    assert names["llama3"][4:6] == ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"]
    assert names["llama3"][8:11] == ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    assert names["llama3"][255] == "<|reserved_special_token_247|>"


def test_json_alone_is_kept_byte_for_byte(pieces):
    write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")
    (pieces / "tokenizer.model").unlink()
    text = (pieces / "tokenizer.json").read_text() + "  "
    (pieces / "tokenizer.json").write_text(text)
    ours, others, entry = bundled(pieces)
    assert (pieces.parent / "bundle/tokenizer.json").read_text() == text
    assert entry == TokenizerFile("tokenizers", "tokenizer.json", True, False)
    assert ours.encode("a  fox") == others.encode("a  fox").ids


# Two files that should say the same.


def test_an_equal_json_is_kept(pieces):
    write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")
    source = open_source(as_checkpoint(pieces, PIECES))
    assert source.author is not None and source.runs_model and not source.notes


def test_a_json_that_says_more_is_what_runs(pieces):
    """The same ids for plain texts, but the author's BOS takes the space behind it along."""
    write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")
    edit(pieces / "tokenizer.json", lambda document: document["added_tokens"][1].update(rstrip=True))
    source = open_source(as_checkpoint(pieces, PIECES))
    assert source.author is not None and not source.runs_model and not source.notes
    ours, others, entry = bundled(pieces)
    assert entry.kind == "tokenizers"
    assert ours.encode("<s>  fox", False, parse_special=True) == [1, *ours.encode("fox", False)]
    assert others.encode("<s>  fox", add_special_tokens=False).ids == [1, *ours.encode("fox", False)]


def test_a_space_in_front_of_the_first_text_only(pieces):
    """What transformers 5 writes from tokenizer.model: texts that begin with a space lose it."""
    write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")

    def first_only(document):
        document["normalizer"] = None
        scheme = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        document["pre_tokenizer"] = scheme

    edit(pieces / "tokenizer.json", first_only)
    source = open_source(as_checkpoint(pieces, PIECES))
    assert source.author is None and source.runs_model and "made anew" in source.notes[0]


def test_a_json_with_other_ids_is_made_anew_and_said(pieces):
    write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")
    edit(pieces / "tokenizer.json", lambda document: document["model"]["merges"].reverse())
    source = open_source(as_checkpoint(pieces, PIECES))
    (note,) = source.notes
    assert "tokenizer.json differs from tokenizer.model in" in note and "made anew" in note
    ours, others, _ = bundled(pieces)
    reference = SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    for text in ("the quick brown fox", "  a  b"):
        assert ours.encode(text, False) == reference.encode(text)
        assert others.encode(text, add_special_tokens=False).ids == reference.encode(text)


def test_a_json_of_another_vocabulary_is_refused(pieces):
    write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")

    def swap(document):
        vocab = document["model"]["vocab"]
        vocab["f"], vocab["t"] = vocab["t"], vocab["f"]

    edit(pieces / "tokenizer.json", swap)
    refused(pieces, "tokenizer.model", "tokenizer.json has it as", "another model")


def test_ranks_with_a_json(ranks):
    write_tokenizer_json(ranks / "tokenizer.model", ranks / "tokenizer.json")
    source = open_source(as_checkpoint(ranks, RANKS + 256))
    assert source.kind == "tiktoken" and source.author is not None and not source.notes
    edit(ranks / "tokenizer.json", lambda document: document["model"].update(ignore_merges=False, merges=[]))
    assert open_source(as_checkpoint(ranks, RANKS + 256)).author is None


# Added tokens.

DECODER = {"added_tokens_decoder": {str(i): {"content": c, **FLAGS} for c, i in CHAT.items()}}
ADDED_FILES = {
    "added_tokens.json": {"added_tokens.json": CHAT},
    "tokenizer_config.json": {"tokenizer_config.json": DECODER},
    "additional special tokens": {"tokenizer_config.json": {"additional_special_tokens": list(CHAT)}},
    "special_tokens_map.json": {
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|im_start|>"},
        "added_tokens.json": CHAT,
    },
}


@pytest.mark.parametrize("files", ADDED_FILES.values(), ids=ADDED_FILES)
@pytest.mark.parametrize("with_json", [False, True], ids=["model", "model and json"])
def test_added_tokens_are_honoured(pieces, files, with_json):
    if with_json:
        write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")
    for name, content in files.items():
        write_json(pieces / name, content)
    ours, others, entry = bundled(pieces)
    assert entry.kind == "tokenizers"
    hi = ours.encode("hi", add_special=False)
    wanted = [1, PIECES, *hi, PIECES + 1]
    assert ours.encode("<|im_start|>hi<|im_end|>", parse_special=True) == wanted
    assert others.encode("<|im_start|>hi<|im_end|>").ids == wanted
    special = files != ADDED_FILES["added_tokens.json"]
    # Without a file that calls it special, it is a word like others, and found in any text.
    assert (PIECES in ours.encode("<|im_start|>hi")) is not special
    assert ours.decode(wanted) == ("hi" if special else "<|im_start|> hi<|im_end|>")


def test_tokens_without_an_id_get_the_next_ones(pieces):
    """transformers' order: BOS, EOS, unknown, ..., padding, ..., then the nameless ones."""
    settings = {"additional_special_tokens": ["<|a|>", {"content": "<|b|>"}], "pad_token": "<pad>"}
    write_json(pieces / "tokenizer_config.json", settings)
    _, others, _ = bundled(pieces)
    assert [others.token_to_id(name) for name in ("<pad>", "<|a|>", "<|b|>")] == [
        PIECES,
        PIECES + 1,
        PIECES + 2,
    ]


def test_a_gap_between_ids_is_filled(pieces):
    write_json(pieces / "added_tokens.json", {"<pad>": PIECES + 3})
    _, others, _ = bundled(pieces)
    assert others.token_to_id("<pad>") == PIECES + 3
    assert others.get_vocab_size() == PIECES + 4


def test_reserved_names_may_be_given_away(ranks):
    """A fine-tune that calls one of Llama 3's reserved tokens something else."""
    entry = {"content": "<|im_start|>", **FLAGS}
    write_json(ranks / "tokenizer_config.json", {"added_tokens_decoder": {str(RANKS + 2): entry}})
    ours, _, _ = bundled(ranks, RANKS + 256)
    assert ours.encode("<|im_start|>", False, parse_special=True) == [RANKS + 2]


CONTRADICTIONS = {
    "one token, two ids": ({"<|im_start|>": 320}, {"321": {"content": "<|im_start|>", **FLAGS}}),
    "one id, two tokens": ({"<|im_start|>": 320}, {"320": {"content": "<|im_end|>", **FLAGS}}),
    "a piece's id": ({"<|im_start|>": 300}, {}),
    "another id for a piece": ({"</s>": 320}, {}),
}


@pytest.mark.parametrize(("added", "decoder"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_refused(pieces, added, decoder):
    write_json(pieces / "added_tokens.json", added)
    write_json(pieces / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    refused(pieces, "added_tokens.json", "another file has")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<pad>": "320"}),
        ("added_tokens.json", {"<pad>": -1}),
        ("added_tokens.json", {"": 320}),
        ("added_tokens.json", [1]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<pad>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"320": {"special": True}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("special_tokens_map.json", 3),
    ],
)
def test_malformed_lists_are_refused(pieces, name, content):
    write_json(pieces / name, content)
    refused(pieces, name)


# Sizes.


def test_a_vocabulary_that_is_larger_than_the_model_is_refused(pieces, tmp_path):
    refused(pieces, "has 320 tokens, the model knows 319", vocab_size=PIECES - 1)


def test_added_tokens_beyond_the_model_are_said(pieces):
    write_json(pieces / "added_tokens.json", {"[PAD]": PIECES})
    (note,) = open_source(as_checkpoint(pieces, PIECES)).notes
    assert "[PAD]" in note and "does not know" in note


def test_a_padded_embedding_is_fine(pieces):
    assert open_source(as_checkpoint(pieces, PIECES + 100)).notes == ()


def test_ranks_of_another_number_are_refused(ranks):
    refused(ranks, f"has {RANKS} ranks, with 256 special tokens {RANKS + 256}", vocab_size=RANKS + 257)
    lines = (ranks / "tokenizer.model").read_text().splitlines(keepends=True)
    (ranks / "tokenizer.model").write_text("".join(lines[:-1]))
    refused(ranks, f"has {RANKS - 1} ranks", vocab_size=RANKS + 256)


# BOS and EOS.


@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("add_eos", [True, False, None])
@pytest.mark.parametrize("with_json", [False, True], ids=["model", "json"])
def test_bos_and_eos_are_added_as_the_settings_say(pieces, add_bos, add_eos, with_json):
    if with_json:
        write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")
        (pieces / "tokenizer.model").unlink()
    wanted = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    named = {key: value for key, value in wanted.items() if value is not None}
    write_json(pieces / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", **named})
    ours, others, _ = bundled(pieces)
    fox = ours.encode("fox", add_special=False)
    front, behind = [1] if add_bos in (True, None) else [], [2] if add_eos else []
    assert ours.encode("fox") == [*front, *fox, *behind] == others.encode("fox").ids
    pair = others.encode("fox", "fox")
    assert pair.ids == ours.build_inputs_with_special_tokens(fox, fox)
    assert pair.type_ids == ours.create_token_type_ids_from_sequences(fox, fox)
    settings = json.loads((pieces.parent / "bundle/tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is bool(front) and settings["add_eos_token"] is bool(behind)


def test_the_tokenizers_own_eos_is_put_behind(pieces):
    write_json(pieces / "added_tokens.json", CHAT)
    write_json(pieces / "tokenizer_config.json", {"eos_token": "<|im_end|>", "add_eos_token": True})
    ours, others, _ = bundled(pieces)
    assert ours.encode("a")[-1] == PIECES + 1 == others.encode("a").ids[-1]


def test_no_space_in_front_where_the_settings_say_so(pieces):
    write_json(pieces / "tokenizer_config.json", {"add_prefix_space": False, "legacy": False})
    ours, others, entry = bundled(pieces)
    assert entry.kind == "tokenizers"
    reference = SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    assert ours.encode("fox") != [1, *reference.encode("fox")]
    assert ours.encode("fox") == others.encode("fox").ids
    assert ours.decode(ours.encode(" fox")) == " fox"
    settings = json.loads((pieces.parent / "bundle/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "legacy" not in settings and "add_prefix_space" not in settings


def test_other_tokens_around_a_text_are_refused(pieces):
    write_tokenizer_json(pieces / "tokenizer.model", pieces / "tokenizer.json")
    (pieces / "tokenizer.model").unlink()

    def template(document):
        document["post_processor"]["special_tokens"]["<s>"]["ids"] = [1, 5]
        document["post_processor"]["special_tokens"]["<s>"]["tokens"] = ["<s>", "<0x02>"]

    edit(pieces / "tokenizer.json", template)
    refused(pieces, "post_processor puts [1, 5] around a text")


def test_user_defined_pieces_without_a_space_in_front(tmp_path):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/tokenizer.model"
    write_pieces(path, user_defined_symbols=["<mask>", "fox"], add_dummy_prefix=False)
    ours, others, _ = bundled(tmp_path / "source")
    reference = SentencePieceProcessor(model_file=str(path))
    for text in ("the fox<mask> jumps", "<mask>", "foxfox over"):
        assert ours.encode(text, False) == reference.encode(text)
        assert others.encode(text, add_special_tokens=False).ids == reference.encode(text)
