"""Hidden states, attention weights and embeddings as input, on every path, against transformers."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from parity_cases import PATHS, difference
from tiny_checkpoints import CONFIGS, VARIANTS, transformers_model, write_checkpoint

import llama_export
import llama_runtime
from llama_export import pipeline
from llama_export.errors import ParityError
from llama_export.graph.contract import Extras
from llama_export.parity.prompts import random_tokens
from llama_export.recipe import Recipe
from llama_runtime.opening import open_session

LIMIT = 1e-4
EMBEDS = {"inputs_embeds": True}
EVERYTHING = {"hidden_states": "all", "attentions": True, **EMBEDS}
CASES = {
    **{f"{name}-{path}": (name, Recipe(path, hidden_states="all")) for name in CONFIGS for path in PATHS},
    **{f"gqa-{path}-embeds": ("gqa", Recipe(path, hidden_states="last", **EMBEDS)) for path in PATHS},
    "tied-embeds-half": ("mha_tied", Recipe("sdpa", "copy", "float16", hidden_states="all", **EMBEDS)),
    "gqa-everything": ("gqa", Recipe("eager", **EVERYTHING)),
    "tied-everything": ("mha_tied", Recipe("eager", "copy", "bfloat16", **EVERYTHING)),
    "mqa-attentions": ("mqa_llama3", Recipe("eager", attentions=True)),
    "dynamic-everything": ("dynamic", Recipe("eager", **EVERYTHING)),
    "longrope-embeds": ("longrope", Recipe("flash", hidden_states="all", **EMBEDS)),
}


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    written = {}

    def checkpoint(name):
        if name not in written:
            config = (CONFIGS | VARIANTS)[name]
            written[name] = write_checkpoint(tmp_path_factory.mktemp("extras") / name, config)
        return written[name]

    return checkpoint


@pytest.fixture(scope="module", params=CASES)
def made(request, checkpoint_of, tmp_path_factory):
    name, recipe = CASES[request.param]
    checkpoint, output = checkpoint_of(name), tmp_path_factory.mktemp("bundles") / "bundle"
    result = pipeline.export(checkpoint, output, recipe=recipe)
    return SimpleNamespace(
        recipe=recipe,
        result=result,
        output=output,
        config=(CONFIGS | VARIANTS)[name],
        session=open_session(output, result.manifest, threads=1),
        oracle=transformers_model(checkpoint, recipe.precision or "float32"),
    )


def expected(oracle, **feeds):
    """Transformers' logits, hidden states and attentions, by our names."""
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        found = oracle(**tensors, output_hidden_states=True, output_attentions=True)
    named = {f"hidden_states.{i}": states.numpy() for i, states in enumerate(found.hidden_states)}
    named |= {f"attentions.{i}": weights.numpy() for i, weights in enumerate(found.attentions)}
    return named | {"logits": found.logits.numpy(), "last_hidden_state": found.hidden_states[-1].numpy()}


def wanted_names(made):
    names = made.result.manifest.outputs
    return [spec.name for spec in names if spec.name != "logits" and not spec.name.startswith("present")]


def tokens(made, *shape):
    return np.random.default_rng(3).integers(0, made.config.vocab_size, shape)


def test_the_names_are_transformers_own(made):
    layers, names = made.config.num_hidden_layers, []
    if made.recipe.hidden_states == "last":
        names = ["last_hidden_state"]
    if made.recipe.hidden_states == "all":
        names = [f"hidden_states.{i}" for i in range(layers + 1)]
    if made.recipe.attentions:
        names += [f"attentions.{i}" for i in range(layers)]
    assert wanted_names(made) == names
    inputs = [spec.name for spec in made.result.manifest.inputs]
    assert ("inputs_embeds" in inputs) == made.recipe.inputs_embeds == ("input_ids" not in inputs)


def test_the_ladder_measured_them(made):
    measured = {rung.name for rung in made.result.report.rungs if rung.measured is not None}
    assert made.result.report.passed
    assert ("hidden states" in measured) == (made.recipe.hidden_states is not None)
    assert ("attentions" in measured) == made.recipe.attentions
    rounded = made.recipe.precision is not None
    assert ("cosine" in measured) == (rounded and made.recipe.hidden_states is not None)


