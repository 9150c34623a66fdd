"""The tree is the pipeline: every room of DESIGN.md is there, and nothing stands outside of one."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
FILES = [
    "pyproject.toml",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    ".ci/run",
    "artifacts/.gitkeep",
    "runtime/FORMAT.md",
    "runtime/OTHER_RUNTIMES.md",
    "runtime/cpp/CMakeLists.txt",
    "runtime/web/README.md",
    "runtime/web/index.html",
    "runtime/web/serve.py",
    "examples/plain_onnxruntime.py",
    "recipes/tiny/README.md",
    "tests/allowed_skips.txt",
]
FOLDERS = [
    *(
        f"exporter/llama_export/{room}"
        for room in (
            "checkpoint",
            "model",
            "graph",
            "quantize",
            "weights",
            "tokenizer",
            "bundle",
            "engine",
            "parity",
            "cli",
        )
    ),
    "exporter/llama_export/graph/passes",
    "runtime/python/llama_runtime",
    "runtime/web",
    *("runtime/cpp/include", "runtime/cpp/src", "runtime/cpp/programs", "runtime/cpp/examples"),
    "examples",
    "recipes/tiny/checkpoint",
    "benchmarks",
    "tests/unit",
    "tests/cpp",
    "tests/parity",
    "tests/contract",
    "tests/other_runtimes",
]
# Rooms that DESIGN.md has and that later work fills.
LATER = {"kernels"}
TOP = {
    *(
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        ".ci",
        ".gitignore",
    ),
    *("exporter", "runtime", "examples", "recipes", "benchmarks", "tests", "artifacts"),
}
NO_ROOM = re.compile(r"(utils?|helpers?|common|misc)(\.py)?")


def tracked() -> list[Path]:
    """Files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    return [path for line in listed.splitlines() if (REPO / (path := Path(line))).exists()]


@pytest.mark.parametrize("name", FILES)
def test_file_is_there(name):
    assert (REPO / name).is_file()


@pytest.mark.parametrize("name", FOLDERS)
def test_room_is_there(name):
    folder = REPO / name
    assert folder.is_dir()
    assert any(folder.iterdir())


def test_nothing_stands_outside_a_room():
    files = tracked()
    assert {path.parts[0] for path in files} <= TOP
    rooms = {path.parts[2] for path in files if path.parts[:1] == ("exporter",) and len(path.parts) > 3}
    assert rooms <= {Path(name).name for name in FOLDERS} | LATER
    halves = {path.parts[1] for path in files if path.parts[0] == "runtime" and len(path.parts) > 2}
    assert halves <= {"python", "cpp", "web"} | LATER
    assert {path.parts[1] for path in files if path.parts[0] == "artifacts"} == {".gitkeep"}


def test_unit_tests_mirror_the_tree():
    rooms = {path.name for path in (REPO / "exporter/llama_export").iterdir() if path.is_dir()}
    others = {"runtime", "recipes", "web"}
    assert {path.name for path in (REPO / "tests/unit").iterdir() if path.is_dir()} - {"__pycache__"} <= (
        rooms | others | LATER
    )


def test_no_file_is_a_drawer_for_everything():
    assert [path for path in tracked() if any(NO_ROOM.fullmatch(part) for part in path.parts)] == []


def test_test_files_have_names_of_their_own():
    """Without packages, pytest tells files apart by their names alone."""
    names = [path.name for path in (REPO / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
    assert list((REPO / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("package", ["exporter/llama_export", "runtime/python/llama_runtime"])
def test_files_and_functions_stay_readable(package):
    """STYLE.md's sizes are hints; these are the lines at which a hint has been overheard."""
    for path in sorted((REPO / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"
