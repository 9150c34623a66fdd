"""Which head a checkpoint has, what --task may make of it, and what config.json says of labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CONFIGS, random_weights, write_checkpoint

from llama_export.checkpoint import open_checkpoint
from llama_export.checkpoint.fields import Fields
from llama_export.checkpoint.head import canonical_name, parse_head
from llama_export.errors import CheckpointError, ConfigError, OptionError
from llama_export.model import HeadConfig

BASE = {"vocab_size": 100}
SCORE, BIAS, QA, LM = "score.weight", "score.bias", "qa_outputs.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("architecture", "names", "tied", "task"),
    [
        ("LlamaForCausalLM", [LM], False, "text-generation"),
        ("LlamaModel", [], True, "feature-extraction"),
        ("LlamaForSequenceClassification", [SCORE], False, "text-classification"),
        ("LlamaForTokenClassification", [SCORE, BIAS], False, "token-classification"),
        ("LlamaForTokenClassification", [SCORE], False, "token-classification"),
        ("LlamaForQuestionAnswering", [QA], False, "question-answering"),
        (None, [LM], False, "text-generation"),
        (None, [], True, "text-generation"),
        (None, [], False, "feature-extraction"),
        (None, [SCORE], False, "text-classification"),
        (None, [SCORE, BIAS], False, "token-classification"),
        (None, [QA], True, "question-answering"),
    ],
)
def test_the_head_is_recognised(architecture, names, tied, task):
    fields = Fields(BASE | {"architectures": architecture and [architecture], "tie_word_embeddings": tied})
    assert parse_head(fields, names, None).task == task
    assert parse_head(fields, names, task).task == task
    assert parse_head(fields, names, "feature-extraction") == HeadConfig("feature-extraction")


@pytest.mark.parametrize(
    ("architecture", "names", "tied", "wanted"),
    [("LlamaModel", [], True, "text-generation"), (None, [SCORE], False, "token-classification")],
)
def test_another_task_that_the_tensors_serve(architecture, names, tied, wanted):
    fields = Fields(BASE | {"architectures": architecture and [architecture], "tie_word_embeddings": tied})
    assert parse_head(fields, names, wanted).task == wanted


@pytest.mark.parametrize(
    ("architecture", "names", "tied", "wanted"),
    [
        ("LlamaModel", [], False, "text-generation"),
        ("LlamaForSequenceClassification", [SCORE], True, "text-generation"),
        ("LlamaForSequenceClassification", [SCORE], False, "token-classification"),
        ("LlamaForTokenClassification", [SCORE, BIAS], False, "text-classification"),
        ("LlamaForCausalLM", [LM], False, "text-classification"),
        ("LlamaForCausalLM", [LM], False, "question-answering"),
    ],
)
def test_a_task_without_its_head_is_refused(architecture, names, tied, wanted):
    fields = Fields(BASE | {"architectures": [architecture], "tie_word_embeddings": tied})
    own = parse_head(fields, names, None).task
    with pytest.raises(OptionError, match=f"task {wanted} needs a head .* its own task is {own}") as caught:
        parse_head(fields, names, wanted)
    assert caught.value.hint


def classifier(**extra):
    fields = Fields(BASE | {"architectures": ["LlamaForSequenceClassification"]} | extra)
    return parse_head(fields, [SCORE], None)


def test_labels():
    assert classifier().labels == ("LABEL_0", "LABEL_1")
    assert classifier(num_labels=1).labels == ("LABEL_0",)
    assert classifier(id2label={str(i): f"n{i}" for i in (10, 2, *range(2), *range(3, 10))}).labels == tuple(
        f"n{i}" for i in range(11)
    )
    fields = Fields(BASE | {"architectures": ["LlamaForTokenClassification"], "id2label": {"0": "O"}})
    assert parse_head(fields, [SCORE, BIAS], None) == HeadConfig("token-classification", ("O",), bias=True)


def test_padding_and_problem_type():
    assert classifier(pad_token_id=99).pad_token_id == 99
    assert classifier(pad_token_id=-1).pad_token_id is None
    assert classifier(pad_token_id=100).pad_token_id is None
    assert classifier().pad_token_id is None
    assert classifier(num_labels=1, problem_type="regression").problem_type == "regression"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"id2label": {}}, "id2label"),
        ({"id2label": {"0": "a", "2": "b"}}, "numbers from 0 on"),
        ({"id2label": {"0": "a", "1": 7}}, "id2label"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "one label"),
        ({"pad_token_id": "0"}, "pad_token_id"),
    ],
)
def test_what_config_json_may_not_say(extra, words):
    with pytest.raises(ConfigError, match=words):
        classifier(**extra)


@pytest.mark.parametrize(
    "bad", [[], ["LlamaModel", "LlamaForCausalLM"], "LlamaModel", [None], ["OtherModel"]]
)
def test_architectures_that_are_not_one_of_ours(bad):
    with pytest.raises(ConfigError, match="architectures is"):
        parse_head(Fields(BASE | {"architectures": bad}), [LM], None)


def test_names_of_every_base():
    assert canonical_name("embed_tokens.weight") == "model.embed_tokens.weight"
    assert canonical_name("layers.3.mlp.up_proj.weight") == "model.layers.3.mlp.up_proj.weight"
    assert canonical_name("transformer.norm.weight") == "model.norm.weight"
    for name in ("model.norm.weight", LM, SCORE, QA, "layersnorm", "v_head.weight"):
        assert canonical_name(name) == name


def test_a_base_only_folder_and_a_causal_one_give_the_same_features(tmp_path):
    config = CONFIGS["gqa"]
    causal = write_checkpoint(tmp_path / "causal", config)
    base = write_checkpoint(tmp_path / "base", config, architectures=["LlamaModel"])
    weights = load_file(base / "model.safetensors")
    del weights["lm_head.weight"]
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(bare, base / "model.safetensors")
    ours, theirs = open_checkpoint(base), open_checkpoint(causal, "feature-extraction")
    assert ours.config == theirs.config
    assert list(ours.tensors) == list(theirs.tensors)
    assert set(ours.tensors) == set(weights)
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor.read(), theirs.tensors[name].read())
    with pytest.raises(OptionError, match="its own task is feature-extraction"):
        open_checkpoint(base, "text-generation")


def test_a_head_of_another_size_is_refused(tmp_path):
    config = dataclasses.replace(CONFIGS["gqa"], head=HeadConfig("text-classification", ("a", "b", "c")))
    write_checkpoint(tmp_path / "c", config, weights=random_weights(config))
    with pytest.raises(CheckpointError, match=r"score.weight is \[3, 42\], config.json needs \[2, 42\]"):
        open_checkpoint(tmp_path / "c")
