"""What a signal undoes before it ends the process.

A command that writes is ended by a signal at once and not by an exception: one that is raised while C++ of
PyTorch calls back into Python can reach a frame that may not throw, and the process aborts, half done.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_undo: list[Callable[[], None]] = []


def undo_if_killed(undo: Callable[[], None]) -> Callable[[], None]:
    """Have something undone where a signal ends the process; returns the function that calls this off.

    Args:
        undo: Run in the main thread, the last one first, while other threads go on: it must tolerate both.
    """
    _undo.append(undo)

    def call_off() -> None:
        if undo in _undo:
            _undo.remove(undo)

    return call_off


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and a polite kill undo what was registered, and end the process, while the block runs."""
    before = {number: signal.signal(number, _end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # a second Ctrl-C must not stop the undoing
    for undo in reversed(_undo):
        undo()
    if number == signal.SIGINT:
        # An unfinished bar of progress stands in a terminal's line, and hides its cursor.
        os.write(2, b"\r\x1b[K\x1b[?25hinterrupted\n" if sys.stderr.isatty() else b"interrupted\n")
    os._exit(128 + number)
