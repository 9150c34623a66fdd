"""What ``bench`` says is what it did: counts, bytes and shares that hold whatever the machine's speed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import pytest
from toy_bundle import POSITIONS, write_toy_bundle

from llama_runtime.bench import bench
from llama_runtime.cache import position_bytes
from llama_runtime.errors import LlamaRuntimeError, OptionError
from llama_runtime.manifest import read_manifest

COUNTS = {"prompt_tokens": 5, "new_tokens": 6, "prefill_tokens": 9, "repeats": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "bundle"
    write_toy_bundle(folder, "flash")
    manifest = dataclasses.replace(read_manifest(folder), step_weight_bytes=4000)
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


@pytest.fixture(scope="module")
def report(bundle):
    # A process of its own finds the package where this one did.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(str(Path(p)) for p in sys.path if p))
        return bench(bundle, threads=1, profile=True, **COUNTS)


def test_it_says_what_was_asked(report, bundle):
    for name, count in COUNTS.items():
        assert getattr(report, name) == count
    assert (report.threads, report.bundle, report.attention) == (1, str(bundle), "flash")
    assert len(report.token_ms) == 6


def test_times_agree_with_each_other(report):
    for spread in (report.decode_ms, report.prefill_tokens_per_s, report.start_to_first_token_s):
        assert 0 < spread.least <= spread.median <= spread.most
    assert report.decode_tokens_per_s == pytest.approx(1e3 / report.decode_ms.median)
    # A process must at least start Python and load the bundle.
    assert report.start_to_first_token_s.least > 0.05 and report.load_s > 0


def test_a_step_reads_weights_and_the_cache_half_way(report, bundle):
    cached = (5 + 6 // 2) * position_bytes(read_manifest(bundle).cache)
    assert report.step_bytes == 4000 + cached
    seconds = report.decode_ms.median * 1e-3
    assert report.bandwidth_share == pytest.approx(report.step_bytes / seconds / report.read_bytes_per_s)


def test_the_profile_is_of_the_graphs_operators(report):
    assert {"GroupQueryAttention", "Gather", "outside of operators"} <= set(report.profile)
    assert all(ms >= 0 for name, ms in report.profile.items() if name != "outside of operators")


def test_memory_is_measured_where_the_system_tells(report):
    if Path("/proc/self/status").exists():
        assert report.peak_private_bytes > 10 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")
def test_what_is_read_to_measure_bandwidth_is_not_the_bundles_memory(bundle, monkeypatch):
    def read(threads: int) -> float:
        kept = bytearray(os.urandom(1 << 20)) * 700
        time.sleep(0.1)  # longer than between two looks
        return float(len(kept))

    monkeypatch.setattr("llama_runtime.bench.read_bandwidth", read)
    monkeypatch.setattr("llama_runtime.bench._start_to_first_token", lambda *_: 1.0)
    before = bench(bundle, threads=1, **COUNTS).peak_private_bytes
    monkeypatch.setattr("llama_runtime.bench.read_bandwidth", lambda threads: 1.0)
    assert before is not None and before < bench(bundle, threads=1, **COUNTS).peak_private_bytes + (500 << 20)


def test_it_is_plain_data(report):
    assert json.loads(json.dumps(report.to_dict()))["decode_ms"]["median"] == report.decode_ms.median


def test_a_bundle_that_does_not_say_has_no_share(tmp_path, monkeypatch):
    write_toy_bundle(tmp_path / "bundle", "sdpa")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    report = bench(tmp_path / "bundle", threads=1, **COUNTS | {"repeats": 1})
    assert report.step_bytes is None and report.bandwidth_share is None and report.profile is None


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"repeats": 0}, "needs at least 1"),
        ({"new_tokens": -3}, "needs at least 1"),
        ({"prompt_tokens": POSITIONS}, f"the model has {POSITIONS} positions"),
    ],
)
def test_counts_that_cannot_be(bundle, counts, words):
    with pytest.raises(OptionError, match=words):
        bench(bundle, **COUNTS | counts)


def test_no_bundle_there(tmp_path):
    with pytest.raises(LlamaRuntimeError, match="not a bundle"):
        bench(tmp_path / "none")
