"""The C++ runtime built as a shared library, and bundles for it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes import CDLL
from pathlib import Path
from typing import Any, NoReturn

import c_abi
import pytest
from cpp_bundles import BUILD, DEMO, REPO, build
from talking_checkpoint import quick_graphs, talking, talking_bundle

import llama_export
from llama_export.recipe import Recipe

__all__ = ["quick_graphs", "talking", "talking_bundle"]


@pytest.fixture(autouse=True)
def _same_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python finds our kernels in its own folder, C++ only where they are named: without, for both."""
    monkeypatch.setenv("LLAMA_EXPORT_KERNELS", "off")


def do_without(reason: str) -> NoReturn:
    """Skip on a person's machine that lacks what the set-up installs; on CI nothing may be lacking."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; make cpp-needs installs it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def ort_home() -> Path:
    """Where ``make cpp`` has put ONNX Runtime's headers, and a link to its library."""
    home = BUILD / "onnxruntime"
    if not (home / "include/onnxruntime_c_api.h").is_file():
        script = REPO / "runtime/cpp/fetch_onnxruntime.sh"
        done = subprocess.run(
            [script, home, sys.executable], capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            do_without(f"no headers of ONNX Runtime: {done.stderr.strip()}")
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing or not Path("/usr/include/nlohmann/json.hpp").is_file():
        do_without(f"cannot build the C++ runtime: {', '.join(missing) or 'nlohmann-json'} is missing")
    return home


@pytest.fixture(scope="session")
def onnxruntime_library(ort_home: Path) -> Path:
    return (ort_home / "lib/libonnxruntime.so").resolve()


@pytest.fixture(scope="session")
def library(ort_home: Path) -> CDLL:
    folder = build(
        "cpp-shared",
        f"-DORT_HOME={ort_home}",
        *("-DBUILD_SHARED_LIBS=ON", "-DLLAMA_RUNTIME_PROGRAMS=OFF", "-DLLAMA_RUNTIME_TESTS=ON"),
    )
    return c_abi.load(folder / "libllama_runtime.so")


Open = Callable[..., c_abi.Model]


@pytest.fixture
def open_model(library: CDLL, onnxruntime_library: Path) -> Iterator[Open]:
    """Open a bundle in C++; it is closed when the test ends."""
    opened: list[c_abi.Model] = []

    def open_(folder: Path, **options: Any) -> c_abi.Model:
        opened.append(c_abi.Model(library, onnxruntime_library, folder, **options))
        return opened[-1]

    yield open_
    for model in opened:
        model.close()


@pytest.fixture(scope="session")
def demo_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The demo checkpoint exported by a recipe, each once."""
    made: dict[Recipe, Path] = {}

    def demo(**changes: object) -> Path:
        recipe = dataclasses.replace(Recipe(), **changes)
        if recipe not in made:
            output = tmp_path_factory.mktemp("demo") / "tiny"
            made[recipe] = llama_export.export(DEMO, output, recipe=recipe).output
        return made[recipe]

    return demo
