"""What 16 bits cost a task head: each number computed again with transformers and torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_heads import ARCHITECTURES, write_head_checkpoint

import llama_runtime
from llama_export import pipeline
from llama_export.model import HeadConfig
from llama_export.parity.prompts import DEFAULT_TEXT
from llama_export.parity.rungs.head_rounding import choices
from llama_export.recipe import Recipe

SEVERAL = {"problem_type": "multi_label_classification"}
REGRESSION = {"id2label": {0: "reward"}, "problem_type": "regression"}
CASES = [
    *((task, precision, {}) for task in ARCHITECTURES for precision in ("float16", "bfloat16")),
    ("text-classification", "bfloat16", SEVERAL),
    ("text-classification", "bfloat16", {"id2label": {0: "reward"}}),
    ("text-classification", "bfloat16", REGRESSION),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def made(request, tmp_path_factory):
    """The report of a rounded bundle; outputs of the unrounded and of the rounded model for each line."""
    task, precision, changes = request.param
    root = tmp_path_factory.mktemp("rounded")
    oracle = write_head_checkpoint(root / "from", task, **changes)
    found = pipeline.export(root / "from", root / "to", recipe=Recipe("flash", "copy", precision))
    manifest = llama_runtime.read_manifest(root / "to")
    tokenizer = llama_runtime.open_tokenizer(root / "to", manifest.tokenizer, manifest.tokens)
    rows = [torch.tensor([tokenizer.encode(line)[:80]]) for line in DEFAULT_TEXT.splitlines()]
    with torch.no_grad():
        wanted = [oracle(row) for row in rows]
        for weight in oracle.parameters():
            weight.copy_(weight.to(getattr(torch, precision)).float())
        rounded = [oracle(row) for row in rows]
    measured = {rung.name: rung for rung in found.report.rungs}
    return task, json.dumps(changes), measured, list(zip(rounded, wanted, strict=True))


def logits(task, changes, found):
    """[N, choices] of each distribution that the outputs are."""
    if task == "question-answering":
        return [found.start_logits, found.end_logits]
    flat = found.logits.flatten(0, -2)
    if task == "text-classification" and ("multi" in changes or "reward" in changes):
        return [torch.stack((flat[0], torch.zeros_like(flat[0])), dim=1)]
    return [flat]


def test_the_numbers_are_those_of_transformers(made):
    task, changes, measured, pairs = made
    assert measured["rounded outputs"].passed
    if task == "feature-extraction":
        states = [
            (got.last_hidden_state[0].double(), want.last_hidden_state[0].double()) for got, want in pairs
        ]
        angles = [
            1 - F.cosine_similarity(pool(got), pool(want), dim=0)
            for got, want in states
            for pool in (lambda s: s.mean(0), lambda s: s[-1])
        ]
        assert measured["cosine"].measured == pytest.approx(float(max(angles)), rel=0.02, abs=1e-9)
        assert not {"KL divergence", "top-1 agreement"} & set(measured)
        return
    assert "cosine" not in measured
    if "regression" in changes:
        assert measured["KL divergence"].detail == "a score is no probability"
        assert measured["KL divergence"].measured is None
        assert not measured["top-1 agreement"].needed
        return
    both = [
        pair
        for got, want in pairs
        for pair in zip(logits(task, changes, got), logits(task, changes, want), strict=True)
    ]
    kl = torch.cat(
        [
            F.kl_div(
                got.double().log_softmax(-1), want.double().log_softmax(-1), reduction="none", log_target=True
            ).sum(-1)
            for got, want in both
        ]
    ).mean()
    # The candidate's float32 sums are in another order, which shows in numbers that are this small.
    assert measured["KL divergence"].measured == pytest.approx(float(kl), rel=0.02, abs=1e-9)
    same = torch.cat([got.argmax(-1) == want.argmax(-1) for got, want in both])
    assert measured["top-1 agreement"].measured == pytest.approx(1 - float(same.double().mean()), abs=1e-12)
    assert measured["top-1 agreement"].detail.startswith(f"{int(same.sum())} of {len(same)} ")


def test_an_exact_head_has_nothing_to_measure(tmp_path):
    write_head_checkpoint(tmp_path / "from", "feature-extraction")
    report = pipeline.export(tmp_path / "from", tmp_path / "to").report
    (cosine,) = (rung for rung in report.rungs if rung.name == "cosine")
    assert cosine.measured is None
    assert not cosine.needed
    assert cosine.detail == "the bundle stores the checkpoint's own values"


@pytest.mark.parametrize(
    ("head", "outputs", "shapes"),
    [
        (HeadConfig("text-classification", ("a", "b", "c")), {"logits": np.zeros(3)}, [(1, 3)]),
        (HeadConfig("text-classification", ("a",)), {"logits": np.ones(1)}, [(1, 2)]),
        (
            HeadConfig("text-classification", ("a", "b"), "multi_label_classification"),
            {"logits": np.ones(2)},
            [(2, 2)],
        ),
        (HeadConfig("token-classification", ("a", "b")), {"logits": np.zeros((5, 2))}, [(5, 2)]),
        (
            HeadConfig("question-answering"),
            {"start_logits": np.zeros(5), "end_logits": np.zeros(5)},
            [(1, 5), (1, 5)],
        ),
    ],
)
def test_what_is_a_distribution(head, outputs, shapes):
    assert [found.shape for found in choices(head, outputs)] == shapes
