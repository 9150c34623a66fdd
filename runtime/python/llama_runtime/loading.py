"""How ONNX Runtime loads a bundle's graphs; ``session`` alone imports it, and hands it in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llama_runtime.cache import cache_names
from llama_runtime.errors import MissingExtraError, OptionError, SessionError
from llama_runtime.kernels import Kernels, kernels_for, say
from llama_runtime.manifest import EMBEDS, Manifest

FED_INPUTS = ("input_ids", EMBEDS, "attention_mask", "position_ids")
LOG_ERRORS_ONLY = 3
Device = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class Loaded(NamedTuple):
    """A bundle's graphs, and the library of our own operators that the main one uses, if any."""

    inference: Any
    embedding: Any
    kernels: Kernels | None


def load_bundle(
    onnxruntime: Any,
    folder: Path,
    manifest: Manifest,
    threads: int,
    disabled: list[str] | None,
    provider: str,
    profile: bool,
    own_kernels: bool,
) -> Loaded:
    """Load a bundle's graphs, with our own operators where they are there, wanted and right."""
    if provider == PROVIDERS["cuda"]:
        _check_runs_on_cuda(folder, manifest)
    path = folder / manifest.model.path

    def options() -> Any:
        made = session_options(onnxruntime, folder, manifest, threads)
        if profile:
            record(made)
        return made

    on_cpu = provider == PROVIDERS["cpu"]
    inference, kernels = None, kernels_for(manifest) if own_kernels and on_cpu else None
    if kernels is not None:
        inference = _load_with(kernels, onnxruntime, path, options(), disabled)
    if inference is None:
        inference, kernels = load_graph(onnxruntime, path, options(), path, disabled, provider), None
    check_contract(path, inference, manifest)
    return Loaded(inference, load_embedding(onnxruntime, folder, manifest, options()), kernels)


def _load_with(
    kernels: Kernels, onnxruntime: Any, path: Path, options: Any, disabled: list[str] | None
) -> Any:
    """Load a graph with our own operators; None, and a line, where it cannot be."""
    try:
        options.register_custom_ops_library(str(kernels.path))
        return load_graph(onnxruntime, path, options, path, disabled)
    except SessionError as error:
        say(f"{kernels.path}: cannot be used for this bundle: {error}")
    except Exception as error:  # ONNX Runtime's exceptions share no other base.
        say(f"{kernels.path}: ONNX Runtime refuses it: {first_line(error)}")
    return None


def load_embedding(onnxruntime: Any, folder: Path, manifest: Manifest, options: Any) -> Any:
    """Load the graph that looks embeddings up; None where there is none."""
    if manifest.embed_tokens is None:
        return None
    path = folder / manifest.embed_tokens
    return load_graph(onnxruntime, path, options, path, None)


def find_provider(onnxruntime: Any, device: Device) -> str:
    """ONNX Runtime's name of a device.

    Raises:
        MissingExtraError: The onnxruntime that is installed does not serve it.
        OptionError: There is no such device.
    """
    if device not in PROVIDERS:
        raise OptionError(f"device is {device!r}, must be one of {', '.join(PROVIDERS)} or tensorrt")
    provider, available = PROVIDERS[device], onnxruntime.get_available_providers()
    if provider not in available:
        raise MissingExtraError(
            f"the onnxruntime that is installed has no {provider}, only {', '.join(available)}",
            "in an environment without onnxruntime: pip install 'llama-export[cuda]'",
        )
    return provider


def _check_runs_on_cuda(folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle whose attention or products ONNX Runtime would leave to the CPU, for every token.

    Raises:
        OptionError: Its fused attention computes in float32, which ONNX Runtime's CUDA kernel does not.
    """
    in_half = manifest.cache is not None and manifest.cache.dtype == "float16"
    if manifest.attention == "flash" and not in_half:
        raise OptionError(
            f"{folder}: its fused attention computes in float32, on GPUs ONNX Runtime has it in float16",
            "export with --compute float16, or with --attention sdpa",
        )


def load_graph(
    onnxruntime: Any,
    model: Path | bytes,
    options: Any,
    path: Path,
    disabled: list[str] | None,
    provider: str = PROVIDERS["cpu"],
) -> Any:
    """Load a graph, from a file or from memory; SessionError, which names ``path``, where it cannot be."""
    try:
        inference = onnxruntime.InferenceSession(
            model, options, providers=[provider], disabled_optimizers=disabled
        )
    except Exception as error:  # ONNX Runtime's exceptions share no other base.
        raise SessionError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
    # Where a provider finds no GPU, ONNX Runtime warns, goes on without it and takes the CPU.
    if provider not in inference.get_providers():
        raise SessionError(f"{path}: {provider} found no GPU that it can use", "run with --device cpu")
    return inference


def session_options(onnxruntime: Any, folder: Path, manifest: Manifest, threads: int) -> Any:
    """The options that FORMAT.md lists for a bundle."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A memory pattern is kept for every input shape, and every decode has a new one.
    options.enable_mem_pattern = False
    # As long as it takes from one product to the next: a thread that sleeps comes too late for it, one that
    # waits for longer takes the core from whatever else runs on the machine (benchmarks/LOG.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    if manifest.precision == "float32":
        # The weights stay in the mapped file; packing would copy every one of them, for many seconds.
        options.add_session_config_entry("session.disable_prepacking", "1")
    data_folder = folder / manifest.model.external_data_folder
    if data_folder.resolve() != (folder / manifest.model.path).parent.resolve():
        options.add_session_config_entry(DATA_FOLDER, str(data_folder.resolve()))
    return options


def record(options: Any) -> None:
    """Have a session write down how long every operator takes."""
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(tempfile.gettempdir()) / "llama-export-profile")


def recorded(inference: Any) -> str:
    """What a session has written down, as JSON in Chrome's trace format; its file is removed."""
    with running():
        file = Path(inference.end_profiling())
    content = file.read_text(encoding="utf-8")
    file.unlink()
    return content


def check_contract(path: Path, inference: Any, manifest: Manifest) -> None:
    """Refuse a graph that is not the one the manifest describes, by SessionError."""
    past, present = cache_names(manifest.cache) if manifest.cache else ([], [])
    results = {*present, *(spec.name for spec in manifest.outputs)}
    required = {spec.name for spec in inference.get_inputs()}
    optional = {spec.name for spec in inference.get_overridable_initializers()}
    outputs = {spec.name for spec in inference.get_outputs()}
    declared = {spec.name for spec in manifest.inputs}
    wrong = sorted((required ^ declared) | (required - {*FED_INPUTS, *past}) | (set(past) - required))
    if wrong:
        raise SessionError(f"{path}: inputs differ from the manifest's: {', '.join(wrong[:4])}")
    missing = sorted(results - outputs) + sorted({spec.name for spec in manifest.optional_inputs} - optional)
    if missing:
        raise SessionError(f"{path}: the manifest names {', '.join(missing[:4])}, the graph does not")


@contextmanager
def running() -> Iterator[None]:
    """Turn what ONNX Runtime raises while it runs a graph into a SessionError."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions share no other base.
        raise SessionError(f"ONNX Runtime cannot run the graph: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What of an exception of ONNX Runtime a person can use."""
    return str(error).strip().split("\n")[0]
