"""Build one shape's graph, without weights: ``python trace.py CONFIG``."""

from __future__ import annotations

import json
import sys
import time

start = time.monotonic()

from pathlib import Path  # noqa: E402

from llama_export.checkpoint.config import parse_config  # noqa: E402
from llama_export.graph.assemble import build_graph  # noqa: E402

imported = time.monotonic()


def main(config: str) -> None:
    model = build_graph(parse_config(json.loads(Path(config).read_text())), "flash")
    done = time.monotonic()
    print(json.dumps({"import_s": imported - start, "trace_s": done - imported, "nodes": len(model.graph)}))


main(*sys.argv[1:])
