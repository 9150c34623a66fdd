"""Adapters of task heads: on a base that has the head, and on one that has another or none."""

from __future__ import annotations

import json
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from parity_cases import difference
from peft_adapters import write_adapter
from safetensors.torch import load_file, save_file
from talking_checkpoint import CONFIG
from tiny_checkpoints import write_checkpoint
from tiny_heads import write_head_checkpoint

from llama_export import pipeline
from llama_export.checkpoint import open_merged
from llama_export.cli import main
from llama_export.errors import CheckpointError, OptionError
from llama_export.parity import verify
from llama_export.recipe import Recipe
from llama_runtime.opening import open_session

LINEAR = ["q_proj", "v_proj", "up_proj", "down_proj"]
# PEFT's name of the task, transformers' class, how many labels, ours.
KINDS = {
    "classes": ("SEQ_CLS", transformers.AutoModelForSequenceClassification, 3, "text-classification"),
    "reward": ("SEQ_CLS", transformers.AutoModelForSequenceClassification, 1, "text-classification"),
    "tokens": ("TOKEN_CLS", transformers.AutoModelForTokenClassification, 5, "token-classification"),
    "answers": ("QUESTION_ANS", transformers.AutoModelForQuestionAnswering, 2, "question-answering"),
}
# A base that has the head, one that has none, and one that has the language model's in its place.
# PEFT asks transformers for something that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
BASES = ("own", "bare", "causal")
IDS = np.random.default_rng(3).integers(3, 320, (2, 13))


@pytest.fixture(scope="module")
def write_base(tmp_path_factory):
    """Writes each base once."""
    written = {}

    def write(base, kind):
        key = (base, kind) if base == "own" else base
        folder = tmp_path_factory.mktemp("bases") / "base"
        if key not in written and base == "causal":
            written[key] = write_checkpoint(folder, CONFIG, pad_token_id=0)
        elif key not in written:
            task, labels = KINDS[kind][3], KINDS[kind][2]
            named = {} if base == "bare" else {"id2label": {i: f"n{i}" for i in range(labels)}}
            written[key] = folder
            write_head_checkpoint(folder, "feature-extraction" if base == "bare" else task, **named)
        return written[key]

    return write


def theirs(folder, kind):
    """Transformers' model of a base, with a new head where it has none."""
    torch.manual_seed(7)
    choices = {} if kind == "answers" else {"num_labels": KINDS[kind][2]}
    return KINDS[kind][1].from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", pad_token_id=0, **choices
    ).eval()  # fmt: skip


def outputs_of(model):
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(IDS), attention_mask=torch.ones(IDS.shape, dtype=torch.int64)
        )
    return [found[name].numpy() for name in ("start_logits", "end_logits", "logits") if name in found]


def write(base, folder, kind, **choices):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choices = {"target_modules": LINEAR} | choices
        return write_adapter(base, folder, model=theirs(base, kind), task_type=KINDS[kind][0], **choices)


# Transformers loads nothing of a causal checkpoint into a model that answers questions: another prefix.
@pytest.mark.parametrize(
    ("base", "kind"), [(b, k) for b in BASES for k in KINDS if (b, k) != ("causal", "answers")]
)
def test_merged_equals_unmerged_and_differs_from_the_base(tmp_path, write_base, base, kind):
    folder = write_base(base, kind)
    adapter = write(folder, tmp_path / "adapter", kind)
    want = outputs_of(peft.PeftModel.from_pretrained(theirs(folder, kind), adapter).eval())
    recipe = Recipe("sdpa", adapters=(adapter,), task=KINDS[kind][3] if base == "bare" else None)
    made = pipeline.export(folder, tmp_path / "out", recipe=recipe)
    assert made.report.passed
    assert made.manifest.task == KINDS[kind][3]
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    got = list(open_session(made.output, made.manifest, threads=1).run(feeds).values())
    for ours, peft_s, untrained in zip(got, want, outputs_of(theirs(folder, kind)), strict=True):
        assert difference(ours, peft_s) <= 1e-4
        assert difference(untrained, peft_s) > 1e-2
    if made.manifest.classification:
        labels = made.manifest.classification.labels
        assert len(labels) == KINDS[kind][2]
        # The base's names are kept where they are as many as the adapter's scores.
        assert labels == tuple(f"{'n' if base == 'own' else 'LABEL_'}{i}" for i in range(len(labels)))
        said = json.loads((made.output / "config.json").read_text())
        assert list(said["id2label"].values()) == list(labels)
        assert said["architectures"] == [type(theirs(folder, kind)).__name__]
    assert verify(made.output, folder, adapters=[adapter]).passed


