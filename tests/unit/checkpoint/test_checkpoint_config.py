"""config.json -> LlamaConfig, in both styles, and everything that is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import LlamaConfig as HfConfig

from llama_export.checkpoint.config import parse_config
from llama_export.errors import ConfigError
from llama_export.model.config import RopeConfig

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3_ROPE = RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 8192)
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.5, 2, 4.0],
    "long_factor": [1, 3.0, 5.0, 7.5],
    "original_max_position_embeddings": 16,
}
LONG_FACTORS = {"short_factor": (1.0, 1.5, 2.0, 4.0), "long_factor": (1.0, 3.0, 5.0, 7.5)}
YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16}
ABSENT = object()


def changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {**raw, **changes}
    return {key: value for key, value in merged.items() if value is not ABSENT}


def test_every_field_is_read(raw_config):
    config = parse_config(raw_config)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config, key) == raw_config[key]
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"):
        assert getattr(config, key) == raw_config[key]
    assert config.rope == RopeConfig(rope_theta=10000.0)
    assert config.tie_word_embeddings is False


@pytest.mark.parametrize("absent", [ABSENT, None])
def test_keys_younger_than_llama_1_mean_llama_1_when_absent(raw_config, absent):
    young = ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias")
    raw = changed(raw_config, dict.fromkeys((*young, "tie_word_embeddings", "architectures"), absent))
    config = parse_config(raw)
    assert config.num_key_value_heads == 4
    assert config.head_dim == 6
    assert config.rope == RopeConfig()
    assert config.tie_word_embeddings is False


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope_theta": 500000}, RopeConfig(rope_theta=500000.0)),
        ({"rope_scaling": {}}, RopeConfig()),
        ({"rope_scaling": {"type": "default"}}, RopeConfig()),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, LLAMA3_ROPE),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}}, LLAMA3_ROPE),
        (
            {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": None, "type": "llama3"}},
            LLAMA3_ROPE,
        ),
        ({"rope_theta": ABSENT, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, LLAMA3_ROPE),
        ({"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 7.0}}, RopeConfig(rope_theta=7.0)),
        ({"rope_theta": 5e5, "rope_parameters": LLAMA3, "rope_scaling": LLAMA3}, LLAMA3_ROPE),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3, "partial_rotary_factor": 1.0}, LLAMA3_ROPE),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3, "original_max_position_embeddings": 8192},
            LLAMA3_ROPE,
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig("linear", factor=2.0)),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.5}},
            RopeConfig("dynamic", factor=2.5, original_max_position_embeddings=64),
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.5}},
            RopeConfig("dynamic", factor=2.5, original_max_position_embeddings=64),
        ),
        ({"rope_scaling": YARN}, RopeConfig("yarn", factor=4.0, original_max_position_embeddings=16)),
        (
            {"rope_scaling": {"type": "yarn"}},
            RopeConfig("yarn", factor=1.0, original_max_position_embeddings=64),
        ),
        (
            {"rope_parameters": {**YARN, "factor": None, "beta_fast": 24, "beta_slow": 2, "truncate": False}},
            RopeConfig(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                beta_fast=24.0,
                beta_slow=2.0,
                truncate=False,
            ),
        ),
        (
            {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "attention_factor": 1.2}},
            RopeConfig(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                mscale=1.0,
                mscale_all_dim=0.7,
                attention_factor=1.2,
            ),
        ),
        (
            {"rope_scaling": LONGROPE},
            RopeConfig("longrope", factor=4.0, original_max_position_embeddings=16, **LONG_FACTORS),
        ),
        (
            {
                "rope_scaling": LONGROPE | {"factor": 3, "original_max_position_embeddings": None},
                "original_max_position_embeddings": 32,
            },
            RopeConfig("longrope", factor=3.0, original_max_position_embeddings=32, **LONG_FACTORS),
        ),
    ],
)
def test_rope_in_both_spellings(raw_config, changes, rope):
    assert parse_config(changed(raw_config, changes)).rope == rope


@pytest.mark.parametrize(
    "rope", [None, {"rope_theta": 5e5, **LLAMA3}, {"rope_theta": 123.0, "rope_type": "default"}]
)
def test_what_transformers_5_writes_reads_the_same(rope):
    theirs = HfConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope)
    theirs.architectures = ["LlamaForCausalLM"]
    ours = parse_config(json.loads(theirs.to_json_string(use_diff=False)))
    assert ours.head_dim == theirs.head_dim
    for key, value in theirs.rope_parameters.items():
        assert getattr(ours.rope, key) == value


def test_unknown_keys_that_do_not_matter_are_ignored(raw_config):
    extra = {"use_cache": True, "attention_dropout": 0.0, "initializer_range": 0.02, "_name_or_path": "x"}
    assert parse_config(raw_config | extra) == parse_config(raw_config)


INTS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
]


@pytest.mark.parametrize("key", [*INTS, "rms_norm_eps", "hidden_act", "model_type"])
@pytest.mark.parametrize("value", [ABSENT, None])
def test_architecture_facts_are_required(raw_config, key, value):
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(raw_config, {key: value}))
    assert caught.value.message.startswith(f"config.json: {key} is missing, must be ")
    assert caught.value.hint


@pytest.mark.parametrize("key", [*INTS, "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (0, "0"),
        (-4, "-4"),
        (True, "true"),
        (4.0, "4.0"),
        ("4", '"4"'),
        ([4], "[4]"),
        (2**31, "2147483648"),
        (10**400, "1000000"),
    ],
)
def test_integers_are_positive_integers(raw_config, key, value, got):
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(raw_config, {key: value}))
    assert caught.value.message.startswith(f"config.json: {key} is {got}")
    assert "must be a positive integer" in caught.value.message


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "partial_rotary_factor"])
@pytest.mark.parametrize("value", [0, -1e-5, True, "1e-5", [1], {}, 10**400])
def test_numbers_are_positive_numbers(raw_config, key, value):
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(raw_config, {key: value}))
    assert caught.value.message.startswith(f"config.json: {key} is ")
    assert "must be a positive number" in caught.value.message


REFUSED = {
    "other family": ({"model_type": "mistral"}, ["model_type", '"mistral"', '"llama"']),
    "other head": (
        {"architectures": ["LlamaForRewardModelWithGating"]},
        ["architectures", "LlamaForRewardModelWithGating", "LlamaForCausalLM"],
    ),
    "two heads": ({"architectures": ["LlamaForCausalLM", "Other"]}, ["architectures", "Other"]),
    "architectures no list": ({"architectures": "LlamaForCausalLM"}, ["architectures"]),
    "activation": ({"hidden_act": "relu"}, ["hidden_act", '"relu"', '"silu"', '"gelu_pytorch_tanh"']),
    "activation no text": ({"hidden_act": ["silu"]}, ["hidden_act", '["silu"]']),
    "attention bias as number": ({"attention_bias": 1}, ["attention_bias is 1", "true or false"]),
    "bias as text": ({"mlp_bias": "false"}, ['mlp_bias is "false"', "true or false"]),
    "tie as number": ({"tie_word_embeddings": 1}, ["tie_word_embeddings is 1", "true or false"]),
    "sliding window": ({"sliding_window": 4096}, ["sliding_window is 4096", "only null"]),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
    "compressed": ({"compression_config": {}}, ["compression_config"]),
    "partial rotary": ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5", "only 1"]),
    "partial rotary inside": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        ["rope_parameters.partial_rotary_factor is 0.25"],
    ),
    "heads not multiple": ({"num_key_value_heads": 3}, ["num_key_value_heads is 3", "divide", "4"]),
    "more kv heads": ({"num_key_value_heads": 8}, ["num_key_value_heads is 8", "4"]),
    "odd head_dim": ({"head_dim": 7}, ["head_dim is 7", "even"]),
    "odd implied head_dim": ({"head_dim": None, "hidden_size": 20}, ["head_dim", "5", "even"]),
    "head_dim not whole": ({"head_dim": None, "hidden_size": 26}, ["head_dim is missing", "26", "4"]),
    **{
        f"{kind} without factor": (
            {"rope_scaling": {"type": kind}},
            ["rope_scaling.factor is missing", "positive number"],
        )
        for kind in ("linear", "dynamic")
    },
    "linear by nothing": ({"rope_scaling": {"type": "linear", "factor": 0}}, ["rope_scaling.factor is 0"]),
    "dynamic that shrinks": (
        {"rope_scaling": {"type": "dynamic", "factor": 0.5}},
        ["rope_scaling.factor is 0.5", "at least 1"],
    ),
    "dynamic, one pair": (
        {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}},
        ["head_dim is 2", "above 2"],
    ),
    **{
        f"yarn with bad {key}": ({"rope_parameters": YARN | {key: value}}, [f"rope_parameters.{key} is"])
        for key, value in {
            "factor": -4,
            "beta_fast": 0,
            "beta_slow": "1",
            "mscale": True,
            "mscale_all_dim": -1,
            "attention_factor": 0,
            "truncate": 1,
            "original_max_position_embeddings": 0,
        }.items()
    },
    "yarn betas swapped": (
        {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 32}},
        ["rope_scaling.beta_fast is 1", "beta_slow, 32"],
    ),
    "yarn of base 1": ({"rope_theta": 1.0, "rope_scaling": YARN}, ["rope_theta is 1", "yarn"]),
    "longrope without factors": (
        {"rope_scaling": LONGROPE | {"long_factor": None}},
        ["rope_scaling.long_factor is missing", "head_dim / 2 = 4"],
    ),
    "longrope too short": (
        {"rope_scaling": LONGROPE | {"short_factor": [1, 2]}},
        ["rope_scaling.short_factor is [1, 2]", "head_dim / 2 = 4"],
    ),
    "longrope no number": (
        {"rope_scaling": LONGROPE | {"short_factor": [1, 2, 3, "4"]}},
        ["rope_scaling.short_factor.3 is", "positive number"],
    ),
    "longrope from one token": (
        {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 1}},
        ["original_max_position_embeddings is 1", "above 1"],
    ),
    "proportional": (
        {"rope_parameters": {"rope_type": "proportional", "factor": 1.0}},
        ["rope_parameters.rope_type", '"proportional"', '"longrope"'],
    ),
    "axial": ({"rope_parameters": {"rope_type": "axial"}}, ['"axial"']),
    "the old name of longrope": ({"rope_scaling": {"type": "su"}}, ['"su"', '"longrope"']),
    "unknown rope": ({"rope_scaling": {"type": "spiral"}}, ['"spiral"', "default"]),
    "rope type no text": ({"rope_scaling": {"type": ["llama3"]}}, ['["llama3"]']),
    "rope type lost": ({"rope_scaling": {"factor": 2.0}}, ["rope_scaling.rope_type is missing"]),
    "rope no object": ({"rope_scaling": "llama3"}, ['rope_scaling is "llama3"', "object"]),
    "rope zero": ({"rope_scaling": 0}, ["rope_scaling is 0", "object"]),
    "rope per layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        ["rope_parameters", "full_attention", "one rotary embedding"],
    ),
    "two types": (
        {"rope_scaling": {**LLAMA3, "type": "linear"}},
        ["rope_type", "rope_scaling.type", '"linear"'],
    ),
    "two thetas": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        ["rope_theta is 10000.0", "rope_parameters.rope_theta is 500000.0", "same"],
    ),
    "two factors": (
        {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"factor": 32.0}},
        ["rope_parameters.factor is 8.0", "rope_scaling.factor is 32.0"],
    ),
    "two ropes": (
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3},
        ["rope_parameters.rope_type", "rope_scaling.rope_type"],
    ),
    "two originals": (
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096},
        ["original_max_position_embeddings is 4096", "8192"],
    ),
    "high below low": (
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        ["rope_scaling.high_freq_factor is 1.0", "above low_freq_factor, 1.0"],
    ),
    "original is float": (
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192.0}},
        ["original_max_position_embeddings is 8192.0", "positive integer"],
    ),
    **{
        f"llama3 without {key}": (
            {"rope_scaling": {name: value for name, value in LLAMA3.items() if name != key}},
            [f"rope_scaling.{key} is missing"],
        )
        for key in LLAMA3
    },
    **{
        f"llama3 with bad {key}": (
            {"rope_scaling": LLAMA3 | {key: -1}},
            [f"rope_scaling.{key} is -1", "positive"],
        )
        for key in list(LLAMA3)[1:]
    },
    "value is long": ({"hidden_act": "x" * 10_000}, ["hidden_act", "..."]),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(raw_config, changes, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(raw_config, changes))
    message, hint = caught.value.message, caught.value.hint
    assert message.startswith("config.json: ")
    for word in words:
        assert word in message
    assert len(message) < 300
    assert not message.endswith(".")
    assert hint
    assert not hint.endswith(".")
