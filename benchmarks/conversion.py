"""Exports of one bfloat16 checkpoint, ours and the peers': wall time and peak private memory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peers
from machine import settle
from measure import Measured, last_error, measure
from rounds import Candidate, Outcome, interleave

OURS = Path(sys.executable).with_name("llama-export")


@dataclass(frozen=True)
class Export:
    """One way to export.

    Attributes:
        name: As the tables show it.
        command: From (checkpoint, output folder) to what runs.
    """

    name: str
    command: Callable[[Path, Path], list[str | Path]]


def ours(name: str, *options: str) -> Export:
    """Our export with these options."""
    return Export(name, lambda checkpoint, output: [OURS, "onnx", checkpoint, output, "--force", *options])


COPY = ("--weights", "copy", "--precision", "float32")
OUR_EXPORTS = (
    ours("ours, link", "--weights", "link", "--no-verify"),
    ours("ours, link, verified", "--weights", "link"),
    ours("ours, copy fp32", *COPY, "--no-verify"),
    ours("ours, copy fp32, verified", *COPY),
)


def peer_export(peer: peers.Peer, env: Path) -> Export:
    """A peer's float32 export."""
    return Export(peer.name + ", fp32", lambda checkpoint, output: peer.convert(env, checkpoint, output))


def run_export(export: Export, checkpoint: Path, output: Path) -> Measured:
    """Export once into a fresh folder, with the checkpoint in the page cache and the disk at rest."""
    remove(output)
    if export not in OUR_EXPORTS:  # ours makes its folder itself, in one move
        output.mkdir(parents=True)
    settle(checkpoint)
    return measure(export.command(checkpoint, output), env=peers.OFFLINE)


def bench(
    checkpoint: Path, work: Path, environments: dict[peers.Peer, Path], repeats: int
) -> dict[str, Outcome]:
    """Export every way in turn, ``repeats`` times; outputs are removed at once.

    Args:
        checkpoint: bfloat16.
        work: On the file system of the checkpoint, or ``link`` becomes a copy.
        environments: The installed peers.
        repeats: Rounds.
    """
    output = work / "export"

    def once(export: Export) -> dict[str, float]:
        measured = run_export(export, checkpoint, output)
        written = size(output)
        remove(output)
        if measured.returncode:
            raise RuntimeError(last_error(measured))
        return {
            "seconds": measured.seconds,
            "output_bytes": written,
        } | measured.conditions()

    exports = [*OUR_EXPORTS, *(peer_export(peer, env) for peer, env in environments.items())]
    return interleave([Candidate(e.name, lambda e=e: once(e)) for e in exports], repeats)


def size(folder: Path) -> int:
    """Bytes of a folder's files; those it shares with the checkpoint count too."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(output: Path) -> None:
    """Delete an output, and what an export may have left beside it."""
    for path in output.parent.glob(output.name + "*"):
        shutil.rmtree(path, ignore_errors=True)
