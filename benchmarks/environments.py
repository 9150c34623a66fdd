"""Python environments that other people's packages get to themselves, made when absent and kept."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CACHE = Path("~/.cache/llama-export-bench").expanduser()
# Alone and first: any later requirement would bring the newest torch with gigabytes of CUDA.
TORCH = "torch==2.13.0"
ONNXRUNTIME = "onnxruntime==1.32.0"
# What runs an export; what makes one (benchmarks/peers.py) needs more.
OPTIMUM = ("optimum-onnx==0.1.0", ONNXRUNTIME, "transformers<4.58", "onnx==1.23.2")
GENAI_RUNTIME = ("onnxruntime-genai==0.18.0", ONNXRUNTIME)


class InstallError(Exception):
    """A package cannot be installed; the message is pip's."""


def python(env: Path) -> Path:
    """An environment's interpreter."""
    return env / "bin" / "python"


def make(
    name: str,
    requirements: Sequence[str],
    cache: Path,
    *,
    torch: bool = True,
    extra: tuple[str, Callable[[Path], None]] | None = None,
) -> Path:
    """Make an environment, unless it is there with the same requirements.

    Args:
        name: Its folder in ``cache``.
        requirements: For pip, besides torch.
        cache: Holds one folder an environment; two processes may ask for one at once.
        torch: Whether it has the tested torch, installed before all others.
        extra: What else it holds, as a name and the function that puts it into the folder.

    Returns:
        The environment's folder.

    Raises:
        InstallError: With the line of pip that says why.
    """
    env, mark = cache / name, cache / name / "ready.json"
    wanted = json.dumps([*([TORCH] if torch else []), *requirements, *([extra[0]] if extra else [])])
    with _alone(cache, name):
        if mark.is_file() and mark.read_text() == wanted:
            return env
        print(f"installing {name} into {env}", file=sys.stderr)
        venv.create(env, clear=True, with_pip=True)
        constraints = env / "constraints.txt"
        constraints.write_text(TORCH + "\n")
        if torch:
            pip(env, ["install", TORCH, "numpy"])
        pip(env, ["install", "--constraint", constraints, *requirements])
        if extra:
            extra[1](env)
        mark.write_text(wanted)
    return env


def pip(env: Path, arguments: Sequence[str | Path]) -> None:
    """Run an environment's pip.

    Raises:
        InstallError: It failed.
    """
    command = [python(env), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise InstallError((lines or ["pip failed"])[-1][:200])


@contextmanager
def _alone(cache: Path, name: str) -> Iterator[None]:
    """Hold an environment's lock."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
