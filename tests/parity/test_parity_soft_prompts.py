"""Learned prompts against PEFT's own model: logits, tokens, batches, beams, chats; and every refusal."""

from __future__ import annotations

import json
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner
from graph_faults import sees_the_whole_chunk, upper_left_mask
from parity_cases import difference
from peft_adapters import write_adapter, write_soft_prompt
from safetensors.numpy import load_file, save_file
from talking_checkpoint import CONFIG, write_talking_checkpoint
from tiny_checkpoints import VARIANTS, transformers_model, write_checkpoint

import llama_runtime
from llama_export import inspect, pipeline
from llama_export.checkpoint import open_merged
from llama_export.cli import main
from llama_export.errors import CheckpointError, ConfigError, OptionError
from llama_export.model import ATTENTION_PATHS
from llama_export.parity import verify, verify_bundle
from llama_export.recipe import Recipe
from llama_runtime.errors import ManifestError, PromptError
from llama_runtime.opening import open_session
from llama_runtime.options import SamplingOptions
from llama_runtime.prefix_cache import PrefixCache

P = 5
KEYS = {"token_dim": CONFIG.num_key_value_heads * CONFIG.head_dim, "num_attention_heads": 2}
KINDS = {
    "prompt tuning": {},
    "prefix tuning": KEYS,
    "projected prefix": KEYS | {"prefix_projection": True, "encoder_hidden_size": 12},
}
IDS = np.random.default_rng(0).integers(3, 300, (3, 21))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "base"
    write_talking_checkpoint(folder, "float32")
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    return folder


@pytest.fixture(scope="module")
def adapter_of(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            kind: write_soft_prompt(base, root / kind, num_virtual_tokens=P, **choices)
            for kind, choices in KINDS.items()
        }


