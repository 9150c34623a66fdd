"""What is wanted of an engine, and what that means for one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from llama_export.errors import OptionError
from llama_export.model.config import LlamaConfig
from llama_export.quantize import BLOCK_SIZES
from llama_export.quantize.signed import Kind
from llama_runtime.tensorrt_library import Wanted

Compute = Literal["bf16", "fp16", "fp32"]
Precision = Literal["bf16", "fp16", "fp32", "int8", "int4", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
COMPUTE: tuple[Compute, ...] = get_args(Compute)
_KINDS: dict[str, Kind] = {"int8": "int8", "int4": "int4", "fp8": "fp8"}
_DTYPES: dict[Compute, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_DEFAULT_MAX_SEQ, _FIRST_BUCKET = 4096, 512
_FUSED_HEAD_DIM = 8  # tried with TensorRT-RTX 1.7: it builds 40, 72 and 256, and fails at 10, 20 and 100
# The least compute capability that has the arithmetic, or of few bits, for which TensorRT-RTX 1.7 builds.
_LEAST_CAPABILITY: dict[Precision, tuple[int, int]] = {
    **{"bf16": (8, 0), "fp16": (5, 3), "fp32": (5, 0)},
    **{"int8": (5, 3), "int4": (8, 0), "fp8": (8, 9)},
}


@dataclass(frozen=True)
class EngineOptions:
    """The choices of one engine.

    Attributes:
        precision: ``bf16``, ``fp16`` and ``fp32`` of everything; ``int8``, ``int4`` and ``fp8`` of matrices
            alone, those of layers and of a language model's head.
        compute: What an engine of few bits computes in, and of its cache; None is ``bf16``.
        block_size: Values that share a scale in ``int4``: 32, 64 or 128; None is a bundle's own, or 64.
        max_seq: C, the longest text in tokens; None is the model's limit, at most 4096.
        buckets: How many slots a decode may read; None is 512, 1024, ... up to ``max_seq``.
        prefill_chunk: The most prompt tokens in one run.
        max_batch: The most rows in one run.
        builder: Which of the two products.
        compute_capabilities: The GPUs to build for, such as ``("8.6", "8.9")``; empty is this machine's,
            or where there is none, every one that the builder knows and the precision needs.
        version_compatible: Let later minor versions of the product open the plan.
        refittable: Let a plan's weights be exchanged for others.
        stripped: Leave the weights out of the plan: they stay beside it, and are put in when it is opened.
        timing_cache: A file that keeps what the builder measured, for its next builds; made if need be.

    Raises:
        OptionError: A value is out of range.
    """

    precision: Precision = "bf16"
    compute: Compute | None = None
    block_size: int | None = None
    max_seq: int | None = None
    buckets: tuple[int, ...] | None = None
    prefill_chunk: int = 512
    max_batch: int = 1
    builder: Wanted = "auto"
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    refittable: bool = False
    stripped: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision is {self.precision!r}, must be one of {', '.join(PRECISIONS)}")
        self._check_few_bits()
        for name in ("max_seq", "prefill_chunk", "max_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}, must be at least 1")
        for capability in self.compute_capabilities:
            self._check_capability(capability)

    def _check_capability(self, capability: str) -> None:
        parts = capability.split(".")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise OptionError(
                f"compute capability is {capability!r}, must be two numbers with a dot, such as 8.9",
                "nvidia-smi --query-gpu=compute_cap --format=csv says a GPU's",
            )
        for precision in (self.precision, self.computes_in):
            if not _has(capability, precision):
                least = ".".join(map(str, _LEAST_CAPABILITY[precision]))
                raise OptionError(
                    f"GPUs of compute capability {capability} have no {precision}, it needs {least} or more",
                    "use --precision int8" if precision == self.kind
                    else f"use {'--compute' if self.kind else '--precision'} fp16",
                )  # fmt: skip

    def _check_few_bits(self) -> None:
        if self.compute is not None and self.compute not in COMPUTE:
            raise OptionError(f"compute is {self.compute!r}, must be one of {', '.join(COMPUTE)}")
        if self.compute is not None and self.kind is None:
            raise OptionError(
                f"compute is {self.compute}, which int8, int4 and fp8 have, precision is {self.precision}",
                "leave --compute out",
            )
        if self.block_size is not None and self.kind != "int4":
            raise OptionError(
                f"block size is {self.block_size}, which int4 has, precision is {self.precision}",
                "leave --block-size out",
            )
        if self.block_size not in (None, *BLOCK_SIZES):
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise OptionError(
                f"block size is {self.block_size}, must be one of {allowed}", "such as --block-size 64"
            )

    @property
    def kind(self) -> Kind | None:
        """What the matrices are stored as; None where that is what they are computed in."""
        return _KINDS.get(self.precision)

    @property
    def computes_in(self) -> Compute:
        """Of activations and cache."""
        if self.precision == "bf16" or self.precision == "fp16" or self.precision == "fp32":
            return self.precision
        return self.compute or "bf16"

    @property
    def dtype(self) -> str:
        """The same, as a dtype's name."""
        return _DTYPES[self.computes_in]


