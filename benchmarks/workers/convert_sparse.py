"""Convert a checkpoint of holes into a folder of holes: ``python convert_sparse.py CHECKPOINT OUTPUT``.

What would be written as zeros is skipped, and the disk is taken to have room, so that a model larger than the
disk goes all the way; every byte is still read, checked and hashed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np

import llama_export
from llama_export.bundle import stage
from llama_export.weights import stream


class SparseSink(stream._Sink):
    """Leaves holes where all is zero."""

    def _append(self, data: memoryview) -> None:
        self._hash.update(data)
        if np.frombuffer(data, np.uint8).any():
            os.pwrite(self._stream.fileno(), data, self._end)
        self._end += len(data)

    def close(self) -> None:
        """Give the file its length, which a hole at its end would not."""
        self._stream.truncate(self._end)
        super().close()


def main(checkpoint: str, output: str) -> None:
    plenty = shutil.disk_usage(".")._replace(free=1 << 50)
    stage.shutil.disk_usage = lambda path: plenty
    stream._Sink = SparseSink
    print(llama_export.convert(Path(checkpoint), Path(output)).seconds)


main(*sys.argv[1:])
