"""How fast this machine's memory is read: what decoding can at best reach."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LEAST, _MOST = 256 << 20, 2 << 30  # bytes


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read, each its own memory; the best of three tries.

    Together they read four times what the largest cache holds, 256 MiB at least and 2 GiB at most.

    Args:
        threads: At least 1.
    """
    total = min(max(4 * _largest_cache(), _LEAST), _MOST)
    arrays = [np.ones(total // threads // 8) for _ in range(threads)]
    best = 0.0
    for _ in range(3):
        readers = [threading.Thread(target=array.max) for array in arrays]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - began))
    return best


def _largest_cache() -> int:
    """Bytes, as Linux tells; 0 where it does not."""
    try:
        sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
        return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes), default=0)
    except (OSError, ValueError, KeyError):
        return 0
