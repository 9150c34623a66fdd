"""pip's build backend: scikit-build-core, with the CPU kernels where they can be built and without where not.

A wheel has them compiled by scikit-build-core; an editable install has them where ``make kernels`` puts them.
What is missing is one line (``pip -v`` shows it), and the wheel is a pure one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from scikit_build_core import build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

Settings = dict[str, list[str] | str]

HERE = Path(__file__).parent
PURE: Settings = {"wheel.cmake": "false"}
EDITABLE = Path("build/editable")
HALVES = (Path("exporter"), Path("runtime/python"))


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """CMake, where there is a compiler and no CMake."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    return build.get_requires_for_build_wheel({**(config_settings or {}), **({} if compiler else PURE)})


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    """Nothing: the kernels are built with what the machine has, as ``make kernels`` does."""
    return build.get_requires_for_build_editable({**(config_settings or {}), **PURE})


def build_wheel(
    wheel_directory: str, config_settings: Settings | None = None, metadata_directory: str | None = None
) -> str:
    """A wheel, for this platform with the kernels, for any without; returns its file's name."""
    done = _run("needs.sh")
    found = done.stdout.strip()
    if done.returncode:
        _say(found)
        kernels = PURE
    else:
        kernels = {"cmake.define.ONNXRUNTIME_INCLUDE": found}
    return build.build_wheel(wheel_directory, {**(config_settings or {}), **kernels}, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings | None = None, metadata_directory: str | None = None
) -> str:
    """A wheel that points into this tree, in which the kernels are built; returns its file's name.

    All that it has is a .pth: scikit-build-core's own finder would go before PYTHONPATH, and the tests of
    another tree would be given this tree's modules.
    """
    done = _run("build.sh")
    if done.returncode:
        _say("they cannot be built here (make kernels says why)")
    else:
        print(done.stdout, end="", flush=True)
    EDITABLE.mkdir(parents=True, exist_ok=True)
    (EDITABLE / "llama_export.pth").write_text("".join(f"{half.resolve()}\n" for half in HALVES))
    points: Settings = {
        "wheel.packages": [],
        f"wheel.force-include.{EDITABLE.as_posix()}": "${SKBUILD_PURELIB_DIR}",
    }
    return build.build_wheel(
        wheel_directory, {**(config_settings or {}), **PURE, **points}, metadata_directory
    )


def _run(script: str) -> subprocess.CompletedProcess[str]:
    """A script of this folder and what it prints; where there is no bash, as if it had said so."""
    command = ["bash", str(HERE / script)]
    if shutil.which("bash") is None:
        return subprocess.CompletedProcess(command, 1, "bash not found", "")
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _say(reason: str) -> None:
    print(f"kernels: skipped, {reason}; bundles run with ONNX Runtime's own", flush=True)
