#!/usr/bin/env python3
"""Make a copy of a small bundle whose graph is in ONNX Runtime's own format, for minimal builds of it.

    python runtime/cpp/convert_to_ort.py BUNDLE OUTPUT

OUTPUT has graph and weights in one file, ``onnx/<name>.ort``. With ``onnx/<name>.config`` beside it, a build
of ONNX Runtime's sources leaves out every other operator (``--include_ops_by_config``). Our runtimes open it
as they open any bundle; other people's do not any more, so their files are left out. Needs onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_BYTES = 2**31 - 2**20  # of the format, which counts in 31 bits
LEFT_OUT = ("config.json", "genai_config.json", "parity.json", "parity.html")
CONVERTER = ("-m", "onnxruntime.tools.convert_onnx_models_to_ort")


class ConversionError(Exception):
    """One sentence for a person; the second argument is the remedy."""


def main() -> None:
    """The command line."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: {Path(sys.argv[0]).name} BUNDLE OUTPUT")
    try:
        output = convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConversionError as error:
        print(f"error: {error.args[0]}\nhint: {error.args[1]}", file=sys.stderr)
        sys.exit(2)
    print(f"next      llama-selftest {output}")


def convert(bundle: Path, output: Path) -> Path:
    """Write the copy, which appears as a whole or not at all.

    Args:
        bundle: Read only.
        output: Must not exist.

    Returns:
        The output.

    Raises:
        ConversionError: No bundle, too large, the output exists, or ONNX Runtime's converter fails.
    """
    if output.exists():
        raise ConversionError(f"{output}: is there already", "name a folder that does not exist")
    try:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        graph = bundle / manifest["model"]["path"]
        listed = [entry["path"] for entry in manifest["files"]]
        embeds = manifest["embed_tokens"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{bundle}: not a bundle ({error})", "name a bundle") from None
    if embeds:
        raise ConversionError(f"{bundle}: its graph takes embeddings", "export without --inputs-embeds")
    data = [bundle / path for path in listed if (bundle / path).parent == graph.parent]
    size = sum(path.stat().st_size for path in data if path.is_file())
    if size > MOST_BYTES:
        raise ConversionError(
            f"{graph}: {size / 1e9:.1f} GB with its weights, the format holds 2", "use the bundle as it is"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{output.name}.", dir=output.parent) as folder:
        stage = Path(folder) / "bundle"
        made = _convert_graph(graph, stage / "onnx")
        kept = [
            path
            for path in listed
            if not path.startswith(("trt/", f"{graph.parent.name}/")) and path not in LEFT_OUT
        ]
        for path in kept:
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / path, stage / path)
        manifest["model"] |= {"path": f"onnx/{made.name}", "external_data_folder": "onnx"}
        config = made.with_suffix(".config").name
        manifest["files"] = [_entry(stage, path) for path in (*kept, f"onnx/{made.name}", f"onnx/{config}")]
        (stage / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        stage.rename(output)
    return output


def _convert_graph(graph: Path, folder: Path) -> Path:
    command = [sys.executable, *CONVERTER, str(graph), "--output_dir", str(folder)]
    done = subprocess.run([*command, "--optimization_style", "Fixed"], capture_output=True, text=True)
    made = folder / f"{graph.stem}.ort"
    if done.returncode or not made.is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
        message = f"{graph}: ONNX Runtime cannot convert it ({said[-1]})"
        raise ConversionError(message, "llama-export selftest says whether the bundle is right")
    next(folder.glob("*.config")).rename(made.with_suffix(".config"))
    return made


def _entry(stage: Path, path: str) -> dict[str, object]:
    with (stage / path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": path, "size_bytes": (stage / path).stat().st_size, "sha256": digest}


if __name__ == "__main__":
    main()
