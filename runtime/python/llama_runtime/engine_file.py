"""``trt/<name>.json``: what an engine is, what it was built with and for, and where it may run.

The exporter writes it through these dataclasses, the runtime reads it; FORMAT.md says the same in words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama_runtime import strict_json
from llama_runtime.errors import EngineError
from llama_runtime.interface import TensorSpec
from llama_runtime.known import check_at_least
from llama_runtime.manifest import FileEntry

FOLDER, FORMAT, VERSION = "trt", "llama-export-engine", 1
Product = Literal["tensorrt", "tensorrt-rtx"]
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Profile:
    """Shapes that one optimization profile takes: each the least, the one it is tuned for, and the most.

    ``buckets`` is null where the engine has no cache.
    """

    rows: tuple[int, ...]
    tokens: tuple[int, ...]
    buckets: tuple[int, ...] | None

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "buckets"):
            triple = getattr(self, name)
            if triple is not None and not (len(triple) == 3 and 0 < triple[0] <= triple[1] <= triple[2]):
                raise ValueError(f"{name} is {list(triple)}, needs three numbers from 1 on in rising order")


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """Everything a runtime needs to know about an engine.

    Attributes:
        product: What built it; None where the graph alone was written.
        product_version: Of that.
        compute_capabilities: Of the GPUs that it runs on, such as ``"8.9"``.
        precision: Of weights: ``bf16``, ``fp16``, ``fp32``, or of matrices alone ``int8``, ``int4``, ``fp8``.
        dtype: What it computes in, and of the cache.
        max_seq: C, slots of a row: positions that a text may have.
        prefill_chunk: The most tokens in one run.
        max_batch: The most rows in one run.
        buckets: How many slots a run may read, rising to ``max_seq``; empty without a cache.
        profiles: One decode profile for each bucket, then that for chunks; without a cache, one.
        inputs: Of the graph, in its order.
        outputs: The same.
        aliases: Each cache output, and the input whose memory it shares.
        onnx: The graph that it was built from; the file need not be in the bundle any more.
        plan: The engine itself; None where the graph alone was written.
        version_compatible: Later minor versions of the product open it too.
        refittable: Its weights can be exchanged for others.
        stripped: It holds no weights: a reader puts in those of ``onnx``, which stands beside it.
        rebuild: Options of ``llama-export trt BUNDLE`` that make it again.
        build_seconds: How long the builder took.
    """

    format: Literal["llama-export-engine"] = "llama-export-engine"
    version: Literal[1] = 1
    task: str
    product: Product | None
    product_version: str | None
    compute_capabilities: tuple[str, ...]
    precision: str
    dtype: Literal["float32", "float16", "bfloat16"]
    max_seq: int
    prefill_chunk: int
    max_batch: int
    buckets: tuple[int, ...]
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    aliases: dict[str, str]
    onnx: FileEntry
    plan: FileEntry | None
    version_compatible: bool
    refittable: bool
    stripped: bool
    rebuild: tuple[str, ...]
    build_seconds: float | None

    def __post_init__(self) -> None:
        check_at_least(1, max_seq=self.max_seq, prefill_chunk=self.prefill_chunk, max_batch=self.max_batch)
        if self.buckets and (list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1):
            raise ValueError(f"buckets is {list(self.buckets)}, needs rising numbers from 1 on")
        if self.buckets and self.buckets[-1] != self.max_seq:
            raise ValueError(f"buckets end at {self.buckets[-1]}, max_seq is {self.max_seq}")
        if len(self.profiles) != len(self.buckets) + 1:
            raise ValueError(
                f"profiles has {len(self.profiles)} entries, {len(self.buckets)} buckets need one more"
            )
        if (self.plan is None) != (self.product is None) or (self.product is None) != (
            self.product_version is None
        ):
            raise ValueError("plan, product and product_version are given together or not at all")

    def to_json(self) -> str:
        """Two spaces, one final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @property
    def row_bytes(self) -> int:
        """Memory of one row's keys and values."""
        caches = [spec for spec in self.inputs if spec.name in self.aliases.values()]
        values = sum(_product(spec.shape[1:]) for spec in caches)
        return values * _ITEM_BYTES[self.dtype]

    def rebuild_command(self, bundle: Path) -> str:
        """What a person types to have it made again."""
        return " ".join(("llama-export trt", str(bundle), *self.rebuild, "--force"))


