"""Every head on every attention path against transformers: outputs, padding on both sides, the proof."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_checkpoints import VARIANTS, write_checkpoint
from tiny_heads import ARCHITECTURES, write_head_checkpoint

import llama_runtime
from llama_export import pipeline
from llama_export.model import ATTENTION_PATHS, HeadConfig
from llama_export.parity.ladder import HEAD_LADDER
from llama_export.recipe import Recipe
from llama_runtime.opening import open_session
from llama_runtime.tasks.batch import run_padded

LIMIT = 1e-4
LENGTHS = (11, 6, 1)


@pytest.fixture(scope="module")
def oracle_of(tmp_path_factory):
    """Checkpoint folder and transformers' model of a task, each written once."""
    written = {}

    def oracle(task):
        if task not in written:
            folder = tmp_path_factory.mktemp("heads") / task
            written[task] = folder, write_head_checkpoint(folder, task)
        return written[task]

    return oracle


@pytest.fixture(scope="module", params=[(t, p) for t in ARCHITECTURES for p in ATTENTION_PATHS], ids="-".join)
def made(request, oracle_of, tmp_path_factory):
    task, path = request.param
    checkpoint, oracle = oracle_of(task)
    output = tmp_path_factory.mktemp("bundles") / "bundle"
    result = pipeline.export(checkpoint, output, recipe=Recipe(path))
    session = open_session(output, result.manifest, threads=1)
    return SimpleNamespace(task=task, oracle=oracle, result=result, session=session, output=output)


def expected(oracle, ids, mask):
    """Transformers' outputs, in the order of the graph's."""
    with torch.no_grad():
        found = oracle(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    names = ("last_hidden_state", "start_logits", "end_logits", "logits")
    return {name: found[name].numpy() for name in names if name in found}


def padded(left):
    rng, T = np.random.default_rng(5), max(LENGTHS)
    ids, mask = np.zeros((len(LENGTHS), T), np.int64), np.zeros((len(LENGTHS), T), np.int64)
    for row, n in enumerate(LENGTHS):
        real = slice(T - n, T) if left else slice(0, n)
        ids[row, real], mask[row, real] = rng.integers(3, 320, n), 1
    return ids, mask


def test_it_is_what_transformers_saved(made):
    assert made.result.manifest.task == made.task
    assert made.result.manifest.cache is None
    assert made.result.report.passed
    rungs = [rung for rung in made.result.report.rungs if rung.name != "own kernels"]  # there where built
    measured = [rung.name for rung in rungs if rung.measured is not None]
    assert measured == [rung.name for rung in HEAD_LADDER][:8]  # what follows is about rounding


@pytest.mark.parametrize("left", [True, False])
def test_a_padded_batch_equals_transformers(made, left):
    ids, mask = padded(left)
    want = expected(made.oracle, ids, mask)
    found = made.session.run({"input_ids": ids, "attention_mask": mask})
    assert list(found) == [spec.name for spec in made.result.manifest.outputs]
    for name, got in found.items():
        assert got.shape == want[name].shape
        real = mask == 1 if made.task != "text-classification" else np.ones(len(ids), bool)
        worst = np.abs(got[real] - want[name][real]).max() / np.abs(want[name][real]).max()
        assert worst <= LIMIT


def test_a_padded_row_equals_the_row_alone(made):
    for left in (True, False):
        ids, mask = padded(left)
        batch = made.session.run({"input_ids": ids, "attention_mask": mask})
        for row in range(len(ids)):
            own = ids[row][mask[row] == 1][None]
            alone = made.session.run({"input_ids": own, "attention_mask": np.ones_like(own)})
            for name, got in batch.items():
                mine = (
                    got[row]
                    if got.ndim < 2 or made.task == "text-classification"
                    else got[row][mask[row] == 1]
                )
                assert np.abs(mine - alone[name][0]).max() <= LIMIT * np.abs(alone[name]).max()


def test_the_known_outputs_are_transformers_too(made):
    report = llama_runtime.selftest(made.output, threads=1)
    assert report.ok
    assert report.answers == len(made.result.manifest.known_outputs) == 2
    for answer in made.result.manifest.known_outputs:
        ids = np.array([answer.token_ids])
        want = expected(made.oracle, ids, np.ones_like(ids))
        for probe in answer.probes:
            flat = want[probe.output].reshape(-1)
            assert np.abs(flat[list(probe.indices)] - probe.values).max() <= LIMIT * np.abs(flat).max()


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_rows_on_either_side_of_the_original_context_are_each_as_alone(tmp_path, name):
    """Angles depend on the length of the row, not on that of the batch."""
    from transformers import LlamaModel

    config = dataclasses.replace(
        VARIANTS[name], head=HeadConfig("feature-extraction"), tie_word_embeddings=False
    )
    write_checkpoint(tmp_path / "from", config)
    bundle = pipeline.export(tmp_path / "from", tmp_path / "to").output
    model = LlamaModel.from_pretrained(tmp_path / "from", attn_implementation="eager").eval()
    session = open_session(bundle, llama_runtime.read_manifest(bundle), threads=1)
    rows = [np.random.default_rng(n).integers(0, config.vocab_size, n).tolist() for n in (70, 7, 30)]
    for left in (True, False):
        for row, found in zip(rows, run_padded(session, rows, ["last_hidden_state"], left=left), strict=True):
            with torch.no_grad():
                want = model(torch.tensor([row])).last_hidden_state[0].numpy()
            assert np.abs(found["last_hidden_state"] - want).max() <= LIMIT * np.abs(want).max()
