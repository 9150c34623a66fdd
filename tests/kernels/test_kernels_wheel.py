"""pip's build backend: a wheel with the kernels where they can be built, one without and a line where not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
LIBRARY = re.compile(r"llama_runtime/libllama_kernels\.(so|dylib)")
PACKAGES = ("exporter/llama_export", "runtime/python/llama_runtime")
PURE = "llama_export-0.1.0-py3-none-any.whl"
HEADER = "onnxruntime_c_api.h"
CALL = (
    "import sys; sys.path.insert(0, 'runtime/kernels'); import build_backend; "
    "getattr(build_backend, sys.argv[1])(sys.argv[2])"
)
FIND = (
    "import onnxruntime\n"
    "from llama_runtime.kernels import find_kernels\n"
    "found = find_kernels()\n"
    "onnxruntime.SessionOptions().register_custom_ops_library(str(found.path))\n"
    "print(found.path, found.level)"
)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(command: list[object], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A program in a folder; only of what is named here does it hear more than the tests do."""
    words = [str(word) for word in command]
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CXX", "LLAMA_EXPORT_KERNELS", "ONNXRUNTIME_INCLUDE", "ORT_HOME", "PYTHONPATH")
    }
    done = subprocess.run(
        words, cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> Path:
    """What pyproject.toml asks for to build with, installed into a folder."""
    folder = tmp_path_factory.mktemp("backend")
    asked = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    run([*pip, "--target", folder, *asked], folder, {})
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the tree in which `make kernels` has been at work, long ago."""
    folder = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", "libllama_kernels.*")
    for name in ("exporter", "runtime"):
        shutil.copytree(REPO / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPO / name, folder / name)
    for suffix in ("so", "dylib"):
        (folder / PACKAGES[1] / f"libllama_kernels.{suffix}").write_text("of another day")
    return folder


@pytest.fixture(scope="module")
def headers() -> str:
    """The folder of ONNX Runtime's headers, where the kernels can be built here."""
    done = subprocess.run(
        ["bash", str(REPO / "runtime/kernels/needs.sh")],
        env={name: value for name, value in os.environ.items() if name != "LLAMA_EXPORT_KERNELS"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"kernels cannot be built here: {done.stdout.strip()}")
    return done.stdout.strip()


def programs(folder: Path, *names: str) -> str:
    """A PATH with some programs of the machine and nothing else."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"needs {name}")
        (folder / name).symlink_to(found)
    return str(folder)


def built(hook: str, source: Path, environment: dict[str, str]) -> tuple[Path, list[str]]:
    """What a hook of the backend makes of a tree, and the lines that it says about the kernels."""
    folder = source.parent / "built"
    folder.mkdir()
    done = run([sys.executable, "-c", CALL, hook, folder], source, environment)
    (made,) = folder.iterdir()
    return made, [line for line in done.stdout.splitlines() if "kernels: " in line]


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


def files_in(source: Path) -> set[str]:
    """What belongs into a wheel of a tree, the library left out."""
    found = {
        path.relative_to((source / package).parent).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    return {name for name in found if not LIBRARY.fullmatch(name)}


def finds(folder: Path, environment: dict[str, str]) -> str:
    """Which library the runtime of a folder finds, and that ONNX Runtime takes it."""
    environment = {"PYTHONPATH": str(folder), "LLAMA_EXPORT_KERNELS": "scalar", **environment}
    return run([sys.executable, "-c", FIND], folder, environment).stdout.strip()


def missing(what: str, folder: Path) -> tuple[dict[str, str], str]:
    """An environment that lacks something, and the reason that is to be given."""
    if what == "compiler":
        return {"PATH": programs(folder, "bash", "dirname", "cmake")}, "c++ not found"
    if what == "cmake":
        return {"PATH": programs(folder, "bash", "dirname", "c++")}, "cmake not found"
    if what == "headers":
        system = [
            Path(f"{top}/include{below}") for top in ("/usr", "/usr/local") for below in ("", "/onnxruntime")
        ]
        if any((place / HEADER).exists() for place in system):
            pytest.skip("the system has ONNX Runtime's headers")
        path = programs(folder, "bash", "dirname", "c++", "cmake")
        return {
            "PATH": path
        }, "ONNX Runtime's headers cannot be fetched (ONNXRUNTIME_INCLUDE names a folder that has them)"
    if what == "named headers":
        path = programs(folder, "bash", "dirname", "c++", "cmake")
        return {"PATH": path, "ONNXRUNTIME_INCLUDE": str(folder)}, f"ONNXRUNTIME_INCLUDE has no {HEADER}"
    if what == "wish":
        return {"LLAMA_EXPORT_KERNELS": "off"}, "LLAMA_EXPORT_KERNELS is off"
    programs(folder, "cmake")
    (folder / HEADER).touch()
    compiler = folder / "old-c++"
    compiler.write_text("#!/bin/sh\necho 'unknown value x86-64-v4 for -march' >&2\nexit 1\n")
    compiler.chmod(0o755)
    return {"CXX": str(compiler), "ONNXRUNTIME_INCLUDE": str(folder)}, "they do not compile here"


@pytest.mark.parametrize("what", ["compiler", "cmake", "headers", "named headers", "wish", "new compiler"])
def test_what_is_missing_is_one_line_and_the_wheel_is_for_any_machine(backend, source, tmp_path, what):
    environment, reason = missing(what, tmp_path / "programs")
    wheel, lines = built("build_wheel", source, {"PYTHONPATH": str(backend), **environment})
    assert lines == [f"kernels: skipped, {reason}; bundles run with ONNX Runtime's own"]
    assert wheel.name == PURE
    assert files_of(wheel) == files_in(source)


def test_an_editable_install_without_a_compiler(backend, source, tmp_path):
    environment, reason = missing("compiler", tmp_path / "programs")
    wheel, lines = built("build_editable", source, {"PYTHONPATH": str(backend), **environment})
    assert lines == [f"kernels: skipped, {reason}; bundles run with ONNX Runtime's own"]
    assert files_of(wheel) == {"llama_export.pth"}
    with zipfile.ZipFile(wheel) as opened:
        places = opened.read("llama_export.pth").decode().splitlines()
    assert places == [str((source / package).parent) for package in PACKAGES]


def test_a_source_archive_builds_the_same_wheel(backend, source, tmp_path):
    archive, _ = built("build_sdist", source, {"PYTHONPATH": str(backend)})
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert not list(unpacked.rglob("libllama_kernels.*"))
    assert (unpacked / "runtime/kernels/src/library.cpp").exists()
    environment = {"PYTHONPATH": str(backend), "LLAMA_EXPORT_KERNELS": "off"}
    wheel, _ = built("build_wheel", unpacked, environment)
    assert files_of(wheel) == files_in(source)


def test_a_wheel_with_a_compiler(source, headers, tmp_path):
    """As a person builds and installs it: pip sets up what to build with."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    environment = {"ONNXRUNTIME_INCLUDE": headers}
    run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "built", source], tmp_path, environment)
    (wheel,) = (tmp_path / "built").iterdir()
    assert re.fullmatch(r"llama_export-0\.1\.0-py3-none-(linux|macosx)_\w+\.whl", wheel.name)
    (library,) = files_of(wheel) - files_in(source)
    assert LIBRARY.fullmatch(library)
    place = tmp_path / "installed"
    run([*pip, "install", "--no-deps", "--target", place, wheel], tmp_path, {})
    assert finds(place, {}) == f"{place / library} scalar"


@pytest.mark.long
def test_an_editable_install_with_a_compiler(backend, source, headers):
    environment = {"PYTHONPATH": str(backend), "ONNXRUNTIME_INCLUDE": headers}
    wheel, lines = built("build_editable", source, environment)
    assert lines == ["kernels: in runtime/python/llama_runtime; LLAMA_EXPORT_KERNELS=off is without"]
    assert files_of(wheel) == {"llama_export.pth"}
    found = finds(source / "runtime/python", {})
    assert found.startswith(str(source / PACKAGES[1] / "libllama_kernels.")) and found.endswith(" scalar")
