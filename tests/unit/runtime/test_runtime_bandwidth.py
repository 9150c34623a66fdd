"""How much memory is read to measure its bandwidth, and that something is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_runtime import bandwidth


@pytest.mark.parametrize(
    ("sizes", "largest"),
    [(["48K", "2048K", "300M"], 300 << 20), ([], 0), (["what?"], 0), (["1G"], 1 << 30)],
)
def test_the_largest_cache_is_what_linux_tells(
    sizes: list[str], largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, size in enumerate(sizes):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}/size").write_text(size + "\n")
    monkeypatch.setattr(bandwidth, "_CACHES", tmp_path)
    assert bandwidth._largest_cache() == largest


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_that_of_memory(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_CACHES", tmp_path)  # 256 MiB will do
    assert 1e8 < bandwidth.read_bandwidth(threads) < 1e13
