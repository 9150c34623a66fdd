"""Stop strings: end the text in front of the first of them, and never show a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until a stop string is complete, holding back what may still become one.

    The stop string that is complete first wins, and the longest of those that end together: the
    result does not depend on how the text is cut into pushes.

    Attributes:
        stopped: A stop string was found; nothing comes after it.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return the text that is safe to show now."""
        if self.stopped:
            return ""
        self._held += text
        # (end, start) of each stop string's first occurrence.
        found = [
            (start + len(stop), start) for stop in self._stop_strings if (start := self._held.find(stop)) >= 0
        ]
        if found:
            self.stopped = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - self._possible_start())

    def flush(self) -> str:
        """End the text: what was held back did not become a stop string."""
        return self._release(len(self._held)) if not self.stopped else ""

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that some stop string begins with."""
        longest = max((len(stop) for stop in self._stop_strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop_strings):
                return length
        return 0

    def _release(self, length: int) -> str:
        released, self._held = self._held[:length], self._held[length:]
        return released