def _product(dims: tuple[int | str, ...]) -> int:
    total = 1
    for dim in dims:
        total *= dim if isinstance(dim, int) else 1
    return total


def engine_names(bundle: Path) -> list[str]:
    """Names of a bundle's engines, sorted."""
    return sorted(path.stem for path in (bundle / FOLDER).glob("*.json"))


def read_engine_file(bundle: Path, name: str | None = None) -> EngineFile:
    """Read the sidecar of one of a bundle's engines.

    Args:
        bundle: The folder.
        name: Which; None is the only one.

    Raises:
        EngineError: There is none of that name, or several and none named; or it is malformed or newer.
    """
    names = engine_names(bundle)
    if not names:
        raise EngineError(f"{bundle}: has no engine", f"llama-export trt {bundle} makes one")
    if name is None and len(names) > 1:
        raise EngineError(
            f"{bundle}: has engines {', '.join(names)}", f"name one, such as --engine {names[0]}"
        )
    if name is not None and name not in names:
        raise EngineError(f"{bundle}: has no engine {name}, but {', '.join(names)}", "name one of these")
    path = bundle / FOLDER / f"{name or names[0]}.json"
    again = f"make it again with llama-export trt {bundle} --force"
    try:
        document = strict_json.parse(path.read_bytes().decode("utf-8"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise EngineError(f'{path}: not an engine of ours, needs "format": "{FORMAT}"', again)
        version = document.get("version")
        if type(version) is int and version > VERSION:
            raise EngineError(
                f"{path}: version {version} is newer than this runtime, which reads {VERSION}",
                "upgrade llama-export",
            )
        return strict_json.decode(EngineFile, document)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror})", again) from None
    except (UnicodeDecodeError, strict_json.StrictJsonError) as error:
        raise EngineError(f"{path}: {error}", again) from None


def read_plan(bundle: Path, engine: EngineFile) -> bytes:
    """Read a plan, which is code, and refuse any other bytes than those that were published.

    Raises:
        EngineError: There is no plan, or it is missing, truncated or changed.
    """
    again = engine.rebuild_command(bundle)
    if engine.plan is None:
        raise EngineError(f"{bundle / engine.onnx.path}: no engine was built from it yet", again)
    path, entry = bundle / engine.plan.path, engine.plan
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror})", again) from None
    if len(content) != entry.size_bytes:
        raise EngineError(f"{path}: {len(content)} bytes, its sidecar lists {entry.size_bytes}", again)
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise EngineError(f"{path}: SHA-256 is {found}, its sidecar lists {entry.sha256}", again)
    return content


def read_graph(bundle: Path, engine: EngineFile) -> Path:
    """Where the graph is whose weights a plan lacks.

    Raises:
        EngineError: It is missing or changed.
    """
    path, again = bundle / engine.onnx.path, engine.rebuild_command(bundle)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror})", again) from None
    if found != engine.onnx.sha256:
        raise EngineError(f"{path}: SHA-256 is {found}, its sidecar lists {engine.onnx.sha256}", again)
    return path


def check_runs_here(
    bundle: Path, engine: EngineFile, product: Product, product_version: str, compute_capability: str
) -> None:
    """Refuse an engine that was built with another product or version, or for other GPUs.

    Args:
        bundle: The folder, for the command that rebuilds.
        engine: Its sidecar.
        product: What is installed here.
        product_version: Of that.
        compute_capability: Of this machine's GPU.

    Raises:
        EngineError: It does not run here; the hint is the command that makes one which does.
    """
    again = engine.rebuild_command(bundle)
    built = f"{bundle / FOLDER}: the engine was built with {engine.product} {engine.product_version}"
    if engine.product != product:
        raise EngineError(f"{built}, {product} {product_version} is installed", again)
    if not _version_fits(engine, product_version):
        raise EngineError(f"{built}, {product_version} is installed", again)
    if compute_capability not in engine.compute_capabilities:
        wanted = ", ".join(engine.compute_capabilities)
        raise EngineError(
            f"{bundle / FOLDER}: the engine is for compute capability {wanted}, "
            f"this GPU has {compute_capability}",
            f"{again} --compute-capability {compute_capability}",
        )


def _version_fits(engine: EngineFile, installed: str) -> bool:
    if installed == engine.product_version or not engine.version_compatible:
        return installed == engine.product_version
    built, here = (_numbers(version) for version in (engine.product_version or "", installed))
    return here[:1] == built[:1] and here >= built


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
