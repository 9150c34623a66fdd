"""Exports to generate with, each made once a run, whichever benchmark asks first."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from conversion import COPY, Export, ours, run_export
from measure import last_error

OURS_COPIED = "ours, copy fp32"
COPY_EXPORT = ours("", *COPY, "--no-verify")


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        folder: Holds it.
        failure: Why there is none.
    """

    folder: Path
    failure: str | None

    def require(self) -> Path:
        """The folder; RuntimeError with the reason where the export failed."""
        if self.failure:
            raise RuntimeError(self.failure)
        return self.folder


class Exports:
    """Folders that stay until the run ends."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._made: dict[str, Exported] = {}

    def make(self, name: str, export: Export, checkpoint: Path) -> Exported:
        """Export, unless this name was exported before; a failure is not tried again.

        Args:
            name: As the tables show it: the same name stands for the same export of the same checkpoint.
            export: How.
            checkpoint: What.
        """
        if name not in self._made:
            print(f"exporting for {name}", file=sys.stderr, flush=True)
            folder = self._work / f"runtime-{len(self._made)}"
            done = run_export(export, checkpoint, folder)
            self._made[name] = Exported(folder, f"export: {last_error(done)}" if done.returncode else None)
        return self._made[name]