def test_a_converted_one_opens_in_transformers(tmp_path, write_base):
    folder = write_base("causal", "classes")
    adapter = write(folder, tmp_path / "adapter", "classes")
    result = CliRunner().invoke(
        main, ["convert", str(folder), str(tmp_path / "out"), "--adapter", str(adapter)]
    )
    assert result.exit_code == 0, result.output
    want = outputs_of(peft.PeftModel.from_pretrained(theirs(folder, "classes"), adapter).eval())
    assert difference(outputs_of(theirs(tmp_path / "out", "classes"))[0], want[0]) <= 1e-4


def test_names_by_which_the_trained_model_calls_its_layers(tmp_path, write_base):
    """Question answering's model says `transformer.layers`, and PEFT's patterns are about that name."""
    folder = write_base("bare", "answers")
    choices = {"target_modules": r"transformer\.layers\.1\..*_proj"}
    choices["rank_pattern"] = {"^transformer.*q_proj": 3}
    adapter = write(folder, tmp_path / "adapter", "answers", **choices)
    want = outputs_of(peft.PeftModel.from_pretrained(theirs(folder, "answers"), adapter).eval())
    made = pipeline.export(folder, tmp_path / "out", recipe=Recipe("sdpa", adapters=(adapter,)))
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    got = open_session(made.output, made.manifest, threads=1).run(feeds)
    assert difference(got["start_logits"], want[0]) <= 1e-4


def edited(adapter, config=None, drop=(), resize=None):
    path, file = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    tensors = {key: value for key, value in load_file(file).items() if not key.endswith(tuple(drop) or "?")}
    if resize:
        tensors[resize] = tensors[resize][:, :-1].contiguous()
    save_file(tensors, file)
    return adapter


@pytest.mark.parametrize("base", BASES)
def test_an_adapter_without_the_head_is_refused(tmp_path, write_base, base):
    folder = write_base(base, "classes")
    adapter = edited(write(folder, tmp_path / "adapter", "classes"), drop=["score.weight"])
    output = tmp_path / "out"
    result = CliRunner().invoke(main, ["onnx", str(folder), str(output), "--adapter", str(adapter)])
    assert result.exit_code == 2
    message = result.stderr.splitlines()[0]
    if base == "own":
        assert message == "error: adapter_model.safetensors: score, which it saves, is missing"
    else:
        own = {"bare": "feature-extraction", "causal": "text-generation"}[base]
        needs = "task text-classification needs a head that neither adapter nor checkpoint has"
        assert message == f"error: {needs}, its own task is {own}"
    assert not output.exists()


def test_what_does_not_fit_is_refused(tmp_path, write_base):
    folder = write_base("causal", "classes")
    adapter = write(folder, tmp_path / "adapter", "classes")
    head = "base_model.model.score.weight"
    with pytest.raises(OptionError, match="task question-answering needs a head that neither"):
        open_merged(folder, [adapter], "question-answering")
    with pytest.raises(CheckpointError, match=r"score.weight belongs to nothing") as error:
        open_merged(folder, [edited(adapter, {"task_type": None})])
    assert "--task" in error.value.hint
    with pytest.raises(CheckpointError, match=r"score.weight is \[3, 41\], the base needs \[3, 42\]"):
        open_merged(folder, [edited(adapter, {"task_type": "SEQ_CLS"}, resize=head)])
    other = write(write_base("own", "classes"), tmp_path / "other", "classes")
    with pytest.raises(CheckpointError, match=r"score.weight is \[3, 42\], the base .* need \[1, 42\]"):
        open_merged(write_base("own", "reward"), [other])
