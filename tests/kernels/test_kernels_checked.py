"""The kernels' own tests under memory and thread checkers, and for Arm in an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
COMPILER = "aarch64-linux-gnu-g++"

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="needs CMake and a C++ compiler"
)


def built(name: str, *options: str) -> Path:
    """The test program, built with some options; a second build takes what has not changed from the first."""
    folder = REPO / "build" / f"kernels-{name}"
    configure = ["cmake", "-S", str(REPO / "runtime/kernels"), "-B", str(folder), *options]
    build = ["cmake", "--build", str(folder), "--parallel", "2", "--target", "kernels_test"]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "kernels_test"


def checked(name: str) -> Path:
    probe = ["c++", f"-fsanitize={name}", "-x", "c++", "-", "-o", "/dev/null"]
    if subprocess.run(probe, input="int main() {}", capture_output=True, text=True, check=False).returncode:
        pytest.skip(f"the compiler has no -fsanitize={name}")
    return built(name.partition(",")[0], f"-DSANITIZE={name}")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the checkers' messages are those of Linux")
def test_no_access_is_out_of_bounds_or_undefined():
    done = run(checked("address,undefined"), "quick")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("; ok")


@pytest.mark.skipif(sys.platform != "linux", reason="the checkers' messages are those of Linux")
@pytest.mark.parametrize("what", ["matrix", "panel", "cache"])
def test_reading_one_too_many_is_noticed(what):
    """A block behind a matrix, a panel, a position behind a cache: the checker sees what the kernels read."""
    done = run(checked("address,undefined"), "overread", what)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "READ of size" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the checkers' messages are those of Linux")
def test_threads_share_nothing_that_one_of_them_writes():
    done = run(checked("thread"), "threads")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("; ok")


def test_arm_gives_the_same_bits():
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("every test here is for Arm already")
    if shutil.which(COMPILER) is None or shutil.which("qemu-aarch64") is None:
        pytest.skip(f"needs {COMPILER} and qemu-aarch64")
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    program = built("arm", *system, f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    done = run("qemu-aarch64", program, "quick")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "levels: neon scalar; 0 random shapes, seed 1; ok" in done.stdout
