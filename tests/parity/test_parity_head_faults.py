"""A task head's ladder goes red where it must, and names the layer, or the output, at which the two part."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_faults import (
    hides_no_leading_padding,
    insert,
    layer_gemm,
    not_a_number,
    rope_theta,
    swaps_k_and_v,
)
from tiny_heads import write_head_checkpoint

from llama_export import pipeline
from llama_export.checkpoint import open_checkpoint
from llama_export.parity import verify_bundle
from llama_export.parity.ladder import HEAD_LADDER
from llama_export.recipe import Recipe

QUESTIONS, TAGS, LABELS, STATES = (
    "question-answering",
    "token-classification",
    "text-classification",
    "feature-extraction",
)
LAST_OUTPUT = {QUESTIONS: "end_logits", TAGS: "logits", LABELS: "logits", STATES: "last_hidden_state"}
CONTEXT = "self_attn.o_proj input"


def swaps_start_and_end(model, path):
    start, end = model.graph.outputs
    start.name, end.name = "end_logits", "start_logits"


def transposes_the_score(model, path):
    """The hidden states reach the head in the opposite order."""
    gemm = layer_gemm(model, "score.weight")
    order = np.arange(42)[::-1].copy()
    gemm.replace_input_with(0, insert(model, gemm, "Gather", gemm.inputs[0], order, axis=1))


FAULTS = [
    (rope_theta, STATES, "flash", "attention", 0, f"model.layers.0.{CONTEXT}"),
    (not_a_number, LABELS, "flash", "attention", 0, "model.layers.0.input_layernorm"),
    (swaps_k_and_v, STATES, "eager", "outputs", 1, f"model.layers.1.{CONTEXT}"),
    (swaps_k_and_v, QUESTIONS, "sdpa", "outputs", 1, f"model.layers.1.{CONTEXT}"),
    (swaps_start_and_end, QUESTIONS, "flash", "outputs", None, "start_logits"),
    (transposes_the_score, TAGS, "sdpa", "outputs", None, "logits"),
    (transposes_the_score, LABELS, "flash", "outputs", None, "logits"),
    (hides_no_leading_padding, TAGS, "flash", "left-padded batch", 0, f"model.layers.0.{CONTEXT}"),
]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    written = {}

    def checkpoint(task):
        if task not in written:
            written[task] = tmp_path_factory.mktemp("heads") / task
            write_head_checkpoint(written[task], task)
        return written[task]

    return checkpoint


@pytest.fixture
def export_with(checkpoint_of, tmp_path, monkeypatch, graph_of):
    """Export a task without verification, with a fault in its graph."""

    def export(fault, task, path, **choices):
        def build(config, path, extras):
            model = graph_of(config, path, extras)
            fault(model, path)
            return model

        monkeypatch.setattr(pipeline, "build_graph", build)
        pipeline.export(
            checkpoint_of(task), tmp_path / "bundle", recipe=Recipe(path, verify=False, **choices)
        )
        return tmp_path / "bundle"

    return export


def assert_blamed(report, rung):
    names = [outcome.name for outcome in report.rungs]
    index = names.index(rung)
    assert all(r.passed for r in report.rungs[:index] if r.needed), report.rungs
    assert report.rungs[index].red, report.rungs
    assert all(r.measured is None for r in report.rungs[index + 1 :])
    assert not report.passed
    assert report.known_outputs == ()


@pytest.mark.parametrize(
    ("fault", "task", "path", "rung", "layer", "tensor"), FAULTS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_a_fault_is_blamed_on_rung_and_tensor(
    checkpoint_of, export_with, fault, task, path, rung, layer, tensor
):
    bundle = export_with(fault, task, path)
    report = verify_bundle(bundle, open_checkpoint(checkpoint_of(task)))
    assert_blamed(report, rung)
    assert (report.blame.rung, report.blame.layer, report.blame.tensor) == (rung, layer, tensor)
    assert f"{tensor} differs by" in report.blame.sentence
    assert report.plots.layers[-1].tensor == LAST_OUTPUT[task]


def test_a_zeroed_weight_of_the_head_is_found(checkpoint_of, export_with):
    bundle = export_with(lambda model, path: None, TAGS, "flash", weights="copy")
    graph = onnx.load(bundle / "onnx/model.onnx", load_external_data=False).graph
    (tensor,) = (t for t in graph.initializer if t.name == "score.weight")
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (bundle / "onnx" / place["location"]).open("r+b") as stream:
        stream.seek(int(place["offset"]))
        stream.write(bytes(int(place["length"])))
    report = verify_bundle(bundle, open_checkpoint(checkpoint_of(TAGS)))
    assert_blamed(report, "weights")
    assert (report.blame.layer, report.blame.tensor) == (None, "score.weight")


def test_a_sound_bundle_is_green_to_the_top_and_quick_says_what_it_left_out(checkpoint_of, export_with):
    bundle = export_with(lambda model, path: None, LABELS, "flash")
    source = open_checkpoint(checkpoint_of(LABELS))
    report = verify_bundle(bundle, source)
    assert report.passed
    rungs = [rung for rung in report.rungs if rung.name != "own kernels"]  # there where they were built
    measured = [rung.name for rung in rungs if rung.measured is not None]
    assert measured == [rung.name for rung in HEAD_LADDER][:8]
    assert len(report.known_outputs) == 2
    assert report.plots.logits
    quick = verify_bundle(bundle, source, quick=True)
    assert quick.passed
    left_out = [r.name for r in quick.rungs if r.detail == "left out by --quick"]
    assert left_out == ["left-padded batch", "right-padded batch", "whole context"]
