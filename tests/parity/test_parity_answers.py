"""Final answers against transformers: embeddings, labels, tags and spans, from Python and the CLI."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_heads import write_head_checkpoint
from tokenizers.processors import TemplateProcessing

import llama_runtime
from llama_export import pipeline
from llama_export.cli import main
from llama_export.recipe import Recipe

TEXTS = ["once upon a time", "the sea", "seven small streams run down to the still green sea and wind"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoint of a task, transformers' model and tokenizer for it, and the bundle; made once each."""
    import transformers

    done = {}

    def make(task, **changes):
        key = task, json.dumps(changes)
        if key not in done:
            root = tmp_path_factory.mktemp("answers")
            oracle = write_head_checkpoint(root / "from", task, **changes)
            bundle = pipeline.export(root / "from", root / "to", recipe=Recipe("flash")).output
            # The class that reads tokenizer.json as it is: FACTS on Llama's own one in transformers 5.
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_file=str(bundle / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
            )
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )
            done[key] = oracle, tokenizer, bundle
        return done[key]

    return make


def rows_of(bundle):
    """Our tokens, BOS included: the same ones go to both."""
    manifest = llama_runtime.read_manifest(bundle)
    tokenizer = llama_runtime.open_tokenizer(bundle, manifest.tokenizer, manifest.tokens)
    return [tokenizer.encode(text) for text in TEXTS]


def lines(*arguments, stdin=None):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_embeddings(made):
    oracle, _, bundle = made("feature-extraction")
    embedder = llama_runtime.load_embedder(bundle, threads=1)
    with torch.no_grad():
        states = [oracle(torch.tensor([row])).last_hidden_state[0].numpy() for row in rows_of(bundle)]
    want = {
        "mean": [row.mean(axis=0) for row in states],
        "last": [row[-1] for row in states],
        "cls": [row[0] for row in states],
    }
    for pooling, vectors in want.items():
        got = embedder.embed(TEXTS, pooling=pooling)
        assert np.abs(got - vectors).max() <= 1e-4 * np.abs(vectors).max()
        unit = torch.nn.functional.normalize(torch.from_numpy(np.array(vectors)), dim=1).numpy()
        assert np.abs(embedder.embed(TEXTS, pooling=pooling, normalize=True) - unit).max() <= 1e-4
    for got, row in zip(embedder.hidden_states(TEXTS), states, strict=True):
        assert np.abs(got - row).max() <= 1e-4 * np.abs(row).max()
    shown = [json.loads(line) for line in lines("embed", bundle, "--json", stdin="\n".join(TEXTS))]
    assert [item["text"] for item in shown] == TEXTS
    assert np.allclose([item["embedding"] for item in shown], embedder.embed(TEXTS), atol=1e-5)
    assert len(lines("embed", bundle, "--pooling", "none", TEXTS[0])) == len(states[0])


CLASSIFIERS = [
    {},
    {"problem_type": "multi_label_classification"},
    {"id2label": {0: "reward"}},
    {"id2label": {0: "reward"}, "problem_type": "regression", "pad_token_id": None},
]


@pytest.mark.parametrize("changes", CLASSIFIERS, ids=["softmax", "sigmoid", "reward", "regression"])
def test_labels_are_those_of_transformers_pipeline(made, changes):
    from transformers import pipeline as transformers_pipeline

    oracle, tokenizer, bundle = made("text-classification", **changes)
    classifier = llama_runtime.load_classifier(bundle, threads=1)
    found = classifier.classify(TEXTS)
    theirs = transformers_pipeline("text-classification", model=oracle, tokenizer=tokenizer)
    for text, row, result in zip(TEXTS, rows_of(bundle), found, strict=True):
        with torch.no_grad():
            logits = oracle(torch.tensor([row])).logits[0].numpy()
        assert np.abs(result.logits - logits).max() <= 1e-4 * np.abs(logits).max()
        want = theirs.postprocess({"logits": torch.from_numpy(logits)[None]}, top_k=None, _legacy=False)
        assert result.label == want[0]["label"], text
        ours = dict(result.scores)
        assert all(math.isclose(ours[item["label"]], item["score"], abs_tol=1e-4) for item in want)
    shown = [json.loads(line) for line in lines("classify", bundle, *TEXTS, "--json", "--batch-size", 2)]
    assert [item["label"] for item in shown] == [result.label for result in found]
    raw = lines("classify", bundle, *TEXTS, "--function", "none")
    assert [float(line.split("\t")[0]) for line in raw] == pytest.approx(
        [float(result.logits.max()) for result in found], abs=1e-4
    )


