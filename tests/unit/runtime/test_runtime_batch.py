"""Batches on the toy: unequal rows against NumPy, and what one row does the others do not notice."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from toy_bundle import POSITIONS, V, toy_logits, toy_weights, write_toy_bundle

import llama_runtime
from llama_runtime import batch as batch_module
from llama_runtime.batch import Batch
from llama_runtime.cache import position_bytes
from llama_runtime.errors import OptionError, PromptError, SessionError
from llama_runtime.manifest import Tokens
from llama_runtime.options import SamplingOptions
from llama_runtime.ragged import ragged_rows

WEIGHTS = toy_weights()
RANDOM = np.random.default_rng(5)
PROMPTS = [RANDOM.integers(0, V, length).tolist() for length in (3, 17, 1, 40, 8, 25, 2)]
TOLERANCE = 2e-5  # Absolute, on logits of about 10; measured 4e-6.
OPTIONS = [
    SamplingOptions(max_new_tokens=9),
    SamplingOptions(max_new_tokens=4, temperature=2.0, seed=3),
    SamplingOptions(max_new_tokens=15, repetition_penalty=1.3),
    SamplingOptions(max_new_tokens=1),
    SamplingOptions(max_new_tokens=12, temperature=1.0, top_k=9, min_p=0.05, seed=8),
    SamplingOptions(max_new_tokens=7, no_repeat_ngram_size=2, logprobs=2),
    SamplingOptions(max_new_tokens=20),
]


@pytest.fixture(scope="module", params=["flash", "sdpa"])
def generator(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    write_toy_bundle(folder, request.param)
    return llama_runtime.load(folder, threads=1)


@pytest.fixture(scope="module")
def alone(generator):
    return [generator.generate(prompt, options) for prompt, options in zip(PROMPTS, OPTIONS, strict=True)]


def tokens(results):
    return [result.tokens for result in results]


def test_rows_that_come_and_go_compute_what_numpy_computes(generator):
    """Sixty random events: a row joins, all decode, a row leaves."""
    ragged = ragged_rows(generator.session, 4, 60)
    random, texts = np.random.default_rng(1), []
    for _ in range(60):
        event = random.integers(0, 4)
        if event == 0 and len(texts) < 4:
            text, cache = random.integers(0, V, random.integers(1, 12)).tolist(), ragged.new_row()
            if texts and random.integers(0, 2):  # Another row leaves while this one is being prefilled.
                generator.session.prefill(np.array([text[:1]]), cache)
                ragged.leave(0)
                texts[0] = texts[-1]
                texts.pop()
                rest = text[1:]
            else:
                rest = text
            if rest:
                generator.session.prefill(np.array([rest]), cache)
            ragged.join(cache)
            texts.append(text)
        elif event == 1 and texts:
            index = int(random.integers(0, len(texts)))
            ragged.leave(index)
            texts[index] = texts[-1]
            texts.pop()
        elif texts:
            new = random.integers(0, V, len(texts)).tolist()
            logits = ragged.decode(new)
            texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
            for row, text in zip(logits, texts, strict=True):
                np.testing.assert_allclose(row, toy_logits(WEIGHTS, text)[-1], atol=TOLERANCE)
        assert ragged.lengths == [len(text) for text in texts]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20])
def test_rows_equal_their_single_runs_however_many_run_at_a_time(generator, alone, rows):
    results = generator.generate_batch(PROMPTS, OPTIONS, rows=rows)
    assert tokens(results) == tokens(alone)
    assert [result.finish_reason for result in results] == ["length"] * len(PROMPTS)
    assert [result.seed for result in results[1:5:3]] == [3, 8]
    assert all(result.timings.prefill_ms > 0 for result in results)
    for told, want in zip(results[5].logprobs, alone[5].logprobs, strict=True):
        assert told.logprob == pytest.approx(want.logprob, abs=1e-4)
        assert [token for token, _ in told.top] == [token for token, _ in want.top]


def test_rows_join_a_running_batch_and_end_on_their_own(generator, alone):
    batch = Batch(generator, rows=3, row_tokens=64)
    requests = [batch.submit(PROMPTS[0], OPTIONS[0])]
    seen = {}
    for turn in range(40):
        if turn % 2 == 0 and len(requests) < len(PROMPTS):
            index = len(requests)
            requests.append(batch.submit(PROMPTS[index], OPTIONS[index]))
        for request, piece in batch.step():
            seen.setdefault(request, []).append(piece)
    assert batch.idle and batch.step() == []
    assert tokens(request.result() for request in requests) == tokens(alone)
    for request in requests:
        assert tuple(piece.token for piece in seen[request]) == request.generation.tokens
        reasons = [piece.finish_reason for piece in seen[request]]
        assert reasons[-1] == "length" and not any(reasons[:-1])


def test_a_long_prompt_is_read_in_chunks_while_others_go_on(generator, alone, monkeypatch):
    monkeypatch.setattr(batch_module, "CHUNK_TOKENS", 10)
    batch = Batch(generator, rows=4, row_tokens=64)
    short = batch.submit(PROMPTS[0], OPTIONS[0])
    batch.step()
    long = batch.submit(PROMPTS[3], replace(OPTIONS[3], max_new_tokens=5))
    came = [[request for request, _ in batch.step()] for _ in range(4)]
    assert came == [[short], [short], [short], [long, short, long]]
    # It leaves while the next one is half read: its place is filled, and the reading goes on.
    third = batch.submit(PROMPTS[5], OPTIONS[5])
    batch.step()
    long.cancel()
    batch.run()
    assert tokens([short.result(), third.result()]) == tokens([alone[0], alone[5]])
    assert long.generation.finish_reason == "cancelled" and len(long.generation.tokens) == 3
    assert long.generation.tokens[:1] == alone[3].tokens


def test_any_row_can_be_cancelled_in_any_state(generator, alone, monkeypatch):
    monkeypatch.setattr(batch_module, "CHUNK_TOKENS", 10)
    for victim in range(4):
        batch = Batch(generator, rows=2, row_tokens=64)
        picks = [6, 2, 3, 4]  # After one step: running, running or joining, waiting, waiting.
        requests = [batch.submit(PROMPTS[i], OPTIONS[i]) for i in picks]
        batch.step()
        batch.step()
        requests[victim].cancel()
        batch.run()
        for i, request in enumerate(requests):
            if i == victim:
                assert request.generation.finish_reason == "cancelled"
                whole = alone[picks[i]].tokens
                assert request.generation.tokens == whole[: len(request.generation.tokens)]
            else:
                assert request.generation.tokens == alone[picks[i]].tokens


def test_a_prompt_that_is_refused_harms_nobody(generator, alone):
    bad = [[], [V], b"no", [1] * POSITIONS]
    prompts = [bad[0], PROMPTS[0], bad[1], bad[2], PROMPTS[4], bad[3]]
    options = [OPTIONS[0], OPTIONS[0], OPTIONS[0], OPTIONS[0], OPTIONS[4], OPTIONS[0]]
    results = generator.generate_batch(prompts, options)
    assert [type(results[i]) for i in (0, 2, 3, 5)] == [PromptError] * 4
    assert tokens([results[1], results[4]]) == tokens([alone[0], alone[4]])


@pytest.mark.parametrize("method", ["prefill", "decode"])
def test_a_row_that_fails_harms_nobody(generator, alone, monkeypatch, method):
    """NaN in one row's logits, at its first token or at a later one."""
    real = getattr(generator.session, method)
    count = 0

    def poisoned(token_ids, *arguments, **options):
        nonlocal count
        count += 1
        logits = real(token_ids, *arguments, **options)
        if count == 3:
            logits[-1] = np.nan
        return logits

    monkeypatch.setattr(generator.session, method, poisoned)
    results = generator.generate_batch(PROMPTS, OPTIONS, rows=3)
    failed = [i for i, result in enumerate(results) if isinstance(result, SessionError)]
    assert len(failed) == 1 and "needs a finite number" in results[failed[0]].message
    assert all(results[i].tokens == alone[i].tokens for i in range(len(PROMPTS)) if i not in failed)


