"""A rotary scaling that is computed wrongly turns the ladder red: the mistakes that other exporters make."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from tiny_checkpoints import VARIANTS, write_checkpoint

from llama_export import pipeline
from llama_export.checkpoint import open_checkpoint
from llama_export.graph import assemble
from llama_export.graph.constant import add_constant
from llama_export.model import RopeConfig
from llama_export.parity import verify_bundle
from llama_export.recipe import Recipe


def with_tables_of(rope):
    """The angles of another rotary embedding."""

    def fault(model, config, path):
        scratch = ir.Graph([], [], nodes=[], opset_imports={"": 18})
        wrong = dataclasses.replace(config, rope=rope(config.rope))
        for value in assemble._rotary_tables(scratch, wrong, path).values():
            model.graph.initializers[value.name].const_value = value.const_value

    return fault


def never_grows(model, config, path):
    """Dynamic scaling left out: theta's growth to the power of nothing."""
    (power,) = [node for node in model.graph if node.op_type == "Pow"]
    nothing = add_constant(model.graph, "fault.nothing", np.zeros(config.head_dim // 2, np.float32))
    power.replace_input_with(1, nothing)


def plain(rope):
    return RopeConfig(rope_theta=rope.rope_theta)


FAULTS = {
    "linear left out": ("linear", "flash", with_tables_of(plain), "attention"),
    "yarn left out": ("yarn", "sdpa", with_tables_of(plain), "attention"),
    "yarn without its attention factor": (
        "yarn",
        "flash",
        with_tables_of(lambda rope: dataclasses.replace(rope, attention_factor=1.0)),
        "attention",
    ),
    "yarn as linear": (
        "yarn",
        "flash",
        with_tables_of(lambda rope: dataclasses.replace(rope, rope_type="linear")),
        "attention",
    ),
    "dynamic left out": ("dynamic", "flash", never_grows, "decode"),
    "longrope with its short factors alone": (
        "longrope",
        "sdpa",
        with_tables_of(lambda rope: dataclasses.replace(rope, long_factor=rope.short_factor)),
        "decode",
    ),
    "longrope with its long factors alone": (
        "longrope",
        "flash",
        with_tables_of(lambda rope: dataclasses.replace(rope, short_factor=rope.long_factor)),
        "attention",
    ),
}


@pytest.mark.parametrize(("variant", "path", "fault", "rung"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_scaling_is_found(tmp_path, monkeypatch, graph_of, variant, path, fault, rung):
    def build(config, path, extras):
        model = graph_of(config, path, extras)
        fault(model, config, path)
        return model

    monkeypatch.setattr(pipeline, "build_graph", build)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", VARIANTS[variant])
    pipeline.export(checkpoint, tmp_path / "bundle", recipe=Recipe(path, verify=False))
    report = verify_bundle(tmp_path / "bundle", open_checkpoint(checkpoint))
    assert not report.passed
    assert next(r.name for r in report.rungs if r.red) == rung
