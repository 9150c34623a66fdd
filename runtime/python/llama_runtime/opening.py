"""Opening a bundle's graphs: the only file that imports ONNX Runtime, and only when one is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llama_runtime.cores import available_cores
from llama_runtime.errors import MissingExtraError, OptionError
from llama_runtime.loading import (
    DATA_FOLDER,
    Device,
    find_provider,
    load_bundle,
    load_embedding,
    load_graph,
    running,
    session_options,
)
from llama_runtime.manifest import EMBEDS, Manifest
from llama_runtime.session import Session
from llama_runtime.soft_prompt import read_soft_prompt

__all__ = ["Device", "open_graph", "open_session", "require_onnxruntime"]


def open_session(
    folder: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    widen_at_load: bool = True,
    profile: bool = False,
    device: Device = "cpu",
    own_kernels: bool = True,
) -> Session:
    """Load the bundle's graph with ONNX Runtime.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        threads: For the arithmetic; None is every physical core this process may use.
        widen_at_load: Convert 16-bit weights to float32 once, at load. False converts them in every run:
            a session that runs a few times only (a self-test) is then ready at once and stays small.
        profile: Record every operator, for ``end_profiling``.
        device: ``cpu`` or ``cuda``, and nothing else where that cannot be had.
        own_kernels: Compute with our own operators where they are there. False never does.

    Raises:
        MissingExtraError: onnxruntime is not installed, or not the one for this device.
        ManifestError: The learned prompt's file is not what the manifest says.
        OptionError: ``threads`` below 1.
        SessionError: The graph cannot be loaded, or is not the one the manifest describes.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}, needs at least 1")
    onnxruntime = require_onnxruntime()
    provider = find_provider(onnxruntime, device)
    cores, disabled = threads or available_cores(), None if widen_at_load else ["ConstantFolding"]
    loaded = load_bundle(onnxruntime, folder, manifest, cores, disabled, provider, profile, own_kernels)
    session = Session(loaded.inference, manifest, loaded.embedding, read_soft_prompt(folder, manifest))
    session.kernels = loaded.kernels
    return session


def open_graph(
    folder: Path, manifest: Manifest, graph: bytes, *, threads: int | None = None
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Load another graph over a bundle's weights, such as a part of its own, to look inside.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        graph: A serialised ONNX model whose external data are the bundle's.
        threads: As for ``open_session``.

    Returns:
        From inputs by name, of which those that the graph lacks are left out, to all its outputs by name.

    Raises:
        SessionError: ONNX Runtime cannot load the graph, or later, run it.
    """
    onnxruntime = require_onnxruntime()
    options = session_options(onnxruntime, folder, manifest, threads or available_cores())
    data_folder = str((folder / manifest.model.external_data_folder).resolve())
    options.add_session_config_entry(DATA_FOLDER, data_folder)
    inference = load_graph(onnxruntime, graph, options, folder / manifest.model.path, ["ConstantFolding"])
    embedding = load_embedding(onnxruntime, folder, manifest, options)
    inputs = {spec.name for spec in inference.get_inputs()}
    names = [spec.name for spec in inference.get_outputs()]

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if embedding is not None:
            feeds = feeds | {EMBEDS: embedding.run([EMBEDS], {"input_ids": feeds["input_ids"]})[0]}
        taken = {name: array for name, array in feeds.items() if name in inputs}
        with running():
            return dict(zip(names, inference.run(names, taken), strict=True))

    return run


def require_onnxruntime() -> Any:
    """Import ONNX Runtime.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        hint = "pip install 'llama-export[cpu]'"
        raise MissingExtraError(f"onnxruntime is not installed ({error})", hint) from None
    return onnxruntime
