"""The form of every refusal on the command line: one sentence, a remedy, exit code 2."""

from __future__ import annotations

from click.testing import Result


def refused(result: Result, *words: str, hint: bool = True) -> str:
    """Check the form of a refusal and return its sentence."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == (2 if hint else 1), result.stderr
    assert lines[0].startswith("error: ")
    assert not hint or lines[1].startswith("hint: ")
    for line in lines:
        assert line.isprintable()
        assert not line.endswith(".")
    for word in words:
        assert word in lines[0]
    return lines[0]
