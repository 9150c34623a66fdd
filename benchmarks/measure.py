"""Run a command and watch it: seconds, and the most private memory that it and its children held."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.02


@dataclass(frozen=True)
class Measured:
    """A command that has ended.

    Attributes:
        seconds: From spawning it to its end.
        peak_private_bytes: Largest sum of anonymous memory over the process and its descendants, every
            20 ms. Mapped files are not in it: the system may drop those pages whenever it likes.
        peak_rss_bytes: What the process alone held at most, mapped files included, up to the last look.
        returncode: As the shell counts it; negative for a signal.
        stdout: All of it.
        stderr: Its end.
        others_cores: How many cores the rest of the machine kept busy meanwhile, stolen time included.
    """

    seconds: float
    peak_private_bytes: int
    peak_rss_bytes: int
    returncode: int
    stdout: str
    stderr: str
    others_cores: float

    def conditions(self) -> dict[str, float]:
        """What every sample keeps, whatever else it measured."""
        return {"peak_private_bytes": self.peak_private_bytes, "others_cores": self.others_cores}


def measure(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout_s: float = 1800
) -> Measured:
    """Run a command to its end.

    Args:
        command: The program and its arguments.
        env: Added to the environment.
        timeout_s: When to end it, which counts as failure.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start, busy = time.monotonic(), busy_seconds()
        started = {"BENCHMARK_STARTED": repr(start)}
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **started, **(env or {})},
            start_new_session=True,
        )
        peak = rss = 0
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, private_bytes(process.pid))
            rss = max(rss, status_bytes(process.pid, "VmHWM:"))
            if time.monotonic() - start > timeout_s:
                os.killpg(process.pid, 9)
            time.sleep(SAMPLE_S)
        seconds, busy = time.monotonic() - start, busy_seconds() - busy
        status, usage = ended[1:]
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        out, err = stdout.read().decode(errors="replace"), stderr.read().decode(errors="replace")
    others = max(0.0, busy - usage.ru_utime - usage.ru_stime) / seconds
    return Measured(seconds, peak, rss, process.returncode, out, err[-4000:], others)


def busy_seconds() -> float:
    """Processor time that all cores have spent on anything but idling and waiting for a disk."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    idle, waiting = fields[3], fields[4]
    return (sum(map(int, fields)) - int(idle) - int(waiting)) / os.sysconf("SC_CLK_TCK")


def private_bytes(root: int) -> int:
    """Anonymous memory of a process and its descendants; those that have ended count as nothing."""
    total, pids = 0, [root]
    while pids:
        pid = pids.pop()
        try:
            total += status_bytes(pid, "RssAnon:", "RssShmem:")
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except (OSError, ValueError):
            continue
    return total


def status_bytes(pid: int, *names: str) -> int:
    """The sum of some lines of a process's status; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))


def last_error(measured: Measured) -> str:
    """The line of stderr that says most about a failure."""
    lines = [line.strip() for line in measured.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error" in line]
    return (errors or lines or [f"exit code {measured.returncode}"])[-1][:200]
