"""A damaged tokenizer is one sentence, whichever kind it is, and other runtimes read the same ids."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import pytest
from click.testing import CliRunner
from talking_checkpoint import CONFIG, files_in, write_talking_checkpoint
from tokenizer_sources import PIECES, RANKS, as_checkpoint, write_json, write_pieces, write_ranks

import llama_export
import llama_runtime
from llama_export.checkpoint import open_checkpoint
from llama_export.cli import main
from llama_export.errors import CheckpointError
from llama_export.parity.tokenizer_ids import compare_tokenizers
from llama_export.tokenizer import open_source, write_tokenizer_json
from llama_export.tokenizer.awkward_texts import AWKWARD_TEXTS
from llama_runtime.manifest import read_manifest


def refused(folder, *words, vocab_size=PIECES):
    with pytest.raises(CheckpointError) as caught:
        open_source(as_checkpoint(folder, vocab_size))
    assert caught.value.hint and "\n" not in caught.value.message
    for word in words:
        assert word in caught.value.message


RANK_FAULTS = {
    "wrong base64": (
        lambda lines: [*lines[:9], b"AAA 9", *lines[10:]],
        "line 10 has AAA, which is not",
    ),
    "a line of another kind": (lambda lines: [*lines[:9], b"!!", *lines[10:]], 'line 10 is "!!"'),
    "a duplicate rank": (lambda lines: [*lines[:9], lines[9].split()[0] + b" 3", *lines[10:]], "has rank 3"),
    "a duplicate token": (lambda lines: [*lines[:9], lines[3].split()[0] + b" 9", *lines[10:]], "has token"),
    "a gap": (lambda lines: [*lines[:-1], lines[-1].split()[0] + b" 999"], "is missing, the last is 999"),
    "a missing byte": (lambda lines: [b"QUFBQQ== 0", *lines[1:]], "has no rank"),
    "cut in a line": (lambda lines: [*lines[:-1], lines[-1][:3]], "line"),
    "cut between lines": (lambda lines: lines[:-3], "ranks"),
}


@pytest.mark.parametrize(("damage", "what"), RANK_FAULTS.values(), ids=RANK_FAULTS)
def test_damaged_ranks(tmp_path, damage, what):
    path = write_ranks(tmp_path / "tokenizer.model")
    path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())) + b"\n")
    refused(tmp_path, "tokenizer.model", what, vocab_size=RANKS + 256)


@pytest.mark.parametrize("data", [b"", b" \n", b"hello", b"IQ==\n", b"\x00" * 64, b"{}"])
def test_neither_kind(tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes(data)
    refused(tmp_path, "tokenizer.model")


def test_truncated_pieces_never_load(tmp_path):
    """At every byte: a cut model is refused, or (cut behind all that we read) gives the same ids."""
    whole = write_pieces(tmp_path / "whole").read_bytes()
    rng = random.Random(0)
    for cut in sorted(rng.sample(range(len(whole)), 150)):
        (tmp_path / "tokenizer.model").write_bytes(whole[:cut])
        refused(tmp_path, "tokenizer.model")


def test_changed_bytes_are_refused_or_read(tmp_path):
    """Whatever else a file says, it ends in a sentence or in a tokenizer: no other exception, no crash."""
    for write, size in ((write_pieces, PIECES), (write_ranks, RANKS + 256)):
        whole = write(tmp_path / "tokenizer.model").read_bytes()
        rng = random.Random(1)
        outcomes = set()
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path / "tokenizer.model").write_bytes(data)
            try:
                open_source(as_checkpoint(tmp_path, size))
                outcomes.add("read")
            except CheckpointError as error:
                assert "tokenizer.model" in error.message
                outcomes.add("refused")
        assert "refused" in outcomes


INVERT = {"invert": False}
JSON_FAULTS = {
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, "normalizer is Lowercase"),
    "nested": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]}},
        "normalizer is StripAccents",
    ),
    "pre_tokenizer": ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "pre_tokenizer is BertPreTokenizer"),
    "removes": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"} | INVERT},
        "removes text",
    ),
    "model": ({"model": {"type": "WordPiece", "vocab": {}}}, 'model is "WordPiece"'),
    "decoder": ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "decoder is WordPiece"),
    "no decoder": ({"decoder": None}, "decoder is missing"),
    "added": ({"added_tokens": [{"id": "x"}]}, "added_tokens has"),
}


@pytest.mark.parametrize(("changes", "what"), JSON_FAULTS.values(), ids=JSON_FAULTS)
def test_a_json_that_no_llama_has(tmp_path, changes, what):
    write_tokenizer_json(write_pieces(tmp_path / "model"), tmp_path / "tokenizer.json")
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path / "tokenizer.json", document | changes)
    refused(tmp_path, "tokenizer.json", what)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("dropout", 0.1, "dropout is 0.1"),
        ("vocab", {"a": 1, "b": 1}, "both"),
        ("vocab", {"a": -1}, "-1"),
    ],
)
def test_a_model_that_no_llama_has(tmp_path, key, value, what):
    write_tokenizer_json(write_pieces(tmp_path / "model"), tmp_path / "tokenizer.json")
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["model"][key] = value
    write_json(tmp_path / "tokenizer.json", document)
    refused(tmp_path, "tokenizer.json", what)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """A whole checkpoint with Meta's kind of tokenizer.model."""
    folder = tmp_path_factory.mktemp("ranked") / "llama3"
    write_talking_checkpoint(folder, config=dataclasses.replace(CONFIG, vocab_size=RANKS + 256))
    write_ranks(folder / "tokenizer.model")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": RANKS, "eos_token_id": RANKS + 1})
    )
    return folder


