"""The script in examples/ runs where ONNX Runtime, NumPy and tokenizers are all there is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import environments
import pytest
from asking import OFFLINE, PROMPTS, REPO, environment

import llama_runtime

pytestmark = pytest.mark.long
SCRIPT = REPO / "examples/plain_onnxruntime.py"
ABSENT = ["torch", "onnx", "transformers", "llama_runtime", "llama_export", "sentencepiece"]


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with the three packages that the script names."""
    return environment("plain-onnxruntime", (environments.ONNXRUNTIME, "numpy", "tokenizers==0.23.3"))


def run(python: Path, *arguments: str | Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | OFFLINE
    command = [str(word) for word in (python, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_nothing_else_is_there(python):
    script = f"import importlib.util; print([n for n in {ABSENT} if importlib.util.find_spec(n)])"
    assert run(python, "-c", script) == "[]\n"


def test_text(python, ours, bundle: Path):
    for prompt in [*PROMPTS[bundle.name], "a <s> and a <|eot_id|>"]:
        options = llama_runtime.SamplingOptions(max_new_tokens=64)
        expected = ours.generator.generate(prompt, options).text
        found = run(python, SCRIPT, bundle, prompt, "64")
        # It holds back what may become a character; random weights seldom end with a whole one.
        assert expected.startswith(found)
        assert expected[len(found) :].strip("\ufffd") == ""
        assert found or bundle.name == "llama3"


def test_it_can_be_copied():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 40
