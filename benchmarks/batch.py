"""Several rows at once, ours and the peers', and what our runtime adds to the bare session."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peers
from checkpoints import Shape
from conversion import peer_export
from exports import COPY_EXPORT, OURS_COPIED, Exported, Exports
from machine import settle
from measure import last_error, measure
from rounds import THREADS, Candidate, Outcome, Sample, interleave

ONE_BY_ONE = "ours, one by one"
OVERHEAD = "ours beside the bare session"

Rows = list[list[int]]


def bench(
    shape: Shape,
    bfloat16: Path,
    exports: Exports,
    environments: dict[peers.Peer, Path],
    repeats: int,
    new_tokens: int,
) -> tuple[dict[str, Outcome], dict[str, Outcome], dict[str, Rows]]:
    """Export once each, then run each in turn, every time in a process of its own.

    Args:
        shape: Of the checkpoint.
        bfloat16: The checkpoint.
        exports: Shared with the other benchmarks.
        environments: The installed peers.
        repeats: Rounds.
        new_tokens: Generated for every row.

    Returns:
        Outcomes of the overhead, outcomes of the batches, and the tokens of the largest batch's rows.
    """
    tokens: dict[str, Rows] = {}
    here, copied = Path(sys.executable), exports.make(OURS_COPIED, COPY_EXPORT, bfloat16)
    numbers = [THREADS, new_tokens, shape.vocab_size]

    def candidate(name: str, interpreter: Path, script: str, exported: Exported, *more: str) -> Candidate:
        def once() -> Sample:
            answer = ask(interpreter, script, exported.require(), *map(str, numbers), *more)
            generated = answer.pop("tokens", [])
            if tokens.setdefault(name, generated) != generated:
                raise RuntimeError("other greedy tokens than in an earlier round")
            return answer

        return Candidate(name, once)

    candidates = [
        candidate(OVERHEAD, here, "overhead_ours.py", copied),
        candidate(ONE_BY_ONE, here, "batch_ours.py", copied, "alone"),
        candidate(OURS_COPIED, here, "batch_ours.py", copied, "together"),
    ]
    for peer, env in environments.items():
        if peer.batch:
            export = peer_export(peer, env)
            exported = exports.make(export.name, export, bfloat16)
            candidates.append(candidate(export.name, peers.python(env), peer.batch, exported))
    outcomes = interleave(candidates, repeats)
    tokens.pop(OVERHEAD, None)
    return {OVERHEAD: outcomes.pop(OVERHEAD)}, outcomes, tokens


def ask(interpreter: Path, script: str, folder: Path, *question: str) -> dict:
    """Run a script once; its answer, and the conditions.

    Raises:
        RuntimeError: It failed; the message is its last error.
    """
    settle(folder)
    measured = measure([interpreter, peers.WORKERS / script, folder, *question], env=peers.OFFLINE)
    if measured.returncode:
        raise RuntimeError(last_error(measured))
    return json.loads(measured.stdout.splitlines()[-1]) | measured.conditions()


def equal_rows(tokens: dict[str, Rows]) -> dict[str, tuple[int, int]]:
    """For each runtime, how many rows of the largest batch are what our runtime says to the prompt alone.

    Returns:
        Equal rows, and rows in all; empty where the prompts did not run alone.
    """
    alone = tokens.get(ONE_BY_ONE)
    if alone is None:
        return {}
    return {
        name: (sum(a == b for a, b in zip(rows, alone, strict=True)), len(alone))
        for name, rows in tokens.items()
        if name != ONE_BY_ONE
    }
