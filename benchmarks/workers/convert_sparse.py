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
from llama_export.weights import sink
from llama_export.weights.sink import write_all


def skip_zeros(file: int, data: memoryview) -> None:
    """Write, or leave a hole where all is zero."""
    if np.frombuffer(data, np.uint8).any():
        write_all(file, data)
    else:
        os.ftruncate(file, os.lseek(file, len(data), os.SEEK_CUR))


def main(checkpoint: str, output: str) -> None:
    plenty = shutil.disk_usage(".")._replace(free=1 << 50)
    stage.shutil.disk_usage = lambda path: plenty
    sink.write_all = skip_zeros
    print(llama_export.convert(Path(checkpoint), Path(output)).seconds)


main(*sys.argv[1:])
