"""What the figures were taken on, and what else the machine was doing."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

OURS = ("llama-export", "onnxruntime", "torch", "onnx", "onnx-ir", "onnxscript", "numpy")
# What decides how fast a CPU multiplies.
FEATURES = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"}
BUSY = 0.02  # of a core: what a process may use without being named


def describe() -> dict[str, object]:
    """Processor, cores, memory, system, date and our versions."""
    facts = dict(_pairs("/proc/cpuinfo"))
    memory = dict(_pairs("/proc/meminfo"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "cpu": facts.get("model name", platform.processor()),
        "cpu_features": sorted(FEATURES & set(facts.get("flags", "").split())),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory["MemTotal"].split()[0]) / 2**20, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in OURS},
    }


def busy_processes(seconds: float = 1.0) -> dict[str, float]:
    """Other processes that used the processor during the given time, and how many cores each."""
    before = _cpu_ticks()
    time.sleep(seconds)
    after = _cpu_ticks()
    per_core = os.sysconf("SC_CLK_TCK") * seconds
    used = {key: (ticks - before[key]) / per_core for key, ticks in after.items() if key in before}
    ranked = sorted(used.items(), key=lambda item: -item[1])
    return {f"{name} ({pid})": share for (pid, name), share in ranked if share > BUSY and pid != os.getpid()}


def settle(*warm: Path) -> None:
    """Write back what earlier runs left dirty, and bring files into the page cache.

    Args:
        warm: Files, or folders whose files, the next command is going to read.
    """
    os.sync()
    for path in warm:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    while stream.read(1 << 24):
                        pass


def _pairs(path: str) -> list[tuple[str, str]]:
    lines = [line.partition(":") for line in Path(path).read_text().splitlines()]
    return [(key.strip(), value.strip()) for key, _, value in lines]


def _cpu_ticks() -> dict[tuple[int, str], int]:
    ticks = {}
    for folder in Path("/proc").iterdir():
        try:
            name, _, fields = (folder / "stat").read_text().partition(" (")[2].rpartition(") ")
            ticks[int(folder.name), name] = sum(map(int, fields.split()[11:13]))
        except (OSError, ValueError):
            continue
    return ticks
