"""The heads open in optimum-onnx's classes as they are, and give our runtime's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from asking import HERE, asked
from tiny_heads import ARCHITECTURES, write_head_checkpoint

import llama_export
from llama_runtime.manifest import read_manifest
from llama_runtime.opening import open_session

pytestmark = pytest.mark.long
WORKER = HERE / "workers" / "heads_optimum.py"
LENGTHS = (9, 4, 1)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("task", ARCHITECTURES)
def test_optimum_gives_our_outputs(optimum, tmp_path, task, left):
    write_head_checkpoint(tmp_path / "checkpoint", task)
    bundle = llama_export.export(tmp_path / "checkpoint", tmp_path / "bundle").output
    T, rng = max(LENGTHS), np.random.default_rng(8)
    ids, mask = np.zeros((len(LENGTHS), T), np.int64), np.zeros((len(LENGTHS), T), np.int64)
    for row, count in enumerate(LENGTHS):
        real = slice(T - count, T) if left else slice(0, count)
        ids[row, real], mask[row, real] = rng.integers(3, 320, count), 1
    feeds = {"input_ids": ids, "attention_mask": mask}
    ours = open_session(bundle, read_manifest(bundle)).run(feeds)
    theirs = asked(
        [optimum, WORKER], {"bundle": str(bundle), "task": task} | {k: v.tolist() for k, v in feeds.items()}
    )
    assert set(theirs) == set(ours)
    for name, want in ours.items():
        got = np.array(theirs[name], np.float32)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
