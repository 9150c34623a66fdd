"""Any LLaMA checkpoint in, one bundle out, that runs without PyTorch and carries the proof that it is right.

    export     checkpoint folder -> bundle folder, verified
    export_engine  checkpoint or bundle -> a bundle with a TensorRT engine in it
    convert    checkpoint folder in any layout -> Hugging Face folder
    verify     bundle against its checkpoint: the parity ladder
    inspect    what a checkpoint or bundle is, and whether it can be exported

Nothing here needs torch until one of them is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_export.errors import LlamaExportError, MissingExtraError

if TYPE_CHECKING:
    from llama_export.conversion import Converted
    from llama_export.engine.options import EngineOptions
    from llama_export.engine_export import EngineExported
    from llama_export.parity import Report
    from llama_export.pipeline import Exported
    from llama_export.recipe import Recipe

__all__ = ["LlamaExportError", "convert", "export", "export_engine", "inspect", "verify"]


def export(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    force: bool = False,
) -> Exported:
    """Export a checkpoint to a bundle; see ``llama_export.pipeline.export``."""
    require_export_extra()
    from llama_export import pipeline

    return pipeline.export(checkpoint, output, recipe=recipe, force=force)


def export_engine(
    source: str | Path,
    output: str | Path | None = None,
    *,
    options: EngineOptions | None = None,
    recipe: Recipe | None = None,
    onnx_only: bool = False,
    force: bool = False,
) -> EngineExported:
    """Build a TensorRT engine into a bundle; see ``llama_export.engine_export.export_engine``."""
    require_export_extra()
    from llama_export import engine_export

    return engine_export.export_engine(
        source, output, options=options, recipe=recipe, onnx_only=onnx_only, force=force
    )


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    max_shard_bytes: int | None = None,
) -> Converted:
    """Write a checkpoint as a Hugging Face folder; see ``llama_export.conversion.convert``."""
    require_export_extra()
    from llama_export import conversion

    return conversion.convert(checkpoint, output, adapters=adapters, max_shard_bytes=max_shard_bytes)


def verify(
    bundle: str | Path,
    checkpoint: str | Path | None = None,
    *,
    adapters: Sequence[str | Path] = (),
    texts: Sequence[str] | None = None,
    quick: bool = False,
    force: bool = False,
) -> Report:
    """Compare a bundle with its checkpoint, rung by rung; see ``llama_export.parity.verify``."""
    require_export_extra()
    from llama_export import parity

    source = None if checkpoint is None else Path(checkpoint)
    merged = [Path(adapter) for adapter in adapters]
    return parity.verify(Path(bundle), source, adapters=merged, texts=texts, quick=quick, force=force)


def inspect(folder: str | Path) -> dict[str, Any]:
    """Say what a checkpoint or bundle is; see ``llama_export.inspection.inspect``."""
    from llama_export import inspection

    return inspection.inspect(Path(folder))


def require_export_extra() -> None:
    """Refuse to go on without the packages that exporting needs.

    Raises:
        MissingExtraError: One of them is not installed; the extra is named.
    """
    # Not imported: that alone takes seconds, some of which the weights can be read in.
    for name in ("onnx", "onnx_ir", "onnxscript", "torch"):
        if find_spec(name) is None:
            raise MissingExtraError(
                f"{name} is not installed, exporting needs it", "pip install 'llama-export[export,cpu]'"
            )
