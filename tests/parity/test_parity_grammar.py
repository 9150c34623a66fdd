"""Structured output on the demo checkpoint, through sentencepiece, piece and byte-level vocabularies."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from llama_export import pipeline
from llama_export.recipe import Recipe
from llama_runtime import Generator, SamplingOptions, load
from llama_runtime.errors import MissingExtraError, OptionError, TokenizerError
from llama_runtime.manifest import TokenizerFile
from llama_runtime.tokenizer import open_tokenizer

CHECKPOINT = Path(__file__).parents[2] / "recipes" / "tiny" / "checkpoint"
NAME = {"type": "string", "maxLength": 12}
SCHEMAS = [
    {
        "type": "object",
        "properties": {"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["cat", "dog", 7, None]}, "minItems": 1, "maxItems": 4},
    {
        "type": "object",
        "properties": {
            "kind": {"const": "story"},
            "when": {"type": "string", "pattern": "^(18|19)[0-9]{2}-(0[1-9]|1[0-2])$"},
            "who": {"type": "array", "items": {"$ref": "#/$defs/person"}, "minItems": 1, "maxItems": 2},
        },
        "required": ["kind", "when", "who"],
        "additionalProperties": False,
        "$defs": {
            "person": {
                "type": "object",
                "properties": {"name": NAME, "tall": {"type": "boolean"}},
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    },
]
PROMPTS = ["", "Once upon a time", "The answer as JSON: "]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "bundle"
    pipeline.export(CHECKPOINT, output, recipe=Recipe("flash", verify=False))
    return load(output, threads=1)


@pytest.fixture(scope="module", params=["sentencepiece", "pieces", "byte-level"])
def demo(request, bundle, tmp_path_factory):
    if request.param == "sentencepiece":
        folder, file = CHECKPOINT, TokenizerFile("sentencepiece", "tokenizer.model", True, False)
    else:
        folder, file = CHECKPOINT, TokenizerFile("tokenizers", "tokenizer.json", True, False)
    if request.param == "byte-level":
        folder = tmp_path_factory.mktemp("byte-level")
        _train_byte_level(folder / "tokenizer.json")
    return Generator(bundle.session, open_tokenizer(folder, file, bundle.manifest.tokens))


def _train_byte_level(path):
    """A byte-level vocabulary of that size: its tokens mean nothing to the model, all to the grammar."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator((CHECKPOINT.parent / "heldout.txt").read_text().splitlines(), trainer)
    library.save(str(path))


@pytest.mark.parametrize("schema", SCHEMAS, ids=["object", "enum", "nested"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_text_parses_under_its_schema(demo, schema, prompt):
    drawn = [{"temperature": 1.0, "seed": seed} for seed in range(4)]
    for options in [{}, {"temperature": 3.0, "seed": 5}, *drawn]:
        asked = SamplingOptions(json_schema=schema, max_new_tokens=200, **options)
        done = demo.generate(prompt, asked)
        assert done.finish_reason in ("stop", "eos")
        jsonschema.validate(json.loads(done.text), schema)
    assert demo.generate(prompt, SamplingOptions(json_schema=json.dumps(schema), max_new_tokens=200)).text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_regular_expressions_and_grammars(demo, prompt):
    pattern = r"(Lily|Tom) (ran|sat)( and (ran|sat)){0,2}\."
    lark = 'start: "<" WORD ("," WORD)~1..3 ">"\nWORD: /[a-zäö]{1,6}/'
    for seed in range(5):
        options = {"temperature": 2.0, "seed": seed}
        text = demo.generate(prompt, SamplingOptions(regex=pattern, **options)).text
        assert re.fullmatch(pattern, text)
        text = demo.generate(prompt, SamplingOptions(grammar=lark, **options)).text
        assert re.fullmatch(r"<[a-zäö]{1,6}(,[a-zäö]{1,6}){1,3}>", text)


def test_without_a_grammar_the_same_model_says_something_else(demo):
    assert not demo.generate("Once upon a time", SamplingOptions(max_new_tokens=20)).text.startswith("{")


def test_rows_of_a_batch_have_grammars_of_their_own(demo):
    options = [SamplingOptions(json_schema=schema, max_new_tokens=200) for schema in SCHEMAS]
    options.append(SamplingOptions(max_new_tokens=30))
    options.append(SamplingOptions(json_schema={"enum": []}))
    results = demo.generate_batch(["Once upon a time"] * 5, options)
    for schema, result in zip(SCHEMAS, results, strict=False):
        jsonschema.validate(json.loads(result.text), schema)
    assert results[3].text == demo.generate("Once upon a time", options[3]).text
    assert isinstance(results[4], OptionError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"json_schema": "{nope"}, "json_schema: not JSON"),
        ({"json_schema": "[1]"}, r"json_schema: is \[1\], needs an object"),
        ({"json_schema": "false"}, "json_schema: is false, needs an object"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 1}}, "Unsatisfiable schema: minimum"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "Unsatisfiable schema"),
        ({"json_schema": {"type": "foo"}}, "json_schema: Invalid type: foo"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "json_schema: Pointer"),
        ({"json_schema": {"not": {}}}, "json_schema: Unimplemented keys"),
        ({"regex": "a("}, "regex: .*unclosed group"),
        ({"grammar": "start: foo"}, "grammar: .*unknown name"),
    ],
)
def test_what_cannot_be_satisfied_or_parsed_is_one_sentence(demo, options, message):
    with pytest.raises(OptionError, match=message) as caught:
        demo.stream("Once", SamplingOptions(**options))
    assert "\n" not in caught.value.message and len(caught.value.message) < 350


def test_what_is_missing_is_named(demo, monkeypatch):
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Generator(demo.session, None).stream([1], SamplingOptions(regex="a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match="llguidance is not installed") as caught:
        Generator(demo.session, demo.tokenizer).stream("Once", SamplingOptions(regex="a"))
    assert caught.value.hint == "pip install 'llama-export[grammar]'"
