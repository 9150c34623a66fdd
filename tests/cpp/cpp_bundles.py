"""Where the C++ runtime is built, and bundles with something changed in them."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).parents[2]
BUILD = REPO / "build"
DEMO = REPO / "recipes/tiny/checkpoint"


def build(name: str, *definitions: str) -> Path:
    """Configure and build ``runtime/cpp`` in a folder of ``build/``, which stays: the next time is quick."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    with (BUILD / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = ["cmake", "-S", str(REPO / "runtime/cpp"), "-B", str(folder), *generator, *definitions]
        for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def copy_bundle(source: Path, target: Path, change: Callable[[dict], object] = lambda document: None) -> Path:
    """A bundle to change; its manifest is changed already."""
    shutil.copytree(source, target)
    edit_manifest(target, change)
    return target
