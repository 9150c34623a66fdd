"""Ask a runtime in its own environment, and ours, the same questions."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import environments
import pytest

import llama_runtime

REPO = Path(__file__).parents[2]
HERE = Path(__file__).parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
TIMEOUT_S = 600
MAX_NEW_TOKENS = 96
PROMPTS = {
    "demo": ["Once", "Once upon a time there was", "The dog", "Nina and Ben went to the valley, and"],
    "llama3": ["Once", "In 1984 the 3 foxes", "Grüße", "We're told that it's raining; they'll say"],
}


class Ours:
    """Our runtime's answers about a bundle.

    Attributes:
        question: What a worker is asked: prompts as ids, how many tokens at most, where a text ends.
        greedy: The tokens of each prompt.
        generator: The open bundle.
    """

    def __init__(self, bundle: Path) -> None:
        self.generator = llama_runtime.load(bundle)
        prompts = [self.generator.tokenizer.encode(text) for text in PROMPTS[bundle.name]]
        eos = list(self.generator.manifest.tokens.eos_token_ids)
        self.question = {
            "bundle": str(bundle),
            "prompts": prompts,
            "max_new_tokens": MAX_NEW_TOKENS,
            "eos": eos,
        }
        self.greedy = [self.tokens(prompt) for prompt in prompts]

    def tokens(self, prompt: list[int]) -> list[int]:
        """What continues a prompt, greedily."""
        options = llama_runtime.SamplingOptions(max_new_tokens=MAX_NEW_TOKENS)
        return list(self.generator.generate(prompt, options).tokens)


def asked(command: list[str | Path], question: dict[str, Any]) -> Any:
    """Run a worker: the question as JSON on its standard input, its answer the last line that it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        # Nothing of our environment may reach theirs.
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | OFFLINE,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Not splitlines: JSON may hold what Unicode counts as the end of a line.
    return json.loads(done.stdout.rstrip("\n").split("\n")[-1])


def environment(name: str, requirements: tuple[str, ...], *, torch: bool = False) -> Path:
    """The interpreter of an environment; without a package index the test is skipped."""
    try:
        env = environments.make(name, requirements, environments.CACHE, torch=torch)
    except environments.InstallError as error:
        pytest.skip(f"cannot be installed here: {error}")
    return environments.python(env)


def npm_install(folder: Path) -> None:
    """Install what a folder's package-lock.json says, once; without Node the test is skipped."""
    npm, lock = shutil.which("npm"), (folder / "package-lock.json").read_text()
    if npm is None or shutil.which("node") is None:
        pytest.skip("no Node.js here: install node and npm")
    mark = folder / "node_modules" / ".ready"
    with (folder / "package-lock.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if mark.is_file() and mark.read_text() == lock:
            return
        done = subprocess.run(
            [npm, "ci"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"},
        )
        if done.returncode:
            pytest.skip(f"cannot be installed here: {done.stderr.splitlines()[:1]}")
        mark.write_text(lock)
