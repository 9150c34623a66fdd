"""A token by our ``stream`` beside a run of the same session with everything bound, and nothing else.

Blocks of tokens alternate, ours, bare, ours, bare, each after the same prompt, so that both decode at the
same context lengths. The bare block is fed the tokens that ours chose; its last logits must choose the
same, outside the clock. The keys and values are bound to buffers that the graph writes in place.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
from batch_protocol import read_question

import llama_runtime
from llama_runtime.cache import cache_names

BLOCK_TOKENS = 16
BLOCKS = 3
CPU = ("cpu", 0)


def main() -> None:
    question = read_question()
    generator = llama_runtime.load(question.folder, threads=question.threads)
    prompt = question.prompts()[1]
    ours_ms, bare_ms = [], []
    for block in range(BLOCKS + 1):
        tokens, ours = stream_block(generator, prompt)
        bare = bare_block(generator.session, prompt, tokens)
        if block:  # the first run of a process pays for more than itself
            ours_ms += ours
            bare_ms += bare
    ours, bare = statistics.median(ours_ms), statistics.median(bare_ms)
    print(json.dumps({"ours_ms": ours, "bare_ms": bare, "overhead_percent": (ours / bare - 1) * 100}))


def stream_block(generator: llama_runtime.Generator, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The tokens, and the milliseconds of each after the first."""
    options = llama_runtime.SamplingOptions(max_new_tokens=BLOCK_TOKENS + 1, ignore_eos=True)
    tokens, moments = [], []
    for piece in generator.stream(prompt, options):
        tokens.append(piece.token)
        moments.append(time.perf_counter())
    return tokens, (np.diff(moments) * 1000).tolist()


def bare_block(session: llama_runtime.Session, prompt: list[int], tokens: list[int]) -> list[float]:
    """Milliseconds of each run that reads a token; reading the prompt is not timed."""
    manifest, capacity = session.manifest, len(prompt) + len(tokens)
    cache = session.new_cache(capacity=capacity)
    if not cache.in_place:
        raise SystemExit("error: the bundle's cache grows, the benchmark binds one that is written in place")
    session.prefill(np.array([prompt], np.int64), cache)
    inference = session._inference  # the very session that ours runs: there is no public way to it
    binding = inference.io_binding()
    ids, position = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64)
    ones, keep = np.ones(capacity, np.int64), np.ones(1, np.int64)
    logits = np.empty((1, 1, manifest.limits.vocab_size), np.float32)
    declared = [spec.name for spec in (*manifest.inputs, *manifest.optional_inputs)]
    for name, array in (("input_ids", ids), ("position_ids", position), ("num_logits_to_keep", keep)):
        if name in declared:
            binding.bind_input(name, *CPU, np.int64, array.shape, array.ctypes.data)
    binding.bind_output("logits", *CPU, np.float32, logits.shape, logits.ctypes.data)
    for past, present, array in zip(*cache_names(manifest.kv_cache), cache.tensors, strict=True):
        place = (*CPU, array.dtype.type, array.shape, array.ctypes.data)
        binding.bind_input(past, *place)
        binding.bind_output(present, *place)
    moments = [time.perf_counter()]
    for length, token in enumerate(tokens[:-1], start=len(prompt)):
        ids[0, 0], position[0, 0] = token, length
        binding.bind_input("attention_mask", *CPU, np.int64, (1, length + 1), ones.ctypes.data)
        inference.run_with_iobinding(binding)
        moments.append(time.perf_counter())
    if int(logits[0, 0].argmax()) != tokens[-1]:
        raise SystemExit("error: the bare session chose another token: it did other work")
    return (np.diff(moments) * 1000).tolist()


main()
