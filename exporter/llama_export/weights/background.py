"""A thread beside the one that reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

IN_FLIGHT = 3


class InBackground:
    """A thread that does one thing after the other, and whoever submits waits before it lags far behind."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._in_flight: deque[Future[object]] = deque()

    def __enter__(self) -> InBackground:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def submit(self, work: Callable[..., object], *arguments: Any) -> None:
        """Have something done after all that was submitted before; what went wrong there is raised here.

        On return, no more than ``IN_FLIGHT`` things are still to be done.
        """
        self._in_flight.append(self._thread.submit(work, *arguments))
        while len(self._in_flight) > IN_FLIGHT:
            self._in_flight.popleft().result()

    def drain(self) -> None:
        """Wait until all is done."""
        while self._in_flight:
            self._in_flight.popleft().result()

    def stop(self) -> None:
        """Drop what has not begun."""
        self._thread.shutdown(cancel_futures=True)
