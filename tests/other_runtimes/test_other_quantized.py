"""int8 and int4 bundles in other runtimes, as they are: the same greedy tokens as in ours.

The products are ONNX Runtime's own operators, so whoever has its version computes the same numbers; a build
with other kernels may decide a near tie otherwise.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import HERE, Ours, asked

import llama_export
from llama_export.recipe import Recipe

pytestmark = pytest.mark.long
DTYPES = {"int8": "q8", "int4": "q4"}


@pytest.fixture(scope="module", params=DTYPES)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def quantized(precision, sources, tmp_path_factory) -> Ours:
    folder = tmp_path_factory.mktemp(precision) / "demo"
    return Ours(llama_export.export(sources["demo"], folder, recipe=Recipe(precision=precision)).output)


def test_genai(genai, quantized):
    worker = HERE / "workers" / "generate_genai.py"
    assert asked([genai, worker], quantized.question)["greedy"] == quantized.greedy


def test_transformers_js(node, quantized, precision):
    question = quantized.question | {"dtype": DTYPES[precision]}
    assert asked([node, HERE / "workers" / "transformers.mjs"], question)["greedy"] == quantized.greedy


def test_optimum(optimum, quantized: Ours):
    worker = HERE / "workers" / "generate_optimum.py"
    assert asked([optimum, worker], quantized.question)["greedy"] == quantized.greedy


def test_files_are_those_that_the_dtype_names(quantized, precision):
    name = {"int8": "model_quantized", "int4": "model_q4"}[precision]
    folder = Path(quantized.question["bundle"]) / "onnx"
    assert {path.name for path in folder.iterdir()} == {f"{name}.onnx", f"{name}.onnx_data"}
