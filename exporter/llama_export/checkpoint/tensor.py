"""A tensor on disk, read when asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, reading
from llama_export.errors import CheckpointError


@dataclass(frozen=True)
class StoredTensor:
    """Where the bytes of one tensor stand.

    Attributes:
        name: Its key in the checkpoint, such as ``model.layers.0.mlp.up_proj.weight``.
        dtype: float32, float16 or bfloat16.
        shape: Its shape; the bytes are row-major and little-endian.
        file: The real file, symlinks followed.
        offset: Where it begins, in bytes from the start of the file.
        nbytes: Its length in bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    def read(self) -> torch.Tensor:
        """Read it into memory of its own, exactly ``nbytes`` of it.

        Returns:
            [*shape] in ``dtype``.

        Raises:
            CheckpointError: The file has gone, changed its length, or cannot be read.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        # Read rather than map: mapped pages count as resident until the kernel takes them back.
        buffer = tensor.flatten().view(torch.uint8).numpy().data
        done = 0
        with reading(self.file.name), self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset)
            while done < self.nbytes:
                count = stream.readinto(buffer[done:])
                if not count:
                    raise CheckpointError(
                        f"{self.file.name}: ends {self.nbytes - done} bytes before tensor {self.name} does",
                        "the file changed while it was read; " + DOWNLOAD_AGAIN,
                    )
                done += count
        return tensor
