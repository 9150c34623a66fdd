"""Merged adapters against PEFT's unmerged ones, and every adapter that must be refused."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from peft_adapters import peft_logits, write_adapter
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CONFIGS, VARIANTS, transformers_model, write_checkpoint

from llama_export.checkpoint import merge_adapter, open_checkpoint
from llama_export.errors import CheckpointError
from llama_export.model import LlamaForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "attention": ("gqa", {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}),
    "all linear": ("gqa", {"target_modules": "all-linear"}),
    "root of the rank": ("gqa", {"r": 7, "target_modules": LINEAR, "use_rslora": True}),
    "ranks and scales by pattern": (
        "gqa",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"down_proj": 2, r"layers\.[02]\..*q_proj": 11, "^model.layers.1.mlp.up_proj": 5},
            "alpha_pattern": {"up_proj": 31, r"model.layers.1.self_attn.k_proj": 1.5},
        },
    ),
    "a regular expression": ("gqa", {"target_modules": r".*\.(0|2)\.(self_attn\.o|mlp\.gate)_proj"}),
    "some layers": ("gqa", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]}),
    "one layer": (
        "gqa",
        {"target_modules": ["mlp.up_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    ),
    "all but some": (
        "gqa",
        {"target_modules": LINEAR, "exclude_modules": ["k_proj", "model.layers.0.mlp.up_proj"]},
    ),
    "fan in fan out": ("gqa", {"target_modules": ["q_proj"], "fan_in_fan_out": True}),
    "DoRA": ("gqa", {"target_modules": LINEAR, "use_dora": True}),
    "DoRA by rank's root": ("gqa", {"target_modules": ATTENTION, "use_dora": True, "use_rslora": True}),
    "head as a whole": (
        "gqa",
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "norms as a whole": (
        "gqa",
        {"target_modules": ["v_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    ),
    "embedding": ("gqa", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding by DoRA": ("gqa", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "tied embedding": ("mha_tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head as a whole": ("mha_tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "all biases": ("yarn", {"target_modules": ["q_proj", "down_proj"], "bias": "all"}),
    "the adapted modules' biases": ("yarn", {"target_modules": ["k_proj", "up_proj"], "bias": "lora_only"}),
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    configs = CONFIGS | VARIANTS
    return {name: write_checkpoint(root / name, configs[name]) for name in ("gqa", "mha_tied", "yarn")}


def merged_model(base, *adapters):
    checkpoint = open_checkpoint(base)
    for adapter in adapters:
        checkpoint = merge_adapter(checkpoint, adapter)
    model = LlamaForCausalLM(checkpoint.config).eval()
    model.load_state_dict({name: tensor.read() for name, tensor in checkpoint.tensors.items()})
    assert tuple(checkpoint.tensors) == tuple(checkpoint.config.tensor_shapes())
    return model


def made(folder, base, **choices):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on tied and transposed layers
        return write_adapter(base, folder, **choices)


def logits_of(base, adapters, ids):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft_logits(base, adapters, ids)


def difference(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(("name", "choices"), ADAPTERS.values(), ids=ADAPTERS)
@torch.no_grad()
def test_merged_equals_unmerged_and_differs_from_the_base(tmp_path, base_of, name, choices):
    base, ids = base_of[name], torch.arange(34).view(2, 17) * 2
    adapter = made(tmp_path / "adapter", base, **choices)
    want = logits_of(base, [adapter], ids)
    assert difference(merged_model(base, adapter)(ids), want) <= 1e-4
    assert difference(transformers_model(base)(ids).logits, want) > 1e-2


@torch.no_grad()
def test_several_adapters_are_merged_in_order(tmp_path, base_of):
    base, ids = base_of["gqa"], torch.arange(17).view(1, 17)
    dora = made(tmp_path / "dora", base, target_modules=LINEAR, use_dora=True)
    plain = made(tmp_path / "plain", base, seed=1, target_modules=LINEAR)
    want = logits_of(base, [plain, dora], ids)
    assert difference(merged_model(base, plain, dora)(ids), want) <= 1e-4
    assert (
        difference(merged_model(base, dora, plain)(ids), want) > 1e-3
    )  # DoRA's lengths make the order matter


@torch.no_grad()
def test_a_narrow_base_is_merged_in_float32(tmp_path):
    base = write_checkpoint(tmp_path / "base", CONFIGS["gqa"], "bfloat16")
    adapter = made(tmp_path / "adapter", base, target_modules=LINEAR)
    checkpoint = merge_adapter(open_checkpoint(base), adapter)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {checkpoint.dtype} == {torch.float32}
    ids = torch.arange(17).view(1, 17)
    assert difference(merged_model(base, adapter)(ids), logits_of(base, [adapter], ids)) <= 1e-4


def test_pieces_are_rows_of_the_whole(tmp_path, base_of, monkeypatch):
    """However small the pieces that a large tensor is computed in."""
    from llama_export.checkpoint import tensor as tensor_module

    adapter = made(tmp_path / "a", base_of["gqa"], target_modules=[*LINEAR, "embed_tokens"], use_dora=True)
    tensors = merge_adapter(open_checkpoint(base_of["gqa"]), adapter).tensors
    whole = {name: tensor.read() for name, tensor in tensors.items()}
    monkeypatch.setattr(tensor_module, "PIECE_BYTES", 1000)
    for name, tensor in tensors.items():
        if tensor.shape[0] * 42 * 4 > 1000 and len(tensor.shape) == 2:
            assert len(list(tensor.pieces())) > 1
        torch.testing.assert_close(tensor.read(), whole[name], rtol=1e-5, atol=1e-6)


# What is refused


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base_of):
    return made(
        tmp_path_factory.mktemp("adapter") / "a", base_of["gqa"], target_modules=["q_proj", "up_proj"]
    )


def edited(adapter, folder, config=None, weights=None):
    """A copy of the adapter with another config or other tensors."""
    shutil.copytree(adapter, folder)
    path, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if config is not None:
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if weights is not None:
        tensors = load_file(file)
        weights(tensors)
        save_file(tensors, file)
    return folder


def refused(base, adapter, *words):
    with pytest.raises(CheckpointError) as error:
        merge_adapter(open_checkpoint(base), adapter)
    for word in words:
        assert word in error.value.message
    assert error.value.hint
    assert not error.value.message.endswith(".")


CONFIG_FAULTS = {
    "prompt learning": ({"peft_type": "P_TUNING"}, ["peft_type", '"P_TUNING"', '"LORA"']),
    "no kind": ({"peft_type": None}, ["peft_type is missing"]),
    "unknown feature": ({"use_magic": True}, ["use_magic is true"]),
    "LoRA's own bias": ({"lora_bias": True}, ["lora_bias"]),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 3]]}, ["layer_replication"]),
    "trained tokens": ({"trainable_token_indices": [1, 2]}, ["trainable_token_indices"]),
    "parameters": ({"target_parameters": ["weight"]}, ["target_parameters"]),
    "activated": ({"alora_invocation_tokens": [3]}, ["alora_invocation_tokens"]),
    "tying": ({"ensure_weight_tying": True}, ["ensure_weight_tying"]),
    "a start that moves the base": ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights", "base"]),
    "rank of text": ({"r": "8"}, ['r is "8"']),
    "rank too low": ({"r": 0}, ["r is 0"]),
    "no scale": ({"lora_alpha": None}, ["lora_alpha is missing"]),
    "flag of number": ({"use_dora": 1}, ["use_dora is 1"]),
    "broken expression": ({"target_modules": "(q_proj"}, ["target_modules"]),
    "patterns no object": ({"rank_pattern": [3]}, ["rank_pattern is [3]"]),
    "layers of text": ({"layers_to_transform": ["0"]}, ["layers_to_transform"]),
    "another rank": ({"r": 9}, ["is [8, 42]", "need [9, 42]"]),
    "more targets than factors": ({"target_modules": LINEAR}, ["factors for", "missing"]),
    "fewer targets than factors": ({"target_modules": ["up_proj"]}, ["q_proj", "does not target"]),
    "DoRA without magnitudes": ({"use_dora": True}, ["magnitude of", "is missing"]),
    "a module that it lacks": ({"modules_to_save": ["lm_head"]}, ["lm_head", "is missing"]),
    "a head that the base lacks": ({"modules_to_save": ["score"]}, ["score", "base model has none"]),
}


@pytest.mark.parametrize(("config", "words"), CONFIG_FAULTS.values(), ids=CONFIG_FAULTS)
def test_what_could_not_be_merged_exactly_is_refused_by_name(tmp_path, base_of, adapter, config, words):
    refused(base_of["gqa"], edited(adapter, tmp_path / "bad", config), *words)


A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
WEIGHT_FAULTS = {
    "a lost factor": (lambda t: t.pop(A), ["A of model.layers.1.self_attn.q_proj is missing"]),
    "a lost module": (
        lambda t: [t.pop(key) for key in list(t) if ".layers.1.self_attn." in key],
        ["factors for model.layers.1.self_attn.q_proj are missing"],
    ),
    "an unknown tensor": (lambda t: t.update(extra=torch.ones(1)), ["extra", "belongs to nothing"]),
    "a layer that the base lacks": (
        lambda t: t.update({A.replace("layers.1", "layers.7"): t[A].clone()}),
        ["layers.7", "belongs to nothing"],
    ),
    "a head of another task": (
        lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 42)}),
        ["score.weight", "belongs to nothing"],
    ),
    "another width": (lambda t: t.update({A: torch.ones(8, 43)}), ["is [8, 43]", "need [8, 42]"]),
    "an uncalled-for magnitude": (
        lambda t: t.update({A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(96)}),
        ["magnitude", "no use_dora"],
    ),
    "a base tensor of another size": (
        lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(132, 42)}),
        ["is [132, 42]", "need [131, 42]"],
    ),
    "a bias that the base lacks": (
        lambda t: t.update({A.replace("lora_A.weight", "bias"): torch.ones(96)}),
        ["bias", "belongs to nothing"],
    ),
}


@pytest.mark.parametrize(("change", "words"), WEIGHT_FAULTS.values(), ids=WEIGHT_FAULTS)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, base_of, adapter, change, words):
    refused(base_of["gqa"], edited(adapter, tmp_path / "bad", weights=change), *words)


def test_an_adapter_for_another_base_is_refused(tmp_path, base_of, adapter):
    refused(base_of["mha_tied"], adapter, "layers.2", "belongs to nothing")
    refused(base_of["yarn"], made(tmp_path / "a", base_of["mha_tied"], target_modules=["q_proj"]), "layers.2")


def test_what_is_no_adapter_is_refused(tmp_path, base_of, adapter):
    refused(base_of["gqa"], tmp_path / "nowhere", "no such folder")
    refused(base_of["gqa"], base_of["gqa"], "adapter_config.json")
    folder = edited(adapter, tmp_path / "pickle")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(base_of["gqa"], folder, "adapter_model.bin", "safetensors")


def test_one_adapter_twice_is_refused(base_of, adapter):
    once = merge_adapter(open_checkpoint(base_of["gqa"]), adapter)
    with pytest.raises(CheckpointError, match="named twice"):
        merge_adapter(once, adapter)
