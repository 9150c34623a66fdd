"""Prefill and decode against NumPy, in place and growing, on graphs that only know the contract."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
from toy_bundle import POSITIONS, V, toy_logits, toy_weights, write_toy_bundle

from llama_runtime.cores import available_cores
from llama_runtime.errors import MissingExtraError, OptionError, PromptError, SessionError
from llama_runtime.manifest import TensorSpec
from llama_runtime.opening import open_session

PATHS = ["flash", "sdpa"]
TOLERANCE = 2e-5  # Absolute, on logits of about 10; measured 3e-6.
IDS = np.random.default_rng(0).integers(0, V, 40)


@pytest.fixture(scope="module")
def expected():
    return toy_logits(toy_weights(), IDS.tolist())  # [T, V]


@pytest.fixture(scope="module", params=PATHS)
def session(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    return open_session(folder, write_toy_bundle(folder, request.param), threads=2)


def test_prefill_gives_the_logits_of_the_last_or_of_all_positions(session, expected):
    cache = session.new_cache(capacity=40)
    last = session.prefill(IDS[None], cache)
    assert last.shape == (1, V) and last.dtype == np.float32 and cache.length == 40
    np.testing.assert_allclose(last[0], expected[-1], atol=TOLERANCE)
    every = session.prefill(IDS[None], session.new_cache(capacity=64), all_logits=True)
    np.testing.assert_allclose(every, expected[None], atol=TOLERANCE)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 39, 40, 41])
def test_chunked_prefill_is_prefill(session, expected, chunk_tokens):
    cache = session.new_cache(capacity=50)
    every = session.prefill(IDS[None], cache, all_logits=True, chunk_tokens=chunk_tokens)
    np.testing.assert_allclose(every, expected[None], atol=TOLERANCE)
    last = session.prefill(IDS[None], session.new_cache(capacity=50), chunk_tokens=chunk_tokens)
    np.testing.assert_allclose(last[0], expected[-1], atol=TOLERANCE)


def test_decode_is_prefill(session, expected):
    cache = session.new_cache(capacity=40)
    logits = [session.prefill(IDS[None, :9], cache)]
    logits += [session.decode(IDS[t : t + 1], cache) for t in range(9, 40)]
    np.testing.assert_allclose(np.concatenate(logits), expected[8:], atol=TOLERANCE)


def test_prefill_may_follow_decode(session, expected):
    cache = session.new_cache(capacity=40)
    session.prefill(IDS[None, :5], cache)
    session.decode(IDS[5:6], cache)
    logits = session.prefill(IDS[None, 6:], cache, all_logits=True, chunk_tokens=10)
    np.testing.assert_allclose(logits[0], expected[6:], atol=TOLERANCE)


def test_what_was_returned_is_not_overwritten_by_the_next_token(session):
    cache = session.new_cache(capacity=40)
    session.prefill(IDS[None, :5], cache)
    first = session.decode(IDS[5:6], cache)
    kept = first.copy()
    session.decode(IDS[6:7], cache)
    assert (first == kept).all()


def test_rows_that_advance_together_equal_single_rows(session):
    prompts = np.random.default_rng(1).integers(0, V, (3, 20))
    cache = session.new_cache(rows=3, capacity=30)
    batch = [session.prefill(prompts[:, :15], cache, chunk_tokens=6)]
    batch += [session.decode(prompts[:, t], cache) for t in range(15, 20)]
    for row in range(3):
        wanted = toy_logits(toy_weights(), prompts[row].tolist())[14:]
        np.testing.assert_allclose(np.stack(batch)[:, row], wanted, atol=TOLERANCE)


def test_rows_with_all_logits(session):
    prompts = np.random.default_rng(2).integers(0, V, (2, 8))
    logits = session.prefill(prompts, session.new_cache(rows=2, capacity=8), all_logits=True)
    for row in range(2):
        np.testing.assert_allclose(
            logits[row], toy_logits(toy_weights(), prompts[row].tolist()), atol=TOLERANCE
        )


def test_conversations_in_turns_do_not_mix(session, expected):
    first, second = session.new_cache(capacity=40), session.new_cache(capacity=60)
    session.prefill(IDS[None, :20], first)
    session.prefill(IDS[None, ::-1].copy(), second)
    for t in range(20, 40):
        session.decode(IDS[:1], second)
        logits = session.decode(IDS[t : t + 1], first)
    np.testing.assert_allclose(logits[0], expected[-1], atol=TOLERANCE)


def test_threads_may_share_a_session(session, expected):
    results = {}

    def work(number):
        cache = session.new_cache(capacity=40)
        session.prefill(IDS[None, : 10 + number], cache)
        for t in range(10 + number, 40):
            results[number] = session.decode(IDS[t : t + 1], cache)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in range(4):
        np.testing.assert_allclose(results[number][0], expected[-1], atol=TOLERANCE)


def test_the_raw_graph_runs_with_every_input(session, expected):
    past = {spec.name: np.zeros((1, 2, 0, 16), np.float32) for spec in session.manifest.inputs[3:]}
    feeds = {"input_ids": IDS[None], "attention_mask": np.ones((1, 40), np.int64)}
    outputs = session.run(feeds | past | {"position_ids": np.arange(40)[None]})
    np.testing.assert_allclose(outputs["logits"], expected[None], atol=TOLERANCE)
    with pytest.raises(SessionError):
        session.run(feeds)


def test_tokens_that_do_not_fit_are_refused_and_change_nothing(session, expected):
    cache = session.new_cache(capacity=10)
    session.prefill(IDS[None, :8], cache)
    with pytest.raises(PromptError, match="3 more tokens after 8, the cache has room for 10"):
        session.prefill(IDS[None, 8:11], cache)
    for bad, shown in ((V, V), (-1, -1)):
        with pytest.raises(PromptError, match=f"token id {shown}, the vocabulary is 0 to {V - 1}"):
            session.decode(np.array([bad]), cache)
    with pytest.raises(PromptError, match="no tokens"):
        session.prefill(np.zeros((1, 0), np.int64), cache)
    for wrong in (IDS[:3], IDS[None, :3].astype(np.int32), IDS[:4].reshape(2, 2)):
        with pytest.raises(PromptError, match="tokens are"):
            session.prefill(wrong, cache)
    assert cache.length == 8
    np.testing.assert_allclose(session.decode(IDS[8:9], cache)[0], expected[8], atol=TOLERANCE)


def test_an_output_that_the_bundle_lacks_is_refused_by_name(session):
    cache = session.new_cache(capacity=4)
    for read in (session.prefill, session.decode):
        with pytest.raises(OptionError, match="'last_hidden_state', the bundle has none") as caught:
            read(IDS[:1], cache, outputs=["last_hidden_state"])
        assert "--hidden-states" in caught.value.hint
    assert cache.length == 0


def test_embeddings_are_refused_where_ids_are_taken(session):
    with pytest.raises(OptionError, match="takes token ids, not embeddings"):
        session.embed_tokens(IDS[None])
    with pytest.raises(PromptError, match=r"tokens are float32 \[1, 3, 48\], needs int64 of 2 axes"):
        session.prefill(np.zeros((1, 3, 48), np.float32), session.new_cache(capacity=4))


def test_a_failed_run_leaves_the_cache_as_it_was(session, expected, monkeypatch):
    cache = session.new_cache(capacity=40)
    session.prefill(IDS[None, :10], cache)
    runs = []

    class Failing:
        def __init__(self, inference):
            self._inference = inference
            self.io_binding = inference.io_binding

        def run_with_iobinding(self, binding):
            runs.append(binding)
            if len(runs) == 3:
                raise RuntimeError("no memory\nat some line")
            self._inference.run_with_iobinding(binding)

    with monkeypatch.context() as patch:
        patch.setattr(session, "_inference", Failing(session._inference))
        with pytest.raises(SessionError, match=r"cannot run the graph: no memory$"):
            session.prefill(IDS[None, 10:], cache, chunk_tokens=7)
    assert cache.length == 10
    np.testing.assert_allclose(session.prefill(IDS[None, 10:], cache)[0], expected[-1], atol=TOLERANCE)


def test_a_cache_has_the_models_limits(session):
    with pytest.raises(PromptError, match=f"the model has {POSITIONS}"):
        session.new_cache(capacity=POSITIONS + 1)
    with pytest.raises(OptionError):
        session.new_cache(capacity=0)
    with pytest.raises(OptionError):
        session.new_cache(capacity=4, rows=0)


def test_in_place_means_that_the_buffers_stay(tmp_path):
    session = open_session(tmp_path / "b", write_toy_bundle(tmp_path / "b", "flash"))
    cache = session.new_cache(capacity=20)
    tensors = list(cache.tensors)
    session.prefill(IDS[None, :5], cache)
    step = None
    for t in range(5, 10):
        session.decode(IDS[t : t + 1], cache)
        step = step or cache.step
        assert cache.step is step
    assert all(now is before for now, before in zip(cache.tensors, tensors, strict=True))
    assert all(tensor[:, :, :10].any(axis=-1).all() and not tensor[:, :, 10:].any() for tensor in tensors)


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("weights", ["link", "copy", "beside"])
def test_external_weights_are_found_where_the_manifest_says(tmp_path, expected, attention, weights):
    external = "." if weights == "beside" else "onnx"
    manifest = write_toy_bundle(tmp_path / "b", attention, external=external, weights=weights)
    assert (tmp_path / "b" / external / "weights.bin").is_file()
    session = open_session(tmp_path / "b", manifest)
    logits = session.prefill(IDS[None], session.new_cache(capacity=40))
    np.testing.assert_allclose(logits[0], expected[-1], atol=TOLERANCE)


def test_weights_may_stay_in_the_graph_unfolded(tmp_path, expected):
    manifest = write_toy_bundle(tmp_path / "b", "sdpa")
    session = open_session(tmp_path / "b", manifest, widen_at_load=False)
    logits = session.prefill(IDS[None], session.new_cache(capacity=40))
    np.testing.assert_allclose(logits[0], expected[-1], atol=TOLERANCE)


def test_a_graph_that_is_not_the_manifests_is_refused(tmp_path):
    folder = tmp_path / "b"
    manifest = write_toy_bundle(folder, "flash")
    extra = TensorSpec("token_type_ids", "int64", ("batch_size",))
    for changed, name in (
        (replace(manifest, inputs=(*manifest.inputs, extra)), "token_type_ids"),
        (replace(manifest, inputs=manifest.inputs[1:]), "input_ids"),
        (replace(manifest, cache=replace(manifest.cache, key_name="past.{i}.key")), r"past\.0\.key"),
        (replace(manifest, cache=replace(manifest.cache, num_hidden_layers=3)), r"past_key_values\.2\.key"),
        (replace(manifest, cache=replace(manifest.cache, present_key_name="p.{i}")), r"p\.0"),
        (replace(manifest, optional_inputs=(extra,)), "token_type_ids"),
    ):
        with pytest.raises(SessionError, match=name):
            open_session(folder, changed)


def test_a_graph_that_cannot_be_loaded_is_one_sentence(tmp_path):
    manifest = write_toy_bundle(tmp_path / "b", "flash")
    model = onnx.load(tmp_path / "b/onnx/model.onnx")
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "b/onnx/model.onnx")
    with pytest.raises(SessionError, match=r"cannot load it.*NoSuchOperator") as caught:
        open_session(tmp_path / "b", manifest)
    assert "\n" not in caught.value.message
    (tmp_path / "b/onnx/model.onnx").write_bytes(b"not a graph")
    with pytest.raises(SessionError, match="cannot load it"):
        open_session(tmp_path / "b", manifest)


def test_a_missing_onnxruntime_names_the_extra(tmp_path, monkeypatch):
    manifest = write_toy_bundle(tmp_path / "b", "flash")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="onnxruntime is not installed") as caught:
        open_session(tmp_path / "b", manifest)
    assert caught.value.hint == "pip install 'llama-export[cpu]'"


def test_threads(tmp_path):
    assert available_cores() >= 1
    with pytest.raises(OptionError, match="threads is 0"):
        open_session(tmp_path, write_toy_bundle(tmp_path / "b", "flash"), threads=0)
