"""Classification: which function reads the logits, on which texts, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from toy_texts import TextToy

from llama_runtime.errors import ManifestError, OptionError, PromptError, TokenizerError
from llama_runtime.manifest import Classification as Labels
from llama_runtime.tasks.classify import Classifier, apply, load_classifier, own_function

LOGITS = np.array([1.5, -2.0, 0.25], np.float32)


@pytest.mark.parametrize(
    ("labels", "problem_type", "function"),
    [
        (3, None, "softmax"),
        (2, "single_label_classification", "softmax"),
        (3, "multi_label_classification", "sigmoid"),
        (3, "regression", "none"),
        (1, None, "sigmoid"),
        (1, "regression", "none"),
    ],
)
def test_the_function_follows_problem_type_and_number(labels, problem_type, function):
    assert own_function(Labels(tuple("abc")[:labels], problem_type)) == function


def test_functions():
    assert apply("none", LOGITS).tolist() == LOGITS.tolist()
    assert np.allclose(apply("sigmoid", LOGITS), 1 / (1 + np.exp(-LOGITS)))
    assert np.allclose(apply("softmax", LOGITS), np.exp(LOGITS) / np.exp(LOGITS).sum())
    huge = np.array([1e4, -1e4], np.float32)
    assert apply("sigmoid", huge).tolist() == apply("softmax", huge).tolist() == [1.0, 0.0]
    with pytest.raises(OptionError, match="tanh"):
        apply("tanh", LOGITS)


def test_texts_keep_their_places_whatever_the_batch():
    toy = TextToy(("batch_size", 3), lambda row: [len(row), -len(row), 0])
    classifier = Classifier(toy.model, Labels(("long", "short", "flat"), "regression"))
    rows = [[5] * n for n in (7, 1, 4, 2, 9)]
    found = classifier.classify(rows, batch_size=2)
    assert [result.score for result in found] == [7, 1, 4, 2, 9]
    assert {result.label for result in found} == {"long"}
    assert found[0].scores == (("long", 7), ("short", -7), ("flat", 0))
    assert found[0].logits.tolist() == [7, -7, 0]
    # Rows of similar length share a run.
    assert toy.runs == [(2, 2), (2, 7), (1, 9)]
    assert classifier.classify([]) == []


def test_what_is_refused():
    toy = TextToy(("batch_size", 1), lambda row: [0])
    classifier = Classifier(toy.model, Labels(("reward",), None))
    with pytest.raises(TokenizerError, match="no tokenizer"):
        classifier.classify(["text"])
    with pytest.raises(PromptError, match="empty"):
        classifier.classify([[]])
    with pytest.raises(PromptError, match="token 99"):
        classifier.classify([[99]])
    with pytest.raises(PromptError, match="needs a string"):
        classifier.classify([3.5])
    with pytest.raises(PromptError, match="21 tokens long, the model has 20"):
        classifier.classify([[1] * 21])
    with pytest.raises(OptionError, match="batch_size"):
        classifier.classify([[1]], batch_size=0)
    assert toy.runs == []
    assert len(classifier.classify([[1] * 21], truncate=True)) == 1
    assert toy.runs == [(1, 20)]


def test_another_task_is_refused_by_its_command(tmp_path):
    from toy_bundle import write_toy_bundle

    write_toy_bundle(tmp_path)
    with pytest.raises(ManifestError, match="task is text-generation, needs text-classification") as caught:
        load_classifier(tmp_path)
    assert caught.value.hint == "use llama-export run"


def test_a_manifest_says_one_thing_about_its_task(tmp_path):
    from toy_bundle import write_toy_bundle

    from llama_runtime.manifest import read_manifest

    write_toy_bundle(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text())
    broken = [
        ({"task": "text-classification"}, "cache"),
        ({"cache": None}, "cache"),
        ({"classification": {"labels": ["a"], "problem_type": None}}, "classification"),
        ({"task": "token-classification", "cache": None}, "classification"),
        ({"classification": {"labels": [], "problem_type": None}}, "labels"),
        ({"classification": {"labels": ["a"], "problem_type": "ranking"}}, "problem_type"),
        ({"known_outputs": [{"text": None, "token_ids": [1], "tolerance": 1, "probes": []}]}, "probes"),
    ]
    for changes, word in broken:
        (tmp_path / "manifest.json").write_text(json.dumps(document | changes))
        with pytest.raises(ManifestError, match=word):
            read_manifest(tmp_path)


def test_the_toy_itself():
    toy = TextToy(("batch_size", "sequence_length"), lambda row: [2 * token for token in row])
    assert isinstance(toy.model.session, SimpleNamespace)
    found = toy.model.outputs([[1, 2, 3], [4]], ["out"])
    assert [row["out"].tolist() for row in found] == [[2, 4, 6], [8]]