def has_precision(capability: str, options: EngineOptions) -> bool:
    """Whether a GPU of a compute capability has what an engine computes with."""
    return _has(capability, options.precision) and _has(capability, options.computes_in)


def _has(capability: str, precision: Precision) -> bool:
    major, minor = map(int, capability.split("."))
    return (major, minor) >= _LEAST_CAPABILITY[precision]


@dataclass(frozen=True)
class Limits:
    """Shapes of the engine of one model; the names are those of ``EngineOptions``, nothing is open."""

    max_seq: int
    buckets: tuple[int, ...]
    prefill_chunk: int
    max_batch: int


def limits(config: LlamaConfig, options: EngineOptions) -> Limits:
    """Fill in what the options leave open.

    Raises:
        OptionError: More positions than the model has, heads that no kernel takes, buckets that do not rise
            to ``max_seq``, or buckets for a model without a cache.
    """
    if config.head_dim % _FUSED_HEAD_DIM and options.computes_in != "fp32":
        raise OptionError(
            f"attention in {options.computes_in} needs a head_dim that is a multiple of {_FUSED_HEAD_DIM}, "
            f"the checkpoint's is {config.head_dim}",
            f"use {'--compute' if options.kind else '--precision'} fp32, which takes any",
        )
    context = config.context_length
    max_seq = options.max_seq or min(context, _DEFAULT_MAX_SEQ)
    if max_seq > context:
        raise OptionError(
            f"max_seq is {max_seq}, the model has {context} positions", f"use --max-seq {context} or less"
        )
    chunk = min(options.prefill_chunk, max_seq)
    if not config.generates:
        if options.buckets is not None:
            raise OptionError(
                f"buckets are for text-generation, the task is {config.head.task}, which has no cache",
                "leave --buckets out",
            )
        return Limits(max_seq, (), chunk, options.max_batch)
    buckets = _doubling(max_seq) if options.buckets is None else options.buckets
    if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
        raise OptionError(
            f"buckets are {', '.join(map(str, buckets)) or 'empty'}, must be rising numbers from 1 on",
            "such as --buckets 512,1024,2048",
        )
    if buckets[-1] != max_seq:
        raise OptionError(
            f"the buckets end at {buckets[-1]}, max_seq is {max_seq}, they must be the same",
            f"end --buckets with {max_seq}, or use --max-seq {buckets[-1]}",
        )
    return Limits(max_seq, buckets, chunk, options.max_batch)


def _doubling(max_seq: int) -> tuple[int, ...]:
    buckets, bucket = [], _FIRST_BUCKET
    while bucket < max_seq:
        buckets.append(bucket)
        bucket *= 2
    return (*buckets, max_seq)
