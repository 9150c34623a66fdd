"""Tracing and streaming at the same time, without standing in each other's way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llama_export.collecting import uncollected

_SWITCH_INTERVAL_S = 2e-4


@contextmanager
def sharing_the_interpreter() -> Iterator[None]:
    """Let a thread that mostly waits for bytes run beside one that mostly runs Python.

    The tracer would keep the interpreter for 5 ms whenever the stream asks for it, PyTorch's idle threads
    would spin on the core that the tracer needs, and the collector of cycles would walk again and again
    what the tracer makes and keeps: together they cost the export of a 1.1B checkpoint more than a third
    of its time (benchmarks/LOG.md).
    """
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    torch.set_num_threads(1)
    try:
        with uncollected():
            yield
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(threads)
