"""A signal undoes what is under way and ends the process, whatever runs in it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from llama_export.interruption import ended_by_signals

# The callback stands for PyTorch's: ctypes swallows what it raises, where C++ may abort.
WORK_IN_A_CALLBACK = """
import ctypes, sys, threading, time
from pathlib import Path
from llama_export.bundle.stage import Stage
from llama_export.interruption import ended_by_signals

@ctypes.CFUNCTYPE(None)
def work():
    print("working", flush=True)
    time.sleep(60)

def write(folder):
    for number in range(10**9):
        try:
            (folder / str(number)).touch()
        except OSError:
            return

with ended_by_signals(), Stage(Path(sys.argv[1]), 0) as stage:
    threading.Thread(target=write, args=[stage.folder]).start()
    work()
    print("went on", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_ends_what_no_exception_could(tmp_path, number, code, said):
    with subprocess.Popen(
        [sys.executable, "-c", WORK_IN_A_CALLBACK, tmp_path / "made/out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as child:
        assert child.stdout.readline() == "working\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert (out, err, child.returncode) == ("", said, code)
    assert list(tmp_path.iterdir()) == []


def test_handlers_do_not_outlive_the_work():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