@pytest.fixture(scope="module", params=[(k, p) for k in KINDS for p in ATTENTION_PATHS], ids="-".join)
def made(request, base, adapter_of, tmp_path_factory):
    kind, path = request.param
    output = tmp_path_factory.mktemp("bundles") / "bundle"
    result = pipeline.export(base, output, recipe=Recipe(path, adapters=(adapter_of[kind],)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = peft.PeftModel.from_pretrained(transformers_model(base), adapter_of[kind]).eval()
    session = open_session(output, result.manifest, threads=1)
    return SimpleNamespace(
        result=result, oracle=oracle, session=session, output=output, adapter=adapter_of[kind]
    )


@pytest.fixture(scope="module")
def generator(made):
    return llama_runtime.load(made.output, threads=1)


def peft_s(made, ids):
    """[B, T, V] logits behind the learned prompt, which has none."""
    with torch.no_grad():
        logits = made.oracle(
            torch.from_numpy(ids), attention_mask=torch.ones(ids.shape, dtype=torch.int64)
        ).logits
    return logits[:, -ids.shape[1] :].numpy()


def greedy(made, ids, n, **choices):
    ids = torch.tensor([ids])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = made.oracle.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            **choices,
        )
    return found[0, ids.shape[1] :].tolist()


def test_logits_are_peft_s_and_not_the_base_s(made, base):
    want = peft_s(made, IDS)
    cache = made.session.new_cache(capacity=IDS.shape[1], rows=len(IDS))
    assert difference(made.session.prefill(IDS, cache, all_logits=True, chunk_tokens=8), want) <= 1e-4
    with torch.no_grad():
        assert difference(transformers_model(base)(torch.from_numpy(IDS)).logits.numpy(), want) > 1e-2
    cache = made.session.new_cache(capacity=IDS.shape[1], rows=len(IDS))
    made.session.prefill(IDS[:, :9], cache)
    for t in range(9, IDS.shape[1]):
        assert difference(made.session.decode(IDS[:, t], cache), want[:, t]) <= 1e-4


def test_generated_tokens_are_peft_s(made, generator):
    for row, n in enumerate((3, 8, 21)):
        prompt = IDS[row, :n].tolist()
        options = SamplingOptions(max_new_tokens=24, ignore_eos=True)
        want = greedy(made, prompt, 24)
        assert list(generator.generate(prompt, options).tokens) == want


def test_a_batch_of_unequal_rows_says_what_each_says_alone(made, generator):
    prompts = [IDS[i % 3, : 2 + 3 * i].tolist() for i in range(6)]
    options = [SamplingOptions(max_new_tokens=4 + 3 * (i % 4), ignore_eos=True) for i in range(6)]
    # Three rows for six prompts: rows leave, move and are used again.
    found = generator.generate_batch(prompts, options, rows=3)
    for prompt, option, generation in zip(prompts, options, found, strict=True):
        assert list(generation.tokens) == greedy(made, prompt, option.max_new_tokens)


def test_beams_stand_on_the_learned_prompt(made, generator):
    options = SamplingOptions(max_new_tokens=7, num_beams=3, ignore_eos=True)
    prompt = IDS[0, :6].tolist()
    found = generator.generate(prompt, options).tokens
    cache = made.session.new_cache(capacity=13)
    whole = np.array([prompt + list(found)], np.int64)
    logits = made.session.prefill(whole, cache, all_logits=True)[0]
    assert difference(logits, peft_s(made, whole)[0]) <= 1e-4
    logprobs = torch.from_numpy(peft_s(made, whole)[0]).log_softmax(-1).numpy()
    score = sum(logprobs[5 + i, token] for i, token in enumerate(found)) / len(found)
    assert generator.generate(prompt, options).score == pytest.approx(score, abs=1e-4)


def test_a_chat_keeps_it_through_turns_and_files(made, generator, tmp_path):
    cache = PrefixCache(made.session)
    for n in (6, 15, 9, 21):  # longer, shorter: cut back and read on, with room made anew
        logits = cache.prefill(IDS[0, :n].tolist(), 1)
        assert difference(logits[0], peft_s(made, IDS[:1, :n])[0, -1]) <= 1e-4
    copy = PrefixCache(made.session)
    copy.write(cache.tokens, cache.read())
    logits = copy.prefill([*IDS[0].tolist(), 7], 1)
    assert copy.reused_tokens == 21
    longer = np.append(IDS[:1], [[7]], axis=1)
    assert difference(logits[0], peft_s(made, longer)[0, -1]) <= 1e-4


def test_a_chat_that_no_longer_fits_says_what_peft_says(made, generator, tmp_path):
    """Turn upon turn on one cache, the oldest dropped, saved and restored on the way."""
    chat = llama_runtime.Conversation(generator, overflow="drop_oldest")
    options = SamplingOptions(max_new_tokens=7, ignore_eos=True)
    dropped = []
    for turn in range(12):
        if turn == 9:
            chat.save(tmp_path / "chat")
            chat = llama_runtime.Conversation(generator, overflow="drop_oldest")
            chat.restore(tmp_path / "chat")
        done = chat.send(f"a small red fox by the sea {turn}", options)
        assert len(done.prompt_tokens) + 7 <= CONFIG.context_length - P
        assert list(done.tokens) == greedy(made, list(done.prompt_tokens), 7)
        dropped.append(chat.dropped_messages)
    assert dropped[0] == 0
    assert dropped[8] > 0
    assert dropped[-1] > dropped[8]


def test_the_bundle_says_what_it_has(made, base):
    manifest = made.result.manifest
    assert manifest.soft_prompt.positions == P
    assert manifest.limits.max_position_embeddings == CONFIG.context_length - P
    assert manifest.soft_prompt.path in {entry.path for entry in manifest.files}
    assert "adapters/0/adapter_model.safetensors" in {entry.path for entry in manifest.source}
    # Other runtimes would leave the prompt out without a word: genai finds nothing to open.
    assert not (made.output / "genai_config.json").exists()
    assert any("5 learned positions stand in front" in note for note in made.result.notes)
    assert inspect(made.output)["soft_prompt"] == {"path": "soft_prompt.safetensors", "positions": P}
    report = made.result.report
    assert report.passed
    rungs = {rung.name: rung for rung in report.rungs}
    assert rungs["learned prompt"].measured <= 1e-5
    assert f"{CONFIG.context_length - P} tokens" in rungs["whole context"].detail
    found = llama_runtime.selftest(made.output, threads=1)
    assert found.ok
    assert found.answers == 2
    assert verify(made.output, base, adapters=[made.adapter]).passed
    with pytest.raises(OptionError, match="has a learned prompt, no adapter brings one"):
        verify(made.output, base)
    with pytest.raises(PromptError, match=f"{CONFIG.context_length - P + 1} positions, the model has"):
        made.session.new_cache(capacity=CONFIG.context_length - P + 1)


def test_verification_finds_a_prompt_that_was_changed(base, adapter_of, tmp_path):
    recipe = Recipe("sdpa", adapters=(adapter_of["prefix tuning"],), verify=False)
    made = pipeline.export(base, tmp_path / "out", recipe=recipe)
    file = made.output / "soft_prompt.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"3": tensors["3"] + np.float32(0.01)}, file)
    checkpoint = open_merged(base, recipe.adapters)
    report = verify_bundle(made.output, checkpoint, quick=True)
    assert report.first_failure().startswith("learned prompt")
    save_file({name: array[:, 1:] for name, array in tensors.items()}, file)
    with pytest.raises(ManifestError, match=r"tensor 0 is float32 \[2, 4, 16\], needs finite float32 \[2, 5"):
        open_session(made.output, made.manifest)


@pytest.mark.parametrize("fault", [upper_left_mask, sees_the_whole_chunk])
def test_a_fault_that_only_a_past_shows_is_blamed_on_the_layer(
    base, adapter_of, tmp_path, monkeypatch, graph_of, fault
):
    """Behind a learned prompt even the first run of a graph has a past."""

    def build(config, path, extras):
        model = graph_of(config, path, extras)
        fault(model, path)
        return model

    monkeypatch.setattr(pipeline, "build_graph", build)
    recipe = Recipe("sdpa", adapters=(adapter_of["prefix tuning"],), verify=False)
    made = pipeline.export(base, tmp_path / "out", recipe=recipe)
    report = verify_bundle(made.output, open_merged(base, recipe.adapters))
    assert report.first_failure().startswith("attention: measured ")
    assert report.blame.tensor == "model.layers.0.self_attn.o_proj input"


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_it_stands_in_front_of_rounded_weights_and_merged_ones(base, adapter_of, tmp_path, precision):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = write_adapter(base, tmp_path / "lora", target_modules=["q_proj", "k_proj", "down_proj"])
    recipe = Recipe(weights="copy", precision=precision, adapters=(lora, adapter_of["prompt tuning"]))
    assert pipeline.export(base, tmp_path / "rounded", recipe=recipe).report.passed
    made = pipeline.export(base, tmp_path / "out", recipe=Recipe("sdpa", adapters=recipe.adapters))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(transformers_model(base), lora).merge_and_unload()
        oracle = peft.PeftModel.from_pretrained(merged, adapter_of["prompt tuning"]).eval()
    session = open_session(made.output, made.manifest, threads=1)
    got = session.prefill(IDS, session.new_cache(capacity=21, rows=3), all_logits=True)
    assert difference(got, peft_s(SimpleNamespace(oracle=oracle), IDS)) <= 1e-4
    with pytest.raises(OptionError, match="comes behind a learned prompt, which must be the last"):
        open_merged(base, recipe.adapters[::-1])


def edited(adapter, folder, config=None, weights=None):
    shutil.copytree(adapter, folder)
    path, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    if weights is not None:
        save_file(weights(load_file(file)), file)
    return folder


FAULTS = {
    "another task": ({"task_type": "SEQ_CLS"}, None, 'task_type is "SEQ_CLS"'),
    "an encoder": ({"num_transformer_submodules": 2}, None, "num_transformer_submodules is 2"),
    "no number": ({"num_virtual_tokens": None}, None, "num_virtual_tokens is missing"),
    "another number": ({"num_virtual_tokens": 6}, None, r"is \[5, 42\], .* need \[6, 42\]"),
    "a whole module": ({"modules_to_save": ["lm_head"]}, None, "modules_to_save"),
    "unknown feature": ({"use_magic": True}, None, "use_magic is true"),
    "P-tuning": ({"peft_type": "P_TUNING"}, None, 'peft_type is "P_TUNING"'),
    "the other kind": ({"peft_type": "PREFIX_TUNING"}, None, r"is \[5, 42\], .* need \[5, 128\]"),
    "no tensor": ({}, lambda t: {"x": t["prompt_embeddings"]}, "x belongs to no learned prompt"),
}


@pytest.mark.parametrize(("config", "weights", "words"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_prompt_for_this_base_is_refused(base, adapter_of, tmp_path, config, weights, words):
    bad = edited(adapter_of["prompt tuning"], tmp_path / "bad", config, weights)
    with pytest.raises((CheckpointError, ConfigError), match=words) as error:
        open_merged(base, [bad])
    assert error.value.hint


def test_a_prompt_that_diverged_leaves_nothing_behind(base, adapter_of, tmp_path):
    def broken(tensors):
        tensors["prompt_embeddings"][2, 3] = np.nan
        return tensors

    bad = edited(adapter_of["prompt tuning"], tmp_path / "bad", weights=broken)
    result = CliRunner().invoke(main, ["onnx", str(base), str(tmp_path / "out"), "--adapter", str(bad)])
    assert result.exit_code == 2
    assert "prompt_embeddings holds NaN" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"bad"}


def test_where_it_cannot_stand_is_said(base, adapter_of, tmp_path):
    prompt = adapter_of["prompt tuning"]
    with pytest.raises(OptionError, match="the task is feature-extraction"):
        open_merged(base, [prompt], "feature-extraction")
    stretched = write_checkpoint(tmp_path / "dynamic", VARIANTS["dynamic"])
    with pytest.raises(OptionError, match="dynamic rotary embedding"):
        open_merged(stretched, [prompt])
    for more in (["--weights", "beside"], ["--hidden-states", "last"]):
        arguments = ["onnx", str(base), *([str(tmp_path / "out")] if more[0] != "--weights" else [])]
        result = CliRunner().invoke(main, [*arguments, "--adapter", str(prompt), *more])
        assert result.exit_code == 2
        assert "learned prompt" in result.stderr
    arguments = ["convert", str(base), str(tmp_path / "out"), "--adapter", str(prompt)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "is a learned prompt, which is no part of any weight" in result.stderr
    assert not (tmp_path / "out").exists()
