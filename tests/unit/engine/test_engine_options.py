"""The choices of an engine: what is filled in, what is refused, and which shapes it is built for."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import pytest
from tiny_checkpoints import CONFIGS, NARROW_HEADS, VARIANTS

from llama_export.engine.build import target_capabilities
from llama_export.engine.options import EngineOptions, Limits, limits
from llama_export.engine.profiles import profiles
from llama_export.errors import OptionError
from llama_export.model import HeadConfig
from llama_runtime.engine_file import Profile
from llama_runtime.tensorrt_library import Library

CONFIG = CONFIGS["gqa"]  # 160 positions
LONG = dataclasses.replace(CONFIG, max_position_embeddings=131072)
READER = dataclasses.replace(CONFIG, head=HeadConfig("question-answering"))


@pytest.mark.parametrize(
    ("config", "options", "wanted"),
    [
        (CONFIG, EngineOptions(), Limits(160, (160,), 160, 1)),
        (LONG, EngineOptions(), Limits(4096, (512, 1024, 2048, 4096), 512, 1)),
        (LONG, EngineOptions(max_seq=3000), Limits(3000, (512, 1024, 2048, 3000), 512, 1)),
        (LONG, EngineOptions(max_seq=131072, buckets=(8, 131072)), Limits(131072, (8, 131072), 512, 1)),
        (VARIANTS["dynamic"], EngineOptions(), Limits(160, (160,), 160, 1)),
        (READER, EngineOptions(max_batch=4), Limits(160, (), 160, 4)),
    ],
)
def test_what_is_left_open_is_filled_in(config, options, wanted):
    assert limits(config, options) == wanted


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (CONFIG, {"max_seq": 161}, "max_seq is 161, the model has 160 positions"),
        (CONFIG, {"max_seq": 64, "buckets": (16, 32)}, "buckets end at 32, max_seq is 64"),
        (CONFIG, {"max_seq": 64, "buckets": (16, 128)}, "buckets end at 128, max_seq is 64"),
        (CONFIG, {"buckets": (64, 16, 160)}, "buckets are 64, 16, 160, must be rising"),
        (CONFIG, {"buckets": (16, 16, 160)}, "must be rising"),
        (CONFIG, {"buckets": (0, 160)}, "must be rising numbers from 1"),
        (CONFIG, {"buckets": ()}, "buckets are empty"),
        (READER, {"buckets": (160,)}, "buckets are for text-generation, the task is question-answering"),
        (NARROW_HEADS, {}, "bf16 needs a head_dim that is a multiple of 8, the checkpoint's is 10"),
        (CONFIG, {"max_seq": 0}, "max_seq is 0, must be at least 1"),
        (CONFIG, {"prefill_chunk": -3}, "prefill_chunk is -3"),
        (CONFIG, {"max_batch": 0}, "max_batch is 0"),
        (CONFIG, {"precision": "tf32"}, "must be one of bf16, fp16, fp32, int8, int4, fp8"),
        (CONFIG, {"compute": "fp16"}, "compute is fp16, which int8, int4 and fp8 have, precision is bf16"),
        (CONFIG, {"precision": "int8", "compute": "int8"}, "compute is 'int8', must be one of bf16"),
        (CONFIG, {"precision": "int8", "block_size": 64}, "block size is 64, which int4 has"),
        (CONFIG, {"precision": "int4", "block_size": 48}, "block size is 48, must be one of 32, 64, 128"),
        (NARROW_HEADS, {"precision": "int8"}, "bf16 needs a head_dim that is a multiple of 8"),
        (CONFIG, {"precision": "fp8", "compute_capabilities": ("8.6",)}, "8.6 have no fp8, it needs 8.9"),
        (CONFIG, {"precision": "int8", "compute_capabilities": ("7.5",)}, "7.5 have no bf16, it needs 8.0"),
        (
            CONFIG, {"precision": "int4", "compute": "fp16", "compute_capabilities": ("7.5",)},
            "7.5 have no int4, it needs 8.0",
        ),
        (CONFIG, {"compute_capabilities": ("7.5",)}, "compute capability 7.5 have no bf16, it needs 8.0"),
        (CONFIG, {"compute_capabilities": ("sm_86",)}, "'sm_86', must be two numbers with a dot"),
    ],
)  # fmt: skip
def test_what_is_refused(config, options, words):
    with pytest.raises(OptionError, match=re.escape(words)) as refused:
        limits(config, EngineOptions(**options))
    assert refused.value.hint or "one of" in words or "at least" in refused.value.message


def test_a_decode_profile_for_each_bucket_then_one_for_chunks():
    decode = [Profile((1, 4, 4), (1, 1, 1), (n, n, n)) for n in (512, 1024, 2048)]
    chunk = Profile((1, 1, 1), (1, 256, 256), (512, 1024, 2048))
    assert profiles(Limits(2048, (512, 1024, 2048), 256, 4)) == (*decode, chunk)
    assert profiles(Limits(160, (), 128, 2)) == (Profile((1, 2, 2), (1, 128, 160), None),)


RTX = Library(
    SimpleNamespace(ComputeCapability=SimpleNamespace(__members__={
        "NONE": 0, "CURRENT": 1, "SM75": 75, "SM86": 86, "SM89": 89, "SM120": 120,
    })), "tensorrt-rtx", "1.7",
)  # fmt: skip
FULL = Library(SimpleNamespace(), "tensorrt", "11.4")


@pytest.mark.parametrize(
    ("library", "precision", "asked", "here", "wanted"),
    [
        (RTX, "bf16", (), None, ("8.6", "8.9", "12.0")),
        (RTX, "fp16", (), None, ("7.5", "8.6", "8.9", "12.0")),
        (RTX, "fp32", (), None, ("8.6", "8.9", "12.0")),
        (RTX, "fp8", (), None, ("8.9", "12.0")),
        (RTX, "fp8", (), "8.6", ("8.9", "12.0")),
        (RTX, "int4", (), None, ("8.6", "8.9", "12.0")),
        (RTX, "bf16", (), "8.6", ("8.6",)),
        (RTX, "bf16", (), "9.0", ("8.6", "8.9", "12.0")),
        (RTX, "bf16", ("12.0",), "8.6", ("12.0",)),
        (FULL, "bf16", (), "9.0", ("9.0",)),
        (FULL, "bf16", ("9.0",), "9.0", ("9.0",)),
    ],
)
def test_which_gpus_a_build_is_for(library, precision, asked, here, wanted):
    options = EngineOptions(precision=precision, compute_capabilities=asked)
    assert target_capabilities(library, options, here) == wanted


@pytest.mark.parametrize(
    ("library", "precision", "asked", "here", "words"),
    [
        (RTX, "bf16", ("9.0",), None, "builds bf16 for compute capability 8.6, 8.9, 12.0, 9.0 is asked"),
        (RTX, "fp32", ("7.5",), None, "builds fp32 for compute capability 8.6, 8.9, 12.0, 7.5 is asked"),
        (FULL, "bf16", (), None, "tensorrt builds for the GPU at hand alone, no GPU is here"),
        (FULL, "bf16", ("8.6",), "9.0", "tensorrt builds for the GPU at hand alone, this GPU has 9.0"),
    ],
)  # fmt: skip
def test_gpus_that_a_builder_does_not_know(library, precision, asked, here, words):
    options = EngineOptions(precision=precision, compute_capabilities=asked)
    with pytest.raises(OptionError, match=re.escape(words)):
        target_capabilities(library, options, here)