@pytest.fixture(scope="module")
def ranked_bundle(ranked, tmp_path_factory):
    return llama_export.export(ranked, tmp_path_factory.mktemp("bundle") / "llama3").output


def test_ranks_are_refused_before_any_output(ranked, tmp_path):
    checkpoint = shutil.copytree(ranked, tmp_path / "llama3")
    (checkpoint / "tokenizer.model").write_bytes((ranked / "tokenizer.model").read_bytes()[:-40])
    before = files_in(tmp_path)
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), str(tmp_path / "out")])
    assert result.exit_code == 2 and "tokenizer.model" in result.stderr.splitlines()[0]
    assert files_in(tmp_path) == before


def test_ranks_from_export_to_text(ranked, ranked_bundle):
    manifest = read_manifest(ranked_bundle)
    assert manifest.tokenizer.kind == "tokenizers" and manifest.tokens.bos_token_id == RANKS
    assert manifest.parity["passed"]
    assert [rung["name"] for rung in manifest.parity["rungs"]].count("tokenizer") == 1
    found = compare_tokenizers(ranked_bundle, manifest, open_checkpoint(ranked))
    assert (found.library, found.differing) == ("tiktoken", 0) and found.texts > 200
    generation = llama_runtime.load(ranked_bundle).generate("the fox")
    assert generation.prompt_tokens[0] == RANKS and generation.tokens


FAULTS = {
    "merges": lambda document: document["model"]["merges"].reverse(),
    "BOS": lambda document: document.update(post_processor=None),
    "split": lambda document: document["pre_tokenizer"]["pretokenizers"].pop(0),
    "special": lambda document: document["added_tokens"][9].update(content="<|eot|>"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_rung_finds_faults(ranked, ranked_bundle, tmp_path, fault):
    bundle = shutil.copytree(ranked_bundle, tmp_path / "bundle")
    document = json.loads((bundle / "tokenizer.json").read_text())
    fault(document)
    write_json(bundle / "tokenizer.json", document)
    found = compare_tokenizers(bundle, read_manifest(bundle), open_checkpoint(ranked))
    assert found.differing > 0 and found.first


@pytest.mark.parametrize("kind", ["pieces", "ranks"])
def test_transformers_reads_a_bundles_ids(kind, talking_bundle, ranked_bundle):
    from transformers import AutoTokenizer

    bundle = talking_bundle if kind == "pieces" else ranked_bundle
    ours, oracle = llama_runtime.load(bundle).tokenizer, AutoTokenizer.from_pretrained(bundle)
    for text in AWKWARD_TEXTS:
        assert oracle(text)["input_ids"] == ours.encode(text, parse_special=True), repr(text)
    assert oracle.decode(ours.encode("Banana"), skip_special_tokens=True) == ours.decode(
        ours.encode("Banana")
    )
