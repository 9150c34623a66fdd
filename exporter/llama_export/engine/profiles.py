"""The optimization profiles of an engine: which shapes it is built for, as data."""

from __future__ import annotations

from llama_export.engine.options import Limits
from llama_runtime.engine_file import Profile


def profiles(limits: Limits) -> tuple[Profile, ...]:
    """One decode profile for each bucket, in which nothing but the rows can vary, then one for chunks.

    Chunks of a prompt are read row by row, so that one long chunk's memory is not asked for every row. A
    model without a cache has one profile for whole texts.
    """
    rows = (1, limits.max_batch, limits.max_batch)
    if not limits.buckets:
        return (Profile(rows, (1, limits.prefill_chunk, limits.max_seq), None),)
    first, middle, last = limits.buckets[0], limits.buckets[len(limits.buckets) // 2], limits.buckets[-1]
    decode = [Profile(rows, (1, 1, 1), (bucket, bucket, bucket)) for bucket in limits.buckets]
    chunk = Profile((1, 1, 1), (1, limits.prefill_chunk, limits.prefill_chunk), (first, middle, last))
    return (*decode, chunk)
