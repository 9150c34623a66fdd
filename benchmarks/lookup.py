"""Prompt lookup at its best and at its worst: text that goes in circles, and text that never repeats."""

from __future__ import annotations

import sys
from pathlib import Path

from batch import ask
from checkpoints import Shape, make_checkpoint
from conversion import ours, run_export
from measure import last_error
from rounds import Candidate, Outcome, interleave

RESIDUAL = 1e-3


def bench(shape: Shape, work: Path, repeats: int, threads: int) -> dict[str, Outcome]:
    """Quantize a checkpoint whose greedy text soon repeats; each sample measures both texts, both ways.

    Args:
        shape: Of the checkpoint.
        work: Where it and the bundles stand.
        repeats: Rounds.
        threads: Of the arithmetic.
    """
    checkpoint = make_checkpoint(work / "circles", shape, "bfloat16", RESIDUAL)
    candidates = []
    for block in ("32", "128"):
        folder = work / f"lookup-{block}"
        export = ours("", "--precision", "int4", "--block-size", block, "--no-verify")
        exported = run_export(export, checkpoint, folder)
        if exported.returncode:
            raise RuntimeError(f"export: {last_error(exported)}")
        question = (Path(sys.executable), "lookup_ours.py", folder, str(threads), str(shape.vocab_size))
        candidates.append(Candidate(f"ours, int4 block {block}", lambda question=question: ask(*question)))
    return interleave(candidates, repeats, threads)
