"""Building the graph of real shapes, without weights: it must not grow with depth beyond stamping."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import peers
from checkpoints import SHAPES, Shape
from measure import last_error, measure
from rounds import Candidate, Outcome, Sample, interleave

DEPTHS = (22, 32, 80)
REAL = ("Llama-2-7B", "Llama-2-70B")


def bench(work: Path, repeats: int) -> dict[str, Outcome]:
    """Build each graph in turn, every time in a process of its own.

    One width at three depths shows what depth costs; two larger models show that width costs nothing.
    """
    tiny = SHAPES["TinyLlama-1.1B"]
    shapes = {f"TinyLlama's width, {n} layers": replace(tiny, num_hidden_layers=n) for n in DEPTHS}
    shapes |= {f"{name}, {SHAPES[name].num_hidden_layers} layers": SHAPES[name] for name in REAL}
    candidates = [Candidate(name, lambda s=shape: once(s, work)) for name, shape in shapes.items()]
    return interleave(candidates, repeats)


def once(shape: Shape, work: Path) -> Sample:
    """Build one graph.

    Raises:
        RuntimeError: It failed.
    """
    config = work / "trace.json"
    config.write_text(json.dumps(shape.config("bfloat16")))
    measured = measure([sys.executable, peers.WORKERS / "trace.py", config])
    if measured.returncode:
        raise RuntimeError(last_error(measured))
    return json.loads(measured.stdout.splitlines()[-1]) | measured.conditions()
