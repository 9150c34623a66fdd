"""The runtime is whole without PyTorch: a clean environment has the wheel and its [cpu] extra."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import llama_runtime

REPO = Path(__file__).parents[2]
ABSENT = ["torch", "onnx", "onnx_ir", "onnxscript", "transformers"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """The bin folder of a new environment. The install is from a copy: building leaves files in the tree."""
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("exporter", "runtime"):
        shutil.copytree(REPO / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPO / name, source / name)
    venv.create(folder / "venv", with_pip=True, symlinks=os.name == "posix")
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = run([*install, f"{source}[cpu]"])
    assert done.returncode == 0, done.stderr
    return programs


def run(command: list[object], **options: object) -> subprocess.CompletedProcess[str]:
    # Nothing of the environment that the tests run in may leak into the clean one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["LLAMA_EXPORT_KERNELS"] = "off"  # tests/kernels has a wheel with them
    words = [str(word) for word in command]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=600, env=environment, **options
    )


def test_imports(clean, tmp_path):
    script = "import importlib.util, llama_runtime, llama_export, llama_export.cli\n"
    script += f"print([name for name in {ABSENT} if importlib.util.find_spec(name)])"
    done = run([clean / "python", "-W", "error", "-c", script], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_run(clean, talking_bundle, tmp_path):
    done = run([clean / "llama-export", "run", talking_bundle, "the green sea", "-n", "12"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == llama_runtime.generate(talking_bundle, "the green sea", max_new_tokens=12) + "\n"


def test_selftest(clean, talking_bundle, tmp_path):
    done = run([clean / "llama-export", "selftest", talking_bundle], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: 2 known answers")


def test_inspect_a_bundle(clean, talking_bundle, tmp_path):
    done = run([clean / "llama-export", "inspect", talking_bundle], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified, 2 known answers" in done.stdout


def test_help(clean, tmp_path):
    assert run([clean / "llama-export", "onnx", "--help"], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["onnx", "{}"],
        ["onnx", "{}", "--dry-run"],
        ["inspect", "{}"],
        ["verify", "bundle", "--checkpoint", "{}"],
    ],
    ids=" ".join,
)
def test_what_needs_torch_names_the_extra(clean, talking, tmp_path, arguments):
    done = run([clean / "llama-export", *(word.format(talking) for word in arguments)], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "is not installed, exporting needs it" in error
    assert hint == "hint: pip install 'llama-export[export,cpu]'"
    assert list(tmp_path.iterdir()) == []


def test_this_environment_is_another_one(clean):
    assert Path(sys.executable).parent != clean
