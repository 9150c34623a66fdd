"""Embeddings, labels, tags and answers in C++ are those of the Python runtime."""

from __future__ import annotations

import pytest
from c_abi import AbiError
from tiny_heads import ARCHITECTURES, write_head_checkpoint

import llama_export
import llama_runtime
from llama_export.recipe import Recipe

TEXTS = [
    "the sea",
    "  a small red fox,\n by the  still green sea!",
    "naïve 日本語 🦙 x",
    "once upon a time there was a fox by the sea and seven small streams run down",
]


@pytest.fixture(scope="module")
def head_of(tmp_path_factory):
    made: dict = {}

    def head(task, attention="flash", **changes):
        key = (task, attention, *map(str, changes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("head")
            write_head_checkpoint(folder / "source", task, **changes)
            recipe = Recipe(attention=attention)
            made[key] = llama_export.export(folder / "source", folder / "bundle", recipe=recipe).output
        return made[key]

    return head


@pytest.mark.parametrize("attention", ["flash", "sdpa"])
def test_embeddings(head_of, open_model, attention):
    bundle = head_of("feature-extraction", attention)
    cpp, python = open_model(bundle), llama_runtime.load_embedder(bundle, threads=1)
    for number, pooling in enumerate(("mean", "last", "cls")):
        for normalize in (False, True):
            wanted = python.embed(TEXTS, pooling=pooling, normalize=normalize)
            got = [cpp.embed(text, number, normalize) for text in TEXTS]
            assert got == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"problem_type": "multi_label_classification"},
        {"problem_type": "regression"},
        {"id2label": {0: "reward"}},
    ],
    ids=["softmax", "sigmoid", "regression", "one label"],
)
def test_labels(head_of, open_model, changes):
    bundle = head_of("text-classification", **changes)
    cpp, python = open_model(bundle), llama_runtime.load_classifier(bundle, threads=1)
    for text, wanted in zip(TEXTS, python.classify(TEXTS), strict=True):
        best, found = cpp.classify(text)
        assert best == wanted.label
        assert [name for name, _, _ in found] == [name for name, _ in wanted.scores]
        assert [score for _, score, _ in found] == pytest.approx([s for _, s in wanted.scores], abs=1e-5)
        assert [logit for _, _, logit in found] == pytest.approx(wanted.logits.tolist(), abs=1e-4)


def test_tags(head_of, open_model):
    bundle = head_of("token-classification")
    cpp, python = open_model(bundle), llama_runtime.load_tagger(bundle, threads=1)
    for text, wanted in zip([*TEXTS, " ", "x"], python.tag([*TEXTS, " ", "x"]), strict=True):
        data, found = text.encode(), cpp.tag(text)
        assert [data[start:end].decode() for _, _, start, end in found] == [tag.text for tag in wanted]
        assert [len(data[:start].decode()) for _, _, start, _ in found] == [tag.start for tag in wanted]
        assert [label for label, _, _, _ in found] == [tag.label for tag in wanted]
        assert [score for _, score, _, _ in found] == pytest.approx([tag.score for tag in wanted], abs=1e-5)


def test_answers(head_of, open_model):
    bundle = head_of("question-answering")
    cpp, python = open_model(bundle), llama_runtime.load_answerer(bundle, threads=1)
    pairs = [(question, context) for question in TEXTS[:2] for context in (*TEXTS, " ".join(TEXTS * 12))]
    for (question, context), wanted in zip(pairs, python.answer(pairs), strict=True):
        score, start, end = cpp.answer(question, context)
        assert score == pytest.approx(wanted.score, rel=1e-4)
        assert context.encode()[start:end].decode() == wanted.text
    with pytest.raises(AbiError, match="the question is empty, needs a text"):
        cpp.answer(" \n", "x")


@pytest.mark.parametrize("task", ARCHITECTURES)
def test_known_outputs(head_of, open_model, task):
    report, differences = open_model(head_of(task)).selftest()
    assert differences == []
    assert report.answers > 0
    assert report.largest_difference < 1e-3


def test_a_language_model_that_embeds_too(demo_of, open_model):
    bundle = demo_of(hidden_states="last")
    report, differences = open_model(bundle).selftest()
    assert (differences, report.answers > 2) == ([], True)
    cpp, python = open_model(bundle), llama_runtime.load_embedder(bundle, threads=1)
    assert cpp.embed("Once upon a time") == pytest.approx(python.embed(["Once upon a time"])[0], abs=1e-5)
    assert (
        cpp.generate("Once", max_new_tokens=4).tokens
        == open_model(demo_of(verify=False)).generate("Once", max_new_tokens=4).tokens
    )


def test_the_wrong_task_is_refused_by_name(head_of, open_model):
    cpp = open_model(head_of("feature-extraction"))
    assert cpp.task == "feature-extraction"
    for call in (cpp.classify, cpp.tag, cpp.generate):
        with pytest.raises(AbiError, match="the bundle's task is feature-extraction, needs ") as caught:
            call("x")
        assert caught.value.status == "manifest"
    with pytest.raises(AbiError, match=r"the text is \d+ tokens long, the model has"):
        cpp.embed("fox " * 2000)
    assert cpp.embed("fox")
