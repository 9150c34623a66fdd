"""The edge: cross-compiled with Debian's toolchain, the known answers replayed under an emulator."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from cpp_bundles import BUILD, REPO


@pytest.mark.long
@pytest.mark.parametrize("attention", ["flash", "sdpa", "eager"])
def test_known_answers_on_aarch64(ort_home, demo_of, attention):
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs g++-aarch64-linux-gnu")
    script = REPO / "runtime/cpp/check_aarch64.sh"
    command = [script, demo_of(attention=attention), BUILD / "cpp-aarch64", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.stdout.startswith("ok: 2 known answers, 128 tokens, numbers within "), done.stderr
