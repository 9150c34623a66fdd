"""Generating with float32 exports: load, first token, decode and prefill, ours and the peers'."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import peers
from checkpoints import Shape
from conversion import Export, ours, peer_export
from exports import COPY_EXPORT, OURS_COPIED, Exported, Exports
from machine import settle
from measure import last_error, measure
from rounds import THREADS, Candidate, Outcome, Sample, interleave

PROMPT_TOKENS = 128


@dataclass(frozen=True)
class Runtime:
    """An export and the script that runs it.

    Attributes:
        name: As the tables show it.
        export: How its folder is made.
        checkpoint: Exported from it.
        interpreter: Of the script's environment.
        script: In ``workers``.
    """

    name: str
    export: Export
    checkpoint: Path
    interpreter: Path
    script: str


def runtimes(bfloat16: Path, float32: Path, environments: dict[peers.Peer, Path]) -> list[Runtime]:
    """Everything that is measured; the checkpoints hold the same values."""
    link, script = ("--weights", "link", "--no-verify"), "generate_ours.py"
    here = Path(sys.executable)
    found = [
        Runtime("ours, fp32 checkpoint linked", ours("", *link), float32, here, script),
        Runtime(OURS_COPIED, COPY_EXPORT, bfloat16, here, script),
        Runtime("ours, bf16 checkpoint linked", ours("", *link), bfloat16, here, script),
    ]
    for peer, env in environments.items():
        if peer.generate:
            export = peer_export(peer, env)
            found.append(Runtime(export.name, export, bfloat16, peers.python(env), peer.generate))
    return found


def bench(
    shape: Shape,
    bfloat16: Path,
    float32: Path,
    exports: Exports,
    environments: dict[peers.Peer, Path],
    repeats: int,
    new_tokens: int,
) -> tuple[dict[str, Outcome], dict[str, list[int]]]:
    """Export once each, then run each in turn, every time in a process of its own.

    Args:
        shape: Of both checkpoints.
        bfloat16: A checkpoint.
        float32: The same values in float32.
        exports: Shared with the other benchmarks.
        environments: The installed peers.
        repeats: Rounds.
        new_tokens: Generated after the prompt of 128.

    Returns:
        Outcomes, and the tokens that each runtime generated.
    """
    tokens: dict[str, list[int]] = {}
    candidates = []
    for runtime in runtimes(bfloat16, float32, environments):
        exported = exports.make(runtime.name, runtime.export, runtime.checkpoint)

        def once(runtime: Runtime = runtime, exported: Exported = exported) -> Sample:
            generated, sample = generate(runtime, exported.require(), shape.vocab_size, new_tokens)
            if tokens.setdefault(runtime.name, generated) != generated:
                raise RuntimeError("other greedy tokens than in an earlier round")
            return sample

        candidates.append(Candidate(runtime.name, once))
    return interleave(candidates, repeats), tokens


def generate(
    runtime: Runtime,
    folder: Path,
    vocab_size: int,
    new_tokens: int,
    *,
    threads: int = THREADS,
    prompt_tokens: int = PROMPT_TOKENS,
) -> tuple[list[int], Sample]:
    """Run a runtime's script once.

    Raises:
        RuntimeError: It failed; the message is its last error.
    """
    settle(folder)
    question = [folder, threads, prompt_tokens, new_tokens, vocab_size]
    script = peers.WORKERS / runtime.script
    measured = measure([runtime.interpreter, script, *map(str, question)], env=peers.OFFLINE)
    if measured.returncode:
        raise RuntimeError(last_error(measured))
    answer = json.loads(measured.stdout.splitlines()[-1])
    generated = answer.pop("tokens")
    return generated, answer | measured.conditions()


def equal_tokens(tokens: dict[str, list[int]]) -> dict[str, int]:
    """How many tokens each runtime has in common with ours before the first that differs."""
    reference = next(iter(tokens.values()), [])
    return {
        name: next((i for i, (a, b) in enumerate(zip(mine, reference, strict=True)) if a != b), len(mine))
        for name, mine in tokens.items()
    }