def test_a_prompt_that_cannot_be_read_harms_nobody(generator, alone, monkeypatch):
    real = generator.session.prefill

    def failing(token_ids, cache, **options):
        if token_ids.shape[1] == len(PROMPTS[1]):
            raise SessionError("out of memory")
        return real(token_ids, cache, **options)

    monkeypatch.setattr(generator.session, "prefill", failing)
    results = generator.generate_batch(PROMPTS, OPTIONS, rows=3)
    assert isinstance(results[1], SessionError)
    del results[1]
    assert tokens(results) == tokens(alone[:1] + alone[2:])


def test_a_joint_run_that_fails_ends_those_in_it_and_no_others(generator, alone, monkeypatch):
    real = generator.session.decode
    failures = iter([SessionError("out of memory")])

    def failing(*arguments):
        if error := next(failures, None):
            raise error
        return real(*arguments)

    monkeypatch.setattr(generator.session, "decode", failing)
    results = generator.generate_batch(PROMPTS, OPTIONS, rows=2)
    failed = [isinstance(result, SessionError) for result in results]
    assert failed == [True, True, False, False, False, False, False]
    assert tokens(results[2:]) == tokens(alone[2:])


def test_memory_is_capped_by_running_fewer_rows(generator, alone):
    row_bytes = 64 * position_bytes(generator.manifest.cache)
    assert position_bytes(generator.manifest.cache) == 2 * 2 * 2 * 16 * 4
    batch = Batch(generator, rows=8, row_tokens=64, max_cache_bytes=3 * row_bytes - 1)
    assert batch.rows == 2
    requests = [batch.submit(*pair) for pair in zip(PROMPTS, OPTIONS, strict=True)]
    most = 0
    while not batch.idle:
        batch.step()
        most = max(most, len(batch._running))
    assert most == 2 and tokens(request.result() for request in requests) == tokens(alone)
    with pytest.raises(OptionError, match=r"a row of 64 tokens needs 0\.0 MiB of cache, max_cache_bytes"):
        Batch(generator, row_tokens=64, max_cache_bytes=row_bytes - 1)
    with pytest.raises(OptionError):
        Batch(generator, rows=0)
    with pytest.raises(PromptError, match=f"the model has {POSITIONS}"):
        Batch(generator, row_tokens=POSITIONS + 1)


