"""``--weights beside``: the graph joins the checkpoint's folder, which becomes the bundle; no byte moves."""

from __future__ import annotations

import shutil
from pathlib import Path

from llama_export.bundle.companions import write_flat_tokenizer
from llama_export.bundle.stage import bundle_weights, fsync
from llama_export.checkpoint import Checkpoint
from llama_export.errors import BundleError, OptionError
from llama_export.interruption import undo_if_killed
from llama_export.tokenizer import FLAT_FILE, open_source
from llama_export.tokenizer.files import is_authors, write_json
from llama_runtime.manifest import MANIFEST_NAME

# The checkpoint's own tokenizer.json is never changed, so one that had to be made stands with the graph.
BESIDE_JSON = "onnx/tokenizer.json"
_OURS = ("onnx/model.onnx", "onnx/embed_tokens.onnx", BESIDE_JSON, FLAT_FILE, "parity.json", "parity.html")


def check(checkpoint: Checkpoint, output: Path | None, *, force: bool) -> Path:
    """Refuse what cannot be put beside, before any work.

    Returns:
        The checkpoint's folder, which is the target.

    Raises:
        OptionError: An output elsewhere, or weights that are symlinks out of the folder.
        BundleError: A bundle is there already, or files of somebody else's where ours would go.
    """
    folder = checkpoint.folder
    if output is not None and output.resolve() != folder.resolve():
        raise OptionError(
            f"--weights beside keeps everything in {folder}, the output is {output}",
            "leave the output out, or use --weights link",
        )
    for path in checkpoint.weight_files:
        if path.parent != folder.resolve():
            raise OptionError(
                f"{path.name}: stands in {path.parent}, --weights beside needs it in {folder} itself",
                "use --weights link, which follows the links of a Hub snapshot",
            )
    if bundle_weights(folder) is not None:
        if not force:
            raise BundleError(f"{folder}: is a bundle already", "add --force to replace graph and manifest")
    elif taken := [name for name in (*_OURS, MANIFEST_NAME) if (folder / name).exists()]:
        raise BundleError(
            f"{folder / taken[0]}: exists and is not ours, --weights beside would replace it",
            "move it away, or use --weights link with an output elsewhere",
        )
    return folder


def stage_target(folder: Path) -> Path:
    """What the stage is named after: it stands inside the checkpoint's folder, on the same file system."""
    return folder / "bundle"


def copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Give the stage the small files that are in the folder anyway, and tokenizer.json where it is not."""
    for source in [*checkpoint.companions, checkpoint.folder / "config.json"]:
        shutil.copyfile(source, folder / source.name)
    tokenizer = open_source(checkpoint)
    if tokenizer is not None and not is_authors(tokenizer):
        write_json(tokenizer, folder / BESIDE_JSON)
    write_flat_tokenizer(checkpoint, folder)


def publish(stage: Path, folder: Path) -> None:
    """Move our own files into the checkpoint's folder; the manifest last, since nothing loads without it."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    new_folder = not (folder / "onnx").exists()

    def undo() -> None:
        for name in (*_OURS, MANIFEST_NAME):
            (folder / name).unlink(missing_ok=True)
        if new_folder:
            shutil.rmtree(folder / "onnx", ignore_errors=True)

    call_off = undo_if_killed(undo)
    try:
        (folder / "onnx").mkdir(exist_ok=True)
        for name in (*_OURS, MANIFEST_NAME):
            if (stage / name).exists():
                fsync(stage / name)
                (stage / name).replace(folder / name)
        fsync(folder)
    except BaseException:
        undo()
        raise
    finally:
        call_off()
