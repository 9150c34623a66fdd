"""Verifying a linked bundle again, in full and quickly: wall time and peak private memory.

Beside it, where the model fits, the same bundle running: verification may need 1.5 GiB more than that.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import peers
from checkpoints import Dtype, Shape, make_checkpoint
from conversion import OURS, ours, remove, run_export
from machine import settle
from measure import last_error, measure
from rounds import Candidate, Outcome, Sample, interleave

RUN = ("A", "--max-new-tokens", "32", "--temperature", "0")
# Running a bundle with linked 16-bit weights widens them all.
RUN_BYTES = 8e9


def bench(work: Path, shape: Shape, repeats: int) -> dict[str, Outcome]:
    """Export, linked, without verification; then verify and run in turn; all is removed at the end.

    Args:
        work: A disk with room for the checkpoint.
        shape: The architecture.
        repeats: Rounds.
    """
    outcomes: dict[str, Outcome] = {}
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    for dtype in dtypes:
        if dtype == "bfloat16" or fits(shape):
            outcomes |= of_dtype(work, shape, dtype, repeats)
    return outcomes


def fits(shape: Shape) -> bool:
    """Whether the weights in float32 are few enough to hold them in memory without a thought."""
    return 4 * sum(map(math.prod, shape.tensors().values())) <= RUN_BYTES


def of_dtype(work: Path, shape: Shape, dtype: Dtype, repeats: int) -> dict[str, Outcome]:
    """All rows of one checkpoint."""
    checkpoint, bundle = work / dtype, work / "verified"
    made = checkpoint.exists()
    make_checkpoint(checkpoint, shape, dtype)
    exported = run_export(ours("", "--weights", "link", "--no-verify"), checkpoint, bundle)
    if exported.returncode:
        raise RuntimeError(f"export: {last_error(exported)}")

    def once(command: list[str | Path]) -> Sample:
        settle(checkpoint)
        measured = measure(command, env=peers.OFFLINE)
        if measured.returncode:
            raise RuntimeError(last_error(measured))
        return {"seconds": measured.seconds} | measured.conditions()

    verify: list[str | Path] = [OURS, "verify", bundle, "--checkpoint", checkpoint]
    commands: dict[str, list[str | Path]] = {"verify": verify, "verify --quick": [*verify, "--quick"]}
    if fits(shape):
        commands["run, 32 tokens"] = [OURS, "run", bundle, *RUN]
    found = interleave(
        [Candidate(f"{dtype}, {name}", lambda c=command: once(c)) for name, command in commands.items()],
        repeats,
    )
    remove(bundle)
    if not made:
        shutil.rmtree(checkpoint)
    return found
