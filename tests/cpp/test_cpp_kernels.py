"""The C++ runtime with our own CPU kernels: Python's tokens, and no bundle that needs them."""

from __future__ import annotations

import os

import pytest
from kernel_choice import choose

from llama_runtime import SamplingOptions, load
from llama_runtime.kernels import LIBRARY, VARIABLE

pytestmark = pytest.mark.skipif(
    not LIBRARY.exists() and not os.environ.get("CI"), reason="the kernels were not built: make kernels"
)
PATH = "LLAMA_RUNTIME_KERNELS"
OURS = "ONNX Runtime's own operators are used"


@pytest.fixture
def bundle(demo_of):
    return demo_of(precision="int4")


@pytest.fixture(autouse=True)
def _named(monkeypatch):
    choose(monkeypatch)
    monkeypatch.setenv(PATH, str(LIBRARY))


def test_tokens_are_pythons_with_them(open_model, bundle, capfd):
    options = {"max_new_tokens": 60, "ignore_eos": True}
    python, cpp = load(bundle, threads=1), open_model(bundle)
    assert python.session.kernels is not None
    for prompt in ("Once upon a time", [1, 347, 600], [1, *(3 + i * 7 % 900 for i in range(300))]):
        wanted = python.generate(prompt, SamplingOptions(**options))
        assert cpp.generate(prompt, **options).tokens == wanted.tokens
    assert OURS not in capfd.readouterr().err


def test_selftest_is_green_with_and_without_and_measures_other_numbers(open_model, bundle, monkeypatch):
    found = []
    for choice in (os.environ.get(VARIABLE, ""), "off"):
        monkeypatch.setenv(VARIABLE, choice)
        found.append(open_model(bundle).selftest())
    assert [differences for _, differences in found] == [[], []]
    with_kernels, without = (report.largest_difference for report, _ in found)
    assert with_kernels != without  # other operators did compute


def test_what_is_wrong_with_them_is_one_line(open_model, bundle, monkeypatch, capfd, tmp_path):
    broken = tmp_path / "libllama_kernels.so"
    broken.write_bytes(b"\x7fELF" + bytes(200))
    for path, level, told in [
        (broken, "", "not a library of kernels for this machine"),
        (tmp_path / "none.so", "", "not a library of kernels for this machine"),
        (LIBRARY, "abacus", f"{VARIABLE} is abacus, which the kernels or this processor do not have"),
    ]:
        monkeypatch.setenv(PATH, str(path))
        monkeypatch.setenv(VARIABLE, level)
        assert open_model(bundle).selftest()[1] == []
        (line,) = capfd.readouterr().err.splitlines()
        assert told in line and line.endswith(OURS)
