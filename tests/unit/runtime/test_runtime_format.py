"""The numbers and names that FORMAT.md shows are those of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from llama_runtime.beam import BeamSearch
from llama_runtime.manifest import Manifest
from llama_runtime.options import SamplingOptions
from llama_runtime.processors import process
from llama_runtime.random_numbers import splitmix64, uniform
from llama_runtime.sampling import candidates, sample

TEXT = (Path(__file__).resolve().parents[3] / "runtime/FORMAT.md").read_text(encoding="utf-8")


def _rows(header: str) -> list[list[str]]:
    lines = TEXT.split(f"| {header} |\n")[1].splitlines()[1:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_random_numbers():
    rows = _rows("seed | n | number | u")
    assert len(rows) == 7
    for seed, n, number, u in rows:
        assert splitmix64(int(seed), int(n)) == int(number)
        assert uniform(int(seed), int(n)) == float(u)


def test_the_sampled_tokens():
    logits = np.array([1.0, 2.5, -1.0, 2.5, 0.5, 2.0], np.float32)
    rows = _rows("temperature | top_k | top_p | min_p | candidates | tokens")
    assert len(rows) == 4
    for temperature, top_k, top_p, min_p, ids, tokens in rows:
        options = SamplingOptions(
            temperature=float(temperature), top_k=int(top_k), top_p=float(top_p), min_p=float(min_p)
        )
        assert candidates(logits, options)[0].tolist() == [int(token) for token in ids.split()]
        assert [sample(logits, options, 42, n) for n in range(12)] == [int(token) for token in tokens.split()]


PROCESSORS = [
    {"logit_bias": {0: 1.5, 4: -np.inf}},
    {"repetition_penalty": 2.0},
    {"presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 4},
]


def test_the_processed_logits():
    rows = _rows("options | x | all, of which text | processed")
    for options, (_, x, tokens, processed) in zip(PROCESSORS, rows, strict=True):
        scores = np.array([float(value) for value in x.strip("`").split()], np.float32)
        prompt, *text = [int(token) for token in tokens.split()]
        got = process(scores, SamplingOptions(**options), [prompt], text, (1, 3))
        assert got.tolist() == [float(value) for value in processed.strip("`").split()]


def test_the_beams():
    rows = _rows("after | logits of 0 1 2 3")
    logits = np.array([row[1].strip("`").split() for row in rows], np.float32)
    results = _rows("length_penalty | best | score | second | score")
    assert len(results) == 3
    for penalty, *expected in results:
        options = SamplingOptions(num_beams=2, max_new_tokens=4, length_penalty=float(penalty))
        search = BeamSearch([0], options, [3])
        growing, last = [], [0, 0]
        while search.advance(logits[last]) is not None:
            growing.append([list(beam.tokens) for beam in search.running])
            last = [beam.tokens[-1] for beam in search.running]
        assert growing == [[[1], [2]], [[1, 2], [2, 1]], [[1, 2, 1], [1, 2, 0]]]
        complete = [(" ".join(map(str, beam.tokens)), f"{beam.score:.5f}") for beam in search.finished]
        assert [cell for pair in complete for cell in pair] == expected


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Manifest)])
def test_every_field_of_the_manifest_is_specified(field):
    named = [re.findall(r"`(\w+)[.`]", row[0]) for row in _rows("field | type | meaning")]
    assert field in {name for names in named for name in names}