def test_what_a_batch_does_not_do_is_refused(generator):
    batch = Batch(generator, rows=2, row_tokens=10)
    with pytest.raises(
        PromptError, match="8 tokens of prompt and 3 new ones are 11, a row of this batch has 10"
    ):
        batch.submit(PROMPTS[4], SamplingOptions(max_new_tokens=3))
    with pytest.raises(OptionError, match="num_beams is 2"):
        batch.submit(PROMPTS[0], SamplingOptions(max_new_tokens=3, num_beams=2))
    with pytest.raises(OptionError, match="2 options for 7 prompts"):
        generator.generate_batch(PROMPTS, OPTIONS[:2])
    request = batch.submit(PROMPTS[0], SamplingOptions(max_new_tokens=3))
    with pytest.raises(OptionError, match="not done yet"):
        request.result()
    assert generator.generate_batch([]) == []


def test_an_end_of_sequence_token_ends_its_row_alone(generator, alone):
    whole = alone[6].tokens
    eos = whole[5]
    manifest = replace(
        generator.manifest, tokens=Tokens(bos_token_id=1, eos_token_ids=(eos,), pad_token_id=None)
    )
    ending = llama_runtime.Generator(llama_runtime.Session(generator.session._inference, manifest), None)
    single = [ending.generate(prompt, options) for prompt, options in zip(PROMPTS, OPTIONS, strict=True)]
    results = ending.generate_batch(PROMPTS, OPTIONS, rows=4)
    assert tokens(results) == tokens(single) and results[6].finish_reason == "eos"
    assert results[6].tokens == whole[: whole.index(eos) + 1]


def test_other_threads_may_submit_and_cancel(generator, alone):
    batch = Batch(generator, rows=3, row_tokens=64)
    requests, cancelled, stop = {}, [], threading.Event()

    def client(number):
        for turn in range(6):
            i = (number + turn) % len(PROMPTS)
            requests[number, turn] = i, batch.submit(PROMPTS[i], OPTIONS[i])
            if turn == 3:
                cancelled.append((number, turn))
                requests[number, turn][1].cancel()

    def serve():
        while not (stop.is_set() and batch.idle):
            batch.step()

    server = threading.Thread(target=serve)
    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    server.start()
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    server.join()
    assert len(requests) == 24
    for key, (i, request) in requests.items():
        if key not in cancelled:
            assert request.generation.tokens == alone[i].tokens
        else:
            assert request.done


def test_threads_share_a_generator_with_options_of_their_own(generator, alone):
    """Several threads, one session, sampled, penalised and greedy texts at once."""
    results = {}

    def work(i):
        results[i] = [generator.generate(PROMPTS[i], OPTIONS[i]).tokens for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [generation.tokens] * 3 for i, generation in enumerate(alone)}


def test_a_cache_in_two_threads_is_refused(generator):
    cache = generator.session.new_cache(capacity=8)
    with cache.in_use(), pytest.raises(SessionError, match="in use by another thread") as caught:
        generator.session.prefill(np.array([[1]]), cache)
    assert "a cache of its own" in caught.value.hint
    generator.session.prefill(np.array([[1]]), cache)


def test_lengths_that_cannot_be_are_refused(generator):
    cache = generator.session.new_cache(capacity=8, rows=2)
    generator.session.prefill(np.ones((2, 3), np.int64), cache)
    new = np.array([1, 2])
    for lengths, message in (
        ([3], "one a row"),
        ([2, 2], "the longest needs 3"),
        ([3, -1], "lengths are -1 to 3"),
    ):
        with pytest.raises(PromptError, match=message):
            generator.session.decode(new, cache, np.array(lengths))
    with pytest.raises(PromptError, match="one a row"):
        generator.session.decode(new, cache, np.array([3, 3], np.int32))
    assert cache.length == 3
