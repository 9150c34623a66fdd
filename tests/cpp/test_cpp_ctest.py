"""ctest in every way the library is built: static, shared, linked to ONNX Runtime, under the sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cpp_bundles import build

SANITIZED = ("-DLLAMA_RUNTIME_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=None")
PROGRAMS = {
    "units",
    "lookup",
    "engine",
    "abi",
    "raii",
    "example_c",
    "example_cpp",
    "fuzz",
    "run",
    "selftest",
    "bench",
    "consumer",
}


@pytest.fixture(scope="module")
def definitions(ort_home, onnxruntime_library, demo_of) -> list[str]:
    return [
        f"-DORT_HOME={ort_home}",
        f"-DLLAMA_RUNTIME_BUNDLE={demo_of()}",
        f"-DLLAMA_RUNTIME_ONNXRUNTIME={onnxruntime_library}",
    ]


def ctest(folder: Path, expected: set[str]) -> None:
    command = ["ctest", "--output-on-failure", "--test-dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    # Not one more or less: a test that is not registered, or does not run, is no pass.
    assert set(re.findall(r"Test +#\d+: (\w+) \.+ +Passed", done.stdout)) == expected, done.stdout


def test_static(definitions):
    ctest(build("cpp", *definitions), PROGRAMS)


def test_shared(definitions, library):
    folder = build("cpp-shared", *definitions)
    ctest(folder, {"abi", "raii", "example_c", "example_cpp", "consumer"})
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", folder / "libllama_runtime.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    names = {line.split()[-1] for line in symbols if line}
    assert {name for name in names if name.startswith("lr_")}
    ours = {name for name in names if "llama" in name}
    assert not ours, "symbols that no caller should see"


def test_linked(definitions, onnxruntime_library):
    """ONNX Runtime linked, as a program does that ships its own: found by the loader, not by us."""
    folder = build(
        "cpp-linked", *definitions, "-DLLAMA_RUNTIME_LINK_ONNXRUNTIME=ON", "-DLLAMA_RUNTIME_TESTS=OFF"
    )
    bundle = next(item for item in definitions if "BUNDLE" in item).split("=")[1]
    done = subprocess.run(
        [folder / "llama-selftest", bundle], capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert done.stdout.startswith("ok: "), done.stderr
    named = [folder / "llama-selftest", bundle, "--onnxruntime", str(onnxruntime_library)]
    refused = subprocess.run(named, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "this build is linked to one" in refused.stderr


def test_under_the_sanitizers(definitions):
    folder = build("cpp-sanitize", *definitions, *SANITIZED)
    ctest(folder, PROGRAMS - {"consumer"})


@pytest.mark.long
def test_threads_under_thread_sanitizer(definitions):
    """Generators of one model in four threads; ONNX Runtime's own threads cannot be looked into."""
    sanitized = ("-DLLAMA_RUNTIME_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=None")
    ctest(build("cpp-threads", *definitions, *sanitized), PROGRAMS - {"consumer"})


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_long_fuzz_under_the_sanitizers(definitions, onnxruntime_library, demo_of, seed):
    folder = build("cpp-sanitize", *definitions, *SANITIZED)
    environment = {"LLAMA_RUNTIME_ONNXRUNTIME": str(onnxruntime_library), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [folder / "tests/test_fuzz", demo_of(), "20000", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20000 rounds; read: ")
