"""How many processor cores this process may really use."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Count the physical cores that affinity and container quota leave to this process, at least 1.

    Two hardware threads of one core share its arithmetic units, so they count once.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota(len(cores))))


def _siblings(cpu: int) -> str:
    try:
        return (TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(unlimited: int) -> int:
    # cpu.max is "max 100000" or "200000 100000": microseconds of CPU in each period.
    try:
        quota, period = CGROUP_QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return unlimited
