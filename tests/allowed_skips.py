"""Fail a run in which a test is skipped, or expected to fail, for a reason that nobody wrote down.

``allowed_skips.txt`` has one line for each: a pattern of node ids, a colon, and why the test may be skipped.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("allowed_skips.txt")


def read_patterns(text: str) -> list[str]:
    """The patterns of node ids; every line must give a reason."""
    patterns = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        # Node ids hold colons, but never one that a space follows.
        pattern, _, reason = line.partition(": ")
        if not reason.strip():
            raise pytest.UsageError(f"{LIST.name}:{number}: has no reason, write `pattern: reason`")
        patterns.append(pattern.strip())
    return patterns


class AllowedSkips:
    """Collects what was skipped; asked for the verdict at the end of the run."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns
        self.unlisted: dict[str, str] = {}

    def note(self, node_id: str, why: str) -> None:
        # Brackets of parametrized tests are meant literally.
        plain = node_id.translate(_BRACKETS)
        if not any(fnmatch.fnmatchcase(plain, pattern.translate(_BRACKETS)) for pattern in self.patterns):
            self.unlisted[node_id] = why

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            why = getattr(report, "wasxfail", None)
            self.note(report.nodeid, _reason(report.longrepr) if why is None else f"xfail: {why}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.note(report.nodeid, _reason(report.longrepr))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.unlisted and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section(f"skipped, but not listed in {LIST.name}", red=True)
            for node_id, why in self.unlisted.items():
                terminalreporter.line(f"{node_id}: {why}")


_BRACKETS = str.maketrans("[]", "()")


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(AllowedSkips(read_patterns(LIST.read_text(encoding="utf-8"))))
