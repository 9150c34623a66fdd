"""Open a bundle for the task that it serves, or say which it does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_runtime.errors import ManifestError, OptionError
from llama_runtime.extras import hidden_state_names
from llama_runtime.manifest import Manifest, check_structure, read_manifest
from llama_runtime.opening import Device, open_session, require_onnxruntime
from llama_runtime.session import Session
from llama_runtime.tasks.batch import TextModel
from llama_runtime.tokenizer import Tokenizer, open_tokenizer

COMMANDS = {
    "text-generation": "run",
    "feature-extraction": "embed",
    "text-classification": "classify",
    "token-classification": "tag",
    "question-answering": "answer",
}


def open_text_model(
    path: str | Path,
    task: str,
    threads: int | None = None,
    device: Device = "cpu",
    engine: str | None = None,
) -> TextModel:
    """Open a bundle of one task.

    Args:
        path: The bundle's folder.
        task: What it must be for.
        threads: For the arithmetic; None is every physical core this process may use.
        device: ``cpu`` and ``cuda`` run the bundle's graph with ONNX Runtime, ``tensorrt`` its engine.
        engine: Which of several engines.

    Raises:
        ManifestError: Not a bundle, a newer version, another task, or files missing or changed.
        TokenizerError: The tokenizer's file is corrupt.
        SessionError: ONNX Runtime cannot load the graph.
        EngineError: The engine is missing, damaged, or made for another version or GPU.
        MissingExtraError: onnxruntime is not installed, or not for this device.
    """
    return TextModel(*open_bundle(path, task, threads, device, engine))


def open_bundle(
    path: str | Path, task: str, threads: int | None, device: Device = "cpu", engine: str | None = None
) -> tuple[Session, Tokenizer | None]:
    """Read the manifest, check the files' sizes, load tokenizer and graph; as ``open_text_model`` says."""
    folder = Path(path)
    manifest = read_manifest(folder)
    embeds = task == "feature-extraction" and hidden_state_names(manifest)
    if manifest.task != task and not embeds:
        raise wrong_task(folder, manifest.task, task)
    check_structure(folder, manifest)
    if engine is not None and device != "tensorrt":
        raise OptionError(
            f"engine {engine} is named, the device is {device}", "engines run with --device tensorrt"
        )
    if device != "tensorrt":
        require_onnxruntime()  # here, because only what it does after its import leaves Python to others
    with ThreadPoolExecutor(1) as beside:
        tokenizer = beside.submit(_open_tokenizer, folder, manifest)
        session = _open_session(folder, manifest, threads, device, engine)
    return session, tokenizer.result()


def _open_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    return open_tokenizer(folder, manifest.tokenizer, manifest.tokens) if manifest.tokenizer else None


def _open_session(
    folder: Path, manifest: Manifest, threads: int | None, device: Device, engine: str | None
) -> Session:
    if device == "tensorrt":
        from llama_runtime.tensorrt_session import open_engine_session

        return open_engine_session(folder, manifest, engine)
    if device == "cuda":
        from llama_runtime.cuda_session import open_cuda_session

        return open_cuda_session(folder, manifest, threads)
    return open_session(folder, manifest, threads=threads, device=device)


def wrong_task(folder: Path, found: str, wanted: str) -> ManifestError:
    """Make the error that names the command which the bundle is for."""
    hint = f"use llama-export {COMMANDS[found]}" if found in COMMANDS else "upgrade llama-export"
    if (found, wanted) == ("text-generation", "feature-extraction"):
        hint += ", or export with --hidden-states last"
    return ManifestError(f"{folder}: the bundle's task is {found}, needs {wanted}", hint)
