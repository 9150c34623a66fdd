"""Meta's folders: shards joined, rotary rows reordered, params.json read as Meta's code reads it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_checkpoints import (
    META,
    META_FLASH,
    META_LLAMA3,
    PARAMS,
    PARAMS_LLAMA3,
    in_one_storage,
    interleave,
    meta_shards,
    meta_state,
    write_meta,
)
from safetensors.torch import save_file
from talking_checkpoint import train_tokenizer
from tiny_checkpoints import DTYPES, link_like_the_hub, random_weights

from llama_export.checkpoint import open_checkpoint
from llama_export.checkpoint.fields import Fields
from llama_export.checkpoint.meta import shard_names
from llama_export.checkpoint.params import Sizes, hugging_face_config
from llama_export.checkpoint.tensor import StoredTensor
from llama_export.errors import CheckpointError, ConfigError

FIRST, SECOND = "consolidated.00.pth", "consolidated.01.pth"


def assert_same_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.tensors) == list(checkpoint.config.tensor_shapes())
    assert set(checkpoint.tensors) == set(weights)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.name == name
        assert torch.equal(tensor.read(), weights[name]), name


def edit(folder: Path, **changes: Any) -> None:
    params = json.loads((folder / "params.json").read_text()) | changes
    (folder / "params.json").write_text(json.dumps({k: v for k, v in params.items() if v != "absent"}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("embedding_by_rows", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
def test_shards_of_either_generation(tmp_path, shards, embedding_by_rows, dtype):
    write_meta(tmp_path / "m", META_FLASH, PARAMS, dtype, shards=shards, embedding_by_rows=embedding_by_rows)
    assert_same_weights(tmp_path / "m", random_weights(META_FLASH, DTYPES[dtype]))
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == META_FLASH
    assert [path.name for path in checkpoint.weight_files] == [FIRST, SECOND][:shards]
    assert checkpoint.config_file == tmp_path / "m/params.json"
    assert checkpoint.raw_config["torch_dtype"] == dtype


def test_four_shards_of_eight_heads(tmp_path):
    params = PARAMS | {"n_heads": 8, "n_kv_heads": 4}
    write_meta(tmp_path / "m", META, params, shards=4)
    assert_same_weights(tmp_path / "m", random_weights(META))


def test_without_grouped_heads_as_llama_1(tmp_path):
    config = dataclasses.replace(META_FLASH, num_key_value_heads=4)
    params = {key: value for key, value in PARAMS.items() if key != "n_kv_heads"}
    write_meta(tmp_path / "m", config, params, shards=2)
    assert_same_weights(tmp_path / "m", random_weights(config))


def test_tensors_that_view_one_storage(tmp_path):
    write_meta(tmp_path / "m", META_FLASH, PARAMS, shards=2, change=in_one_storage)
    assert_same_weights(tmp_path / "m", random_weights(META_FLASH))


def test_a_head_that_is_the_embedding(tmp_path):
    config = dataclasses.replace(META_FLASH, tie_word_embeddings=True)
    weights = random_weights(config)
    write_meta(tmp_path / "left out", config, PARAMS, weights=weights)
    assert open_checkpoint(tmp_path / "left out").config.tie_word_embeddings

    def tied(state):
        return state | {"output.weight": state["tok_embeddings.weight"]}

    write_meta(tmp_path / "shared", config, PARAMS, weights=weights, change=tied)
    assert open_checkpoint(tmp_path / "shared").config.tie_word_embeddings
    for folder in ("left out", "shared"):
        assert_same_weights(tmp_path / folder, weights)


def test_shards_as_safetensors_count_before_pickles(tmp_path):
    folder = write_meta(tmp_path / "m", META_FLASH, PARAMS, shards=2)
    weights = random_weights(META_FLASH, seed=7)
    state = meta_state(weights, META_FLASH.head_dim)
    for i, shard in enumerate(meta_shards(state, 2, embedding_by_rows=False)):
        save_file(shard, folder / f"consolidated.{i:02}.safetensors")
    assert_same_weights(folder, weights)
    for path in folder.glob("consolidated.*"):
        path.unlink()
    save_file(state, folder / "consolidated.safetensors")
    assert_same_weights(folder, weights)


def test_interleaving_is_a_real_change():
    value = torch.arange(32.0).view(32, 1)
    assert not torch.equal(interleave(value, 16), value)
    assert interleave(value, 16)[:4, 0].tolist() == [0, 8, 1, 9]


def test_metas_rotation_of_its_rows_is_hugging_faces_of_ours(tmp_path):
    """Queries rotated with complex numbers, as Meta's code does, give the same scores as ours."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    folder = write_meta(tmp_path / "m", META_FLASH, PARAMS)
    original = torch.load(folder / FIRST, weights_only=True)
    ours, T, D = open_checkpoint(folder).tensors, 6, META_FLASH.head_dim
    x = torch.randn(T, META_FLASH.hidden_size)
    freqs = 10000.0 ** -(torch.arange(0, D, 2) / D)
    angles = torch.outer(torch.arange(T), freqs)  # [T, D / 2]

    def meta(which):
        rows = (x @ original[f"layers.0.attention.{which}.weight"].T).view(T, -1, D // 2, 2)
        turned = torch.view_as_complex(rows) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(2).transpose(0, 1)  # [heads, T, D]

    def hugging_face(which):
        rows = x @ ours[f"model.layers.0.self_attn.{which}_proj.weight"].read().T
        heads = rows.view(1, T, -1, D).transpose(1, 2)
        cos, sin = (f(torch.cat((angles, angles), dim=-1))[None] for f in (torch.cos, torch.sin))
        return apply_rotary_pos_emb(heads, heads, cos, sin)[0][0]

    q, k = meta("wq")[0::2], meta("wk")
    theirs = q @ k.mT
    assert torch.allclose(hugging_face("q")[0::2] @ hugging_face("k").mT, theirs, atol=1e-4)


SIZES = Sizes(vocab_size=32000, intermediate_size=11008, tied=False, dtype="bfloat16")
LLAMA_1 = {
    "dim": 4096,
    "multiple_of": 256,
    "n_heads": 32,
    "n_layers": 32,
    "norm_eps": 1e-06,
    "vocab_size": -1,
}
# The params.json that Meta published: what config.json of the converted model says, as far as it can differ.
PUBLISHED = {
    "Llama 1 7B": (LLAMA_1, {}, (11008, 32, 2048, None)),
    "Llama 1 65B": (
        LLAMA_1 | {"dim": 8192, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05},
        {"intermediate_size": 22016},
        (22016, 64, 2048, None),
    ),
    "Llama 2 7B": (LLAMA_1 | {"norm_eps": 1e-05}, {}, (11008, 32, 4096, None)),
    "Llama 2 70B": (
        LLAMA_1
        | {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8}
        | {"n_layers": 80, "norm_eps": 1e-05},
        {"intermediate_size": 28672},
        (28672, 8, 4096, None),
    ),
    "Code Llama 7B": (
        {key: value for key, value in LLAMA_1.items() if key != "vocab_size"}
        | {"norm_eps": 1e-05, "rope_theta": 1000000, "ffn_dim_multiplier": 1.0},
        {"vocab_size": 32016},
        (11008, 32, 16384, None),
    ),
    "Code Llama 34B": (
        LLAMA_1
        | {"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "ffn_dim_multiplier": 1.0}
        | {"norm_eps": 1e-05, "rope_theta": 1000000},
        {"intermediate_size": 22016},
        (22016, 8, 16384, None),
    ),
    "Llama 3 8B": (
        {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
        | {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0},
        {"vocab_size": 128256, "intermediate_size": 14336},
        (14336, 8, 8192, None),
    ),
    "Llama 3.1 8B": (
        {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
        | {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0}
        | {"use_scaled_rope": True},
        {"vocab_size": 128256, "intermediate_size": 14336},
        (14336, 8, 131072, 8.0),
    ),
    "Llama 3.2 1B": (
        {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
        | {"ffn_dim_multiplier": 1.5, "multiple_of": 256, "norm_eps": 1e-05, "rope_theta": 500000.0}
        | {"use_scaled_rope": True},
        {"vocab_size": 128256, "intermediate_size": 8192},
        (8192, 8, 131072, 32.0),
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_params(model):
    params, sizes, (intermediate, kv_heads, positions, factor) = PUBLISHED[model]
    raw = hugging_face_config(Fields(params), dataclasses.replace(SIZES, **sizes))
    assert (raw["intermediate_size"], raw["num_key_value_heads"]) == (intermediate, kv_heads)
    assert (raw["max_position_embeddings"], (raw["rope_scaling"] or {}).get("factor")) == (positions, factor)
    assert raw["rms_norm_eps"] == params["norm_eps"]
    assert raw["rope_theta"] == params.get("rope_theta", 10000.0)


def test_the_context_may_be_said(tmp_path):
    folder = write_meta(tmp_path / "m", META_FLASH, {"model": PARAMS | {"max_seq_len": 512}})
    assert open_checkpoint(folder).config.max_position_embeddings == 512
    assert open_checkpoint(folder).notes == ()


def test_the_tokenizer_says_which_tokens_end_a_text(tmp_path):
    config = dataclasses.replace(META_LLAMA3, vocab_size=320)
    folder = write_meta(tmp_path / "family/7B", config, PARAMS_LLAMA3)
    assert "eos_token_id" not in open_checkpoint(folder).raw_config
    train_tokenizer(tmp_path / "family/tokenizer.model")
    (tmp_path / "family/USE_POLICY.md").write_text("Do no harm.")
    (tmp_path / "family/config.txt").write_text("not ours")
    checkpoint = open_checkpoint(folder)
    assert [p.relative_to(tmp_path).as_posix() for p in checkpoint.companions] == [
        "family/USE_POLICY.md",
        "family/tokenizer.model",
    ]
    assert (checkpoint.raw_config["bos_token_id"], checkpoint.raw_config["eos_token_id"]) == (1, 2)
    ranks = [base64.b64encode(bytes([i])).decode() + f" {i}" for i in range(64)]
    (folder / "tokenizer.model").write_text("\n".join(ranks))
    checkpoint = open_checkpoint(folder)  # the folder's own goes before the one above
    assert [path.name for path in checkpoint.companions] == ["tokenizer.model"]
    assert (checkpoint.raw_config["bos_token_id"], checkpoint.raw_config["eos_token_id"]) == (
        64,
        [65, 72, 73],
    )


def test_metas_files_within_a_repository_of_hugging_face(tmp_path):
    write_meta(tmp_path / "repo/original", META_FLASH, PARAMS)
    (tmp_path / "repo/LICENSE").write_text("Do good.")
    (tmp_path / "repo/generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    for folder in (tmp_path / "repo", tmp_path / "repo/original"):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.generation_config == {"eos_token_id": [7, 9]}
        assert [path.name for path in checkpoint.companions] == ["LICENSE", "generation_config.json"]
        assert checkpoint.folder == tmp_path / "repo/original"
    assert "read from original/" in open_checkpoint(tmp_path / "repo").notes[0]


def test_a_hub_snapshot_of_metas_files(tmp_path):
    written = write_meta(tmp_path / "written", META_FLASH, PARAMS, shards=2)
    assert_same_weights(link_like_the_hub(written, tmp_path / "cache"), random_weights(META_FLASH))


def test_opening_reads_no_matrix(tmp_path, monkeypatch):
    """Norms are compared, and of one matrix a few rows."""
    folder, read = write_meta(tmp_path / "m", META_FLASH, PARAMS, shards=2), []
    for method in ("rows", "read"):
        original = getattr(StoredTensor, method)

        def spy(self, *arguments, original=original):
            value = original(self, *arguments)
            read.append(value.nbytes)
            return value

        monkeypatch.setattr(StoredTensor, method, spy)
    checkpoint = open_checkpoint(folder)
    assert read
    assert sum(read) < 0.1 * sum(tensor.nbytes for tensor in checkpoint.tensors.values())


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["consolidated.00.pth", "consolidated.02.pth"], "consolidated.01.pth: is missing, consolidated.02"),
        (["consolidated.01.pth"], "consolidated.00.pth: is missing"),
        (["consolidated.00.pth", "consolidated.0.pth"], "shard 0 is there twice"),
        (["consolidated.pth", "consolidated.00.pth"], "shard 0 is there twice"),
    ],
)
def test_numbers_without_gaps(entries, words):
    with pytest.raises(CheckpointError, match=words):
        shard_names(entries)


def test_other_files_are_no_shards():
    assert shard_names(["consolidated.00.pth", "consolidated.00 (1).pth", "checklist.chk"]) == [FIRST]


def save_again(folder: Path, name: str, change) -> None:
    state = torch.load(folder / name, weights_only=True)
    torch.save(change(state) or state, folder / name)


def scaled(key: str):
    return lambda state: state | {key: state[key] * 1.01}


def without(key: str):
    return lambda state: {name: value for name, value in state.items() if name != key}


NORM, UP = "layers.1.ffn_norm.weight", "layers.1.feed_forward.w3.weight"
DAMAGE = {
    "a norm differs": (lambda f: save_again(f, SECOND, scaled(NORM)), rf"^{SECOND}: tensor {NORM} has other"),
    "a copy": (lambda f: shutil.copy(f / FIRST, f / SECOND), f"^{SECOND}: holds the same weights as {FIRST}"),
    "one is gone": (lambda f: (f / SECOND).unlink(), rf"^{FIRST}: tensor .* in 1 shard, params.json needs"),
    "the first is gone": (lambda f: (f / FIRST).unlink(), f"^{FIRST}: is missing, {SECOND} is there"),
    "a tensor less": (lambda f: save_again(f, SECOND, without(UP)), f"^{SECOND}: tensor {UP} is missing"),
    "a tensor more": (
        lambda f: save_again(f, SECOND, lambda s: s | {"layers.1.lora.weight": torch.ones(2)}),
        f"^{FIRST}: tensor layers.1.lora.weight is missing, {SECOND} has it",
    ),
    "unknown in both": (
        lambda f: [save_again(f, n, lambda s: s | {"extra.weight": torch.ones(2)}) for n in (FIRST, SECOND)],
        "tensor extra.weight is not explained",
    ),
    "another shape": (
        lambda f: save_again(f, SECOND, lambda s: s | {UP: s[UP][:4].clone()}),
        rf"^{SECOND}: tensor {UP} is \[4, 64\], {FIRST} has \[88, 64\]",
    ),
    "another precision": (
        lambda f: save_again(f, SECOND, lambda s: s | {UP: s[UP].half()}),
        "of another precision",
    ),
    "no embedding": (
        lambda f: [save_again(f, name, without("tok_embeddings.weight")) for name in (FIRST, SECOND)],
        f"^{FIRST}: tensor tok_embeddings.weight is missing",
    ),
    "a layer less": (
        lambda f: [save_again(f, name, without("layers.1.attention.wo.weight")) for name in (FIRST, SECOND)],
        "tensor model.layers.1.self_attn.o_proj.weight is missing",
    ),
    "no params": (
        lambda f: (f / "params.json").unlink(),
        "params.json, which belongs to Meta's files, got lost",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_shards_that_do_not_belong_together(tmp_path, case):
    folder = write_meta(tmp_path / "m", META_FLASH, PARAMS, shards=2)
    damage, words = DAMAGE[case]
    damage(folder)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(folder)
    text = f"{refused.value.message}; {refused.value.hint}"
    assert re.search(words, text), text
    assert "\n" not in text


PARAMS_REFUSED = {
    "no dim": ({"dim": "absent"}, "dim is missing"),
    "no norm_eps": ({"norm_eps": "absent"}, "norm_eps is missing"),
    "no n_layers": ({"n_layers": "absent"}, "n_layers is missing"),
    "another dim": ({"dim": 96}, "tok_embeddings.weight"),
    "another vocabulary": ({"vocab_size": 131}, "vocab_size is 131, must be 132"),
    "another MLP": ({"ffn_dim_multiplier": 2.0}, "makes an MLP of 352, the shards have 176"),
    "heads that do not divide": ({"n_heads": 5}, "dim is 64, must be a multiple of n_heads, 5"),
    "kv heads that do not divide": ({"n_kv_heads": 3}, "n_kv_heads is 3, must divide n_heads, 4"),
    "other kv heads": ({"n_kv_heads": 4}, r"wk.weight is \[16, 64\] in each of 2 shards"),
    "mixture of experts": ({"moe": {"num_experts": 8}}, "moe is no parameter of Llama 1 to 3.3"),
    "quantized": ({"quantization_args": {}}, "quantization_args is no parameter"),
    "an unknown theta": ({"rope_theta": 12345}, "max_seq_len is missing, .* 12345"),
    "an unknown scaling": (
        {"use_scaled_rope": True},
        "rope_scaling_factor is missing, but use_scaled_rope is true",
    ),
    "a flag that is none": ({"use_scaled_rope": 1}, "use_scaled_rope is 1, must be true or false"),
    "many layers": ({"n_layers": 10**9}, "is missing"),
    "fewer layers": ({"n_layers": 1}, "is not explained"),
}


@pytest.mark.parametrize("case", PARAMS_REFUSED)
def test_params_that_cannot_be_honoured(tmp_path, case):
    folder = write_meta(tmp_path / "m", META_FLASH, PARAMS, shards=2)
    changes, words = PARAMS_REFUSED[case]
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as refused:
        open_checkpoint(folder)
    assert refused.value.hint
    assert isinstance(refused.value, ConfigError) or "\n" not in refused.value.message