def test_the_cosine_is_that_of_transformers(made, checkpoint_of):
    (rung,) = [r for r in made.result.report.rungs if r.name == "cosine"] or [None]
    if rung is None or rung.measured is None:
        return
    unrounded = transformers_model(checkpoint_of("mha_tied"))
    ids = np.array([random_tokens(made.config, 128)])
    got = expected(made.oracle, input_ids=ids)["last_hidden_state"][0].astype(np.float64)
    want = expected(unrounded, input_ids=ids)["last_hidden_state"][0].astype(np.float64)
    pairs = [(got.mean(axis=0), want.mean(axis=0)), (got[-1], want[-1])]
    angles = [1 - g @ w / (np.linalg.norm(g) * np.linalg.norm(w)) for g, w in pairs]
    assert rung.measured == pytest.approx(max(angles), rel=0.02, abs=1e-9)


@pytest.mark.parametrize("chunk_tokens", [512, 7])
def test_prefill_gives_what_transformers_gives(made, chunk_tokens):
    ids = tokens(made, 2, 23)
    want, names = expected(made.oracle, input_ids=ids), wanted_names(made)
    cache = made.session.new_cache(capacity=23, rows=2)
    found = made.session.prefill(ids, cache, all_logits=True, chunk_tokens=chunk_tokens, outputs=names)
    assert list(found) == ["logits", *names]
    for name, got in found.items():
        assert got.dtype == np.float32
        assert difference(got, want[name]) <= LIMIT, name


def test_decode_gives_what_transformers_gives(made):
    ids = tokens(made, 2, 19)
    want, names = expected(made.oracle, input_ids=ids), wanted_names(made)
    cache = made.session.new_cache(capacity=24, rows=2)
    made.session.prefill(ids[:, :12], cache, text_tokens=19)
    for place in range(12, 19):
        found = made.session.decode(ids[:, place], cache, outputs=names)
        assert difference(found.pop("logits"), want["logits"][:, place]) <= LIMIT
        for name, got in found.items():
            mine = want[name][..., place : place + 1, : place + 1 if "attentions" in name else None]
            assert difference(got, mine) <= LIMIT, name


def test_what_is_not_asked_for_changes_nothing(made):
    ids = tokens(made, 1, 9)
    plain = made.session.prefill(ids, made.session.new_cache(capacity=9))
    asked = made.session.prefill(ids, made.session.new_cache(capacity=9), outputs=wanted_names(made))
    assert (plain == asked["logits"]).all()
    cache = made.session.new_cache(capacity=12)
    made.session.prefill(ids, cache)
    first = made.session.decode(ids[:, 0], cache, outputs=wanted_names(made))
    kept = {name: array.copy() for name, array in first.items()}
    made.session.decode(ids[:, 1], cache, outputs=wanted_names(made))
    assert all((first[name] == kept[name]).all() for name in first)


def test_embeddings_do_for_token_ids(made):
    ids = tokens(made, 2, 11)
    if not made.recipe.inputs_embeds:
        with pytest.raises(llama_runtime.OptionError, match="takes token ids"):
            made.session.embed_tokens(ids)
        return
    embedded = made.session.embed_tokens(ids)
    table = made.oracle.get_input_embeddings().weight.detach().numpy()
    assert (embedded == table[ids]).all()
    # Not the embedding of any token: what another encoder would put in front.
    mixed = np.concatenate((0.5 * embedded[:, ::-1], embedded), axis=1).astype(np.float32)
    want = expected(made.oracle, inputs_embeds=mixed)
    cache = made.session.new_cache(capacity=30, rows=2)
    found = made.session.prefill(
        mixed[:, :-1], cache, all_logits=True, text_tokens=22, outputs=wanted_names(made)
    )
    assert difference(found["logits"], want["logits"][:, :-1]) <= LIMIT
    last = made.session.decode(mixed[:, -1], cache)
    assert difference(last, want["logits"][:, -1]) <= LIMIT


def test_embeddings_that_cannot_be_read_are_refused(made):
    width, cache = made.config.hidden_size, made.session.new_cache(capacity=4)
    if not made.recipe.inputs_embeds:
        return
    for wrong in (
        np.zeros((1, 2, width - 1), np.float32),
        np.zeros((1, 2, width)),
        np.zeros((1, width), "f"),
    ):
        with pytest.raises(llama_runtime.PromptError, match=f"or float32 of one axis more, the last {width}"):
            made.session.prefill(wrong, cache)
    with pytest.raises(llama_runtime.PromptError, match="NaN or infinite"):
        made.session.decode(np.full((1, width), np.nan, np.float32), cache)
    assert cache.length == 0


