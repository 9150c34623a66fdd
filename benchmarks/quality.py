"""What quantizing costs on the demo checkpoint's held-out texts: ``python benchmarks/quality.py``.

KL divergence, top-1 disagreement and perplexity against the float32 export, ours by block size, method and
the head's precision beside onnxruntime-genai's int4, all through plain ONNX Runtime sessions.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import numpy as np
import onnxruntime
import peers
from conversion import Export, ours, run_export
from environments import CACHE, InstallError
from measure import last_error

from llama_runtime.manifest import read_manifest
from llama_runtime.tokenizer import open_tokenizer

REPO = Path(__file__).parents[1]
CHECKPOINT, HELDOUT = REPO / "recipes/tiny/checkpoint", REPO / "recipes/tiny/heldout.txt"
TEXTS, LONGEST = 60, 200
FLAT = ("--keep", "lm_head=int4")  # the head like all others
CALIBRATION = Path(tempfile.gettempdir()) / "llama-export-calibration.txt"  # training texts, not held out
CALIBRATED = ("--calibration", str(CALIBRATION))
VARIANTS: dict[str, tuple[str, ...]] = {
    "int8": ("--precision", "int8"),
    "int4, block 32": ("--precision", "int4"),
    "int4, block 64": ("--precision", "int4", "--block-size", "64"),
    "int4, block 128": ("--precision", "int4", "--block-size", "128"),
    "int4, block 128, asymmetric": ("--precision", "int4", "--block-size", "128", "--asymmetric"),
    "int8, int8 cache": ("--precision", "int8", "--cache", "int8"),
    "int4, block 32, int8 cache": ("--precision", "int4", "--cache", "int8"),
    "bfloat16, int8 cache": ("--weights", "link", "--cache", "int8"),
    "int4, block 32, head int4": ("--precision", "int4", *FLAT),
    "int4, block 32, gptq": ("--precision", "int4", *CALIBRATED),
    "int4, block 128, gptq": ("--precision", "int4", "--block-size", "128", *CALIBRATED),
    "int4, block 32, head int4, gptq": ("--precision", "int4", *FLAT, *CALIBRATED),
    "int4, block 32, head int4, nearest": ("--precision", "int4", *FLAT, "--quantizer", "nearest"),
    "int4, block 128, head int4": ("--precision", "int4", *FLAT, "--block-size", "128"),
}


@dataclass(frozen=True)
class Row:
    """One export; the first three against the float32 one, means over all positions with standard error."""

    name: str
    kl: float
    kl_error: float
    top1: float
    perplexity: float
    data_bytes: int


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        rows = list(measure(Path(work)))
    facts = {"machine": machine.describe(), "texts": TEXTS, "rows": [asdict(row) for row in rows]}
    stem = REPO / "benchmarks/results" / f"{datetime.date.today().isoformat()}-quality"
    stem.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    lines = [
        "# What quantizing costs on the demo checkpoint",
        "",
        f"{TEXTS} held-out texts, against the float32 export; KL in nats a token with its standard error.",
        "",
        "| export | KL divergence | top-1 differs | perplexity | data, MB |",
        "|---|---|---|---|---|",
        *(
            f"| {r.name} | {r.kl:.5f} ± {r.kl_error:.5f} | {r.top1:.2%} | {r.perplexity:.4f} "
            f"| {r.data_bytes / 1e6:.2f} |"
            for r in rows
        ),
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def measure(work: Path) -> Iterator[Row]:
    """Export and compare, one after the other."""
    _write_calibration()
    reference = _export(ours("", "--weights", "copy", "--precision", "float32", "--no-verify"), work / "ref")
    texts = _texts(reference)
    wanted = [_log_softmax(logits) for logits in _logits(reference, texts)]
    yield _row("float32", reference, wanted, wanted, texts)
    for name, options in VARIANTS.items():
        folder = _export(ours("", *options, "--no-verify"), work / "out")
        yield _row(f"ours, {name}", folder, _log_probs(folder, texts), wanted, texts)
    try:
        env = peers.install(peers.GENAI, CACHE)
    except InstallError as error:
        print(f"onnxruntime-genai: {error}", file=sys.stderr)
        return
    builder = [peers.python(env), "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]

    def command(checkpoint: Path, output: Path) -> list[str | Path]:
        options = ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
        return [*builder, "-i", checkpoint, "-o", output, "-c", work / "cache", *options]

    folder = _export(Export("", command), work / "genai")
    yield _row("onnxruntime-genai, int4, block 32", folder, _log_probs(folder, texts), wanted, texts)


def _write_calibration() -> None:
    sys.path.insert(0, str(REPO / "recipes/tiny"))
    import corpus

    CALIBRATION.write_text("\n\n".join(corpus.split_corpus(400)[0]), encoding="utf-8")


def _export(export: Export, output: Path) -> Path:
    done = run_export(export, CHECKPOINT, output)
    if done.returncode:
        raise SystemExit(last_error(done))
    return output


def _texts(bundle: Path) -> list[list[int]]:
    manifest = read_manifest(bundle)
    assert manifest.tokenizer is not None
    tokenizer = open_tokenizer(bundle, manifest.tokenizer, manifest.tokens)
    texts = [text for text in HELDOUT.read_text(encoding="utf-8").split("\n\n") if text.strip()]
    return [list(tokenizer.encode(text))[:LONGEST] for text in texts[:TEXTS]]


def _logits(folder: Path, texts: list[list[int]]) -> Iterator[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model = next(iter([*folder.glob("onnx/*.onnx"), *folder.glob("*.onnx")]))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    facts = json.loads((CHECKPOINT / "config.json").read_text())
    past = (1, facts["num_key_value_heads"], 0, facts["head_dim"])
    dtypes = {"tensor(float)": np.float32, "tensor(int8)": np.int8}
    for ids in texts:
        feeds = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
        }
        for spec in session.get_inputs():
            if spec.name not in feeds:
                feeds[spec.name] = np.zeros(past, dtypes[spec.type])
        feeds = {spec.name: feeds[spec.name] for spec in session.get_inputs()}
        yield session.run(["logits"], feeds)[0][0]


def _log_probs(folder: Path, texts: list[list[int]]) -> list[np.ndarray]:
    return [_log_softmax(logits) for logits in _logits(folder, texts)]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def _row(
    name: str, folder: Path, got: list[np.ndarray], want: list[np.ndarray], texts: list[list[int]]
) -> Row:
    pairs = list(zip(got, want, strict=True))
    kl = np.concatenate([(np.exp(w) * (w - g)).sum(axis=-1) for g, w in pairs])
    other = np.concatenate([g.argmax(axis=-1) != w.argmax(axis=-1) for g, w in pairs])
    chosen = [g[np.arange(len(ids) - 1), ids[1:]] for g, ids in zip(got, texts, strict=True)]
    data = sum(path.stat().st_size for path in folder.rglob("*data*"))
    return Row(
        name, float(kl.mean()), float(kl.std() / len(kl) ** 0.5), float(other.mean()),
        float(np.exp(-np.concatenate(chosen).mean())), data,
    )  # fmt: skip


if __name__ == "__main__":
    main()
