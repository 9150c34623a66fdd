"""A run with a skip that nobody wrote down is red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from allowed_skips import LIST, read_patterns

TESTS = Path(__file__).parents[1]
SAMPLE = """
import pytest

@pytest.mark.parametrize("x", ["[", "b"])
def test_skip(x):
    pytest.skip("not today")

@pytest.mark.xfail(reason="not yet", strict=True)
def test_xfail():
    assert False

def test_pass():
    pass
"""


def outcome(folder: Path, listed: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_sample.py").write_text(SAMPLE)
    (folder / "allowed_skips.txt").write_text(listed)
    (folder / "allowed_skips.py").write_text((TESTS / "allowed_skips.py").read_text())
    (folder / "conftest.py").write_text('pytest_plugins = ["allowed_skips"]')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_sample.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_an_unlisted_skip_is_red(tmp_path):
    done = outcome(tmp_path, "")
    assert done.returncode == 1
    assert "test_sample.py::test_skip[b]: Skipped: not today" in done.stdout
    assert "test_sample.py::test_xfail: xfail: not yet" in done.stdout


def test_listed_skips_are_green(tmp_path):
    listed = "# why\n\ntest_sample.py::test_skip[[]: brackets are meant literally\n"
    assert outcome(tmp_path, listed).returncode == 1
    listed += "test_sample.py::test_skip[?]: patterns\ntest_sample.py::test_xfail: a reason: with a colon\n"
    assert outcome(tmp_path, listed).returncode == 0


def test_a_line_without_a_reason_is_refused(tmp_path):
    assert outcome(tmp_path, "test_sample.py::*").returncode == 4
    with pytest.raises(pytest.UsageError, match="has no reason"):
        read_patterns("tests/*:\n")


def test_a_module_that_skips_itself_is_red(tmp_path):
    (tmp_path / "test_other.py").write_text("import pytest\npytest.skip('no', allow_module_level=True)")
    assert outcome(tmp_path, "test_sample.py::*: for this test", "test_other.py").returncode == 1


def test_this_repositorys_list_can_be_read():
    assert read_patterns(LIST.read_text(encoding="utf-8"))
