"""The learned prompt that a bundle puts in front of every text: keys and values, no tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llama_runtime.errors import ManifestError
from llama_runtime.integrity import COPY_AGAIN
from llama_runtime.manifest import Manifest


def read_soft_prompt(folder: Path, manifest: Manifest) -> list[np.ndarray]:
    """Read a bundle's learned prompt.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.

    Returns:
        Key and value of layer 0, of layer 1, ..., each [K, P, D]; empty where there is none.

    Raises:
        ManifestError: The file cannot be read, or is not what the manifest says.
    """
    prompt, shape = manifest.soft_prompt, manifest.cache
    if prompt is None or shape is None:
        return []
    from safetensors import SafetensorError, safe_open

    path, names = folder / prompt.path, [str(i) for i in range(2 * shape.num_hidden_layers)]
    try:
        with safe_open(path, "np") as file:
            arrays = [file.get_tensor(name) for name in names]
    except (OSError, SafetensorError) as error:
        raise ManifestError(f"{path}: cannot be read as a learned prompt ({error})", COPY_AGAIN) from None
    dims = (shape.num_key_value_heads, prompt.positions, shape.head_dim)
    for name, array in zip(names, arrays, strict=True):
        if array.shape != dims or array.dtype != shape.dtype or not np.isfinite(array).all():
            raise ManifestError(
                f"{path}: tensor {name} is {array.dtype} {list(array.shape)}, "
                f"needs finite {shape.dtype} {list(dims)}",
                COPY_AGAIN,
            )
    return arrays