def test_it_embeds_and_generates(made):
    ids = tokens(made, 2, 13).tolist()
    ids[1] = ids[1][:5]
    options = llama_runtime.SamplingOptions(max_new_tokens=6)
    text = llama_runtime.load(made.output, threads=1).generate(ids[0], options)
    with torch.no_grad():
        want = made.oracle.generate(
            torch.tensor(ids[:1]), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
    assert list(text.tokens) == want[0, 13:].tolist()
    if made.recipe.hidden_states is None:
        with pytest.raises(llama_runtime.ManifestError, match="text-generation") as caught:
            llama_runtime.load_embedder(made.output)
        assert "--hidden-states last" in caught.value.hint
        return
    vectors = llama_runtime.load_embedder(made.output, threads=1).embed(ids, pooling="last")
    for row, vector in zip(ids, vectors, strict=True):
        states = expected(made.oracle, input_ids=np.array([row]))["last_hidden_state"]
        assert difference(vector, states[0, -1]) <= LIMIT


def test_the_last_hidden_states_are_known_answers_too(made):
    manifest = made.result.manifest
    found = llama_runtime.selftest(made.output, threads=1)
    assert found.ok
    assert found.answers == len(manifest.known_answers) + len(manifest.known_outputs)
    assert len(manifest.known_outputs) == (2 if made.recipe.hidden_states else 0)
    for answer in manifest.known_outputs:
        want = expected(made.oracle, input_ids=np.array([answer.token_ids]))["last_hidden_state"]
        (probe,) = answer.probes
        assert np.abs(want.ravel()[list(probe.indices)] - probe.values).max() <= LIMIT * np.abs(want).max()
        # A number that is another turns the selftest red.
        assert answer.tolerance <= 2 * LIMIT * np.abs(want).max()


def test_a_hidden_state_that_differs_is_named(made, tmp_path):
    if not made.recipe.hidden_states:
        return
    bundle = shutil.copytree(made.output, tmp_path / "bundle")
    facts = json.loads((bundle / "manifest.json").read_text())
    probe = facts["known_outputs"][1]["probes"][0]
    probe["values"][3] += 3 * facts["known_outputs"][1]["tolerance"]
    (bundle / "manifest.json").write_text(json.dumps(facts))
    found = llama_runtime.selftest(bundle, threads=1)
    assert not found.ok
    assert {difference.what for difference in found.differences} == {probe["output"]}
    index = len(facts["known_answers"]) + 1
    assert str(found.differences[0]).startswith(f"answer {index} at index {probe['indices'][3]}: ")


def test_the_graphs_satisfy_the_checker(made):
    for name in filter(None, (made.result.manifest.model.path, made.result.manifest.embed_tokens)):
        model = onnx.load(made.output / name, load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.ClearField("external_data")
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.data_location = onnx.TensorProto.DEFAULT
                tensor.raw_data = bytes(int(np.prod(tensor.dims)) * (4 if tensor.data_type == 1 else 2))
        onnx.checker.check_model(model, full_check=True)


def test_other_runtimes_are_promised_only_what_they_can_open(made):
    names = {path.name for path in made.output.iterdir()}
    assert ("genai_config.json" in names) != made.recipe.inputs_embeds
    assert json.loads((made.output / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("first", "second", "rung"),
    [
        ("hidden_states.1", "hidden_states.2", "hidden states"),
        ("hidden_states.2", "hidden_states.3", "hidden states"),
        ("attentions.0", "attentions.1", "attentions"),
    ],
)
def test_outputs_that_are_exchanged_are_found(
    graph_of, checkpoint_of, tmp_path, monkeypatch, first, second, rung
):
    def exchanged(config, path, extras):
        model = graph_of(config, path, extras)
        values = {value.name: value for value in model.graph.outputs}
        values[first].name, values[second].name = second, first
        return model

    monkeypatch.setattr(pipeline, "build_graph", exchanged)
    recipe = Recipe("eager", **EVERYTHING)
    with pytest.raises(ParityError, match=rf"^{rung}: measured"):
        pipeline.export(checkpoint_of("gqa"), tmp_path / "bundle", recipe=recipe)


def test_beside_brings_the_second_graph_along(checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of("mha_tied"), tmp_path / "model")
    pipeline.export(folder, recipe=Recipe("sdpa", "beside", hidden_states="last", **EMBEDS))
    assert llama_runtime.selftest(folder, threads=1).ok
    assert llama_export.verify(folder, folder).passed


def test_the_default_graph_is_as_it_was(graph_of):
    """Not a name, not a node more where nothing is asked for."""
    plain, asked = graph_of(CONFIGS["gqa"], "flash"), graph_of(CONFIGS["gqa"], "flash", Extras("all"))
    assert [node.name for node in plain.graph if node.name.endswith("Identity")] == []
    assert len(asked.graph) > len(plain.graph)