def test_tags_are_made_of_the_tokens_that_transformers_pipeline_tags(made):
    """Its own words are not ours: it counts a lone space as a word, and one in front as its first token."""
    from transformers import pipeline as transformers_pipeline

    oracle, tokenizer, bundle = made("token-classification")
    tagger = llama_runtime.load_tagger(bundle, threads=1)
    theirs = transformers_pipeline("token-classification", model=oracle, tokenizer=tokenizer)
    found = {how: tagger.tag(TEXTS, aggregation=how) for how in ("first", "max")}
    for index, text in enumerate(TEXTS):
        tokens = theirs(text, ignore_labels=[])
        for first, surest in zip(found["first"][index], found["max"][index], strict=True):
            assert text[first.start : first.end] == first.text == surest.text
            # Their offsets may begin with the space in front; a token of spaces alone belongs to no word.
            inside = [t for t in tokens if first.start < t["end"] <= first.end and t["word"] != "\u2581"]
            assert first.label == inside[0]["entity"]
            assert math.isclose(first.score, inside[0]["score"], abs_tol=1e-4)
            best = max(inside, key=lambda token: token["score"])
            assert surest.label == best["entity"]
            assert math.isclose(surest.score, best["score"], abs_tol=1e-4)
        assert [word.text for word in found["first"][index]] == text.split()
    shown = [json.loads(line) for line in lines("tag", bundle, "--json", stdin="\n".join(TEXTS))]
    assert [len(item["tags"]) for item in shown] == [len(text.split()) for text in TEXTS]
    assert lines("tag", bundle, TEXTS[1])[0].startswith("the\t")


def test_answers_are_the_best_of_all_spans(made):
    oracle, _, bundle = made("question-answering")
    answerer = llama_runtime.load_answerer(bundle, threads=1)
    manifest = llama_runtime.read_manifest(bundle)
    tokenizer = llama_runtime.open_tokenizer(bundle, manifest.tokenizer, manifest.tokens)
    pairs = [("where is the fox", TEXTS[2]), ("what", "a small red fox by the sea"), ("the time", TEXTS[0])]
    for (question, context), answer in zip(pairs, answerer.answer(pairs), strict=True):
        asked, given = tokenizer.encode(question), tokenizer.encode(context)
        first = len(asked) + 1  # behind the context's BOS
        with torch.no_grad():
            out = oracle(torch.tensor([asked + given]))
        begins, ends = out.start_logits[0, first:].softmax(0), out.end_logits[0, first:].softmax(0)
        spans = {
            (i, j): float(begins[i] * ends[j])
            for i in range(len(begins))
            for j in range(i, min(i + 15, len(ends)))
        }
        i, j = max(spans, key=spans.__getitem__)
        assert math.isclose(answer.score, spans[i, j], abs_tol=1e-4)
        assert answer.text == tokenizer.decode(given[1 + i : 2 + j]).strip()
        assert context[answer.start : answer.end] == answer.text
    stdin = "\n".join(json.dumps({"question": q, "context": c}) for q, c in pairs)
    shown = [json.loads(line) for line in lines("answer", bundle, "--json", stdin=stdin)]
    assert [item["answer"] for item in shown] == [answer.text for answer in answerer.answer(pairs)]
    assert lines("answer", bundle, *pairs[1])[0].endswith("\t" + shown[1]["answer"])


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["classify"], b"\xff\n", "stdin: line 1 is not UTF-8"),
        (["embed", "x"], b"", "task is text-classification, needs feature-extraction"),
        (["run", "x"], b"", "use llama-export classify"),
        (["answer", "x"], b"", "a question without a context"),
        (["embed", "--pooling", "none", "--normalize", "x"], b"", "--normalize scales pooled vectors"),
        (["classify", "x " * 500], b"", "the model has 160 positions"),
    ],
)
def test_bad_input_is_one_sentence(made, arguments, stdin, words):
    *_, bundle = made("text-classification")
    command, *rest = arguments
    result = CliRunner().invoke(main, [command, str(bundle), *rest], input=stdin)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_answer_lines_that_are_not_pairs(made):
    *_, bundle = made("question-answering")
    result = CliRunner().invoke(main, ["answer", str(bundle)], input='{"question": "who"}\n')
    assert result.exit_code == 2
    assert "line 1" in result.stderr
    assert "needs a JSON object with question and context" in result.stderr
