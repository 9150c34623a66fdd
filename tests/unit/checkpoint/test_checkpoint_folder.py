"""open_checkpoint: whole folders, as people have them, and everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from llama_export.checkpoint import open_checkpoint
from llama_export.errors import CheckpointError, ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def assert_same_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.tensors) == list(checkpoint.config.tensor_shapes())
    for name, stored in checkpoint.tensors.items():
        assert torch.equal(stored.read(), weights[name])


def test_single_file(single, raw_config, weights):
    checkpoint = open_checkpoint(single)
    assert checkpoint.folder == single
    assert checkpoint.raw_config == raw_config
    assert list(checkpoint.raw_config) == list(raw_config)
    assert checkpoint.dtype == torch.bfloat16
    assert checkpoint.weight_files == (single / SINGLE,)
    assert checkpoint.companions == ()
    assert checkpoint.generation_config == {}
    assert_same_weights(single, weights)


def test_shards(sharded, weights):
    assert open_checkpoint(sharded).weight_files == (sharded / FIRST, sharded / SECOND)
    assert_same_weights(sharded, weights)


def test_shards_in_a_folder_below(sharded, weights):
    (sharded / "below").mkdir()
    (sharded / FIRST).rename(sharded / "below" / FIRST)
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(
        {key: f"below/{FIRST}" for key, file in index["weight_map"].items() if file == FIRST}
    ))  # fmt: skip
    assert_same_weights(sharded, weights)


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_hub_snapshot(kind, request, tmp_path, weights):
    """snapshots/<commit>/<file> are links into blobs/<hash>; the snapshot itself is named by a link."""
    source = request.getfixturevalue(kind)
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.move(file, blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    (tmp_path / "named").symlink_to(snapshot)
    checkpoint = open_checkpoint(tmp_path / "named")
    assert checkpoint.folder == tmp_path / "named"
    for file in (*checkpoint.weight_files, *(stored.file for stored in checkpoint.tensors.values())):
        assert file.parent == blobs
        assert not file.is_symlink()
    assert_same_weights(tmp_path / "named", weights)


@pytest.mark.parametrize(("value", "said"), [(None, False), (1, False), (2, True)])
def test_pretraining_tp_is_ignored_and_said(single, value, said):
    edit_json(single / "config.json", lambda raw: raw.update(pretraining_tp=value))
    assert any("pretraining_tp is ignored" in note for note in open_checkpoint(single).notes) == said


@pytest.mark.parametrize("size", ["1GB", "20KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("style", ["4.x", "5.x"])
def test_what_transformers_writes(tmp_path, size, tied, style):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    config = HfConfig(
        vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=tied, rope_parameters=rope,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.float16)
    model.save_pretrained(tmp_path, max_shard_size=size)
    if style == "4.x":

        def rewrite(raw: dict) -> None:
            scaling = raw.pop("rope_parameters")
            raw |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
            raw["torch_dtype"] = raw.pop("dtype")

        edit_json(tmp_path / "config.json", rewrite)
    checkpoint = open_checkpoint(tmp_path)
    assert (len(checkpoint.weight_files) > 1) == (size == "20KB")
    assert checkpoint.dtype == torch.float16
    assert checkpoint.config.tie_word_embeddings is tied
    assert {key: getattr(checkpoint.config.rope, key) for key in rope} == rope
    assert checkpoint.generation_config["eos_token_id"] == 2
    assert [file.name for file in checkpoint.companions] == ["generation_config.json"]
    assert_same_weights(tmp_path, model.state_dict())


def test_companions_are_what_travels_with_a_model(single):
    travels = ["LICENSE.txt", "Notice", "USE_POLICY.md", "added_tokens.json", "chat_template.jinja"]
    travels += ["generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model"]
    travels += ["tokenizer_config.json"]
    for name in (*travels, "README.md", "model.py", "tokenizer.json.bak"):
        (single / name).write_text('{"eos_token_id": [1, 2]}')
    (single / "licenses").mkdir()
    checkpoint = open_checkpoint(single)
    assert checkpoint.companions == tuple(single / name for name in sorted(travels))
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}


def test_mixed_dtypes_are_called_by_most_of_the_bytes(single, weights):
    wide = {
        name: value.float()
        for name, value in weights.items()
        if any(w in name for w in ("q_", "k_", "v_", "norm"))
    }
    assert len(wide) > len(weights) / 2  # most of the tensors are float32, most of the bytes are not
    save_file(weights | wide, single / SINGLE)
    checkpoint = open_checkpoint(single)
    assert checkpoint.dtype == torch.bfloat16
    assert checkpoint.tensors["model.norm.weight"].dtype == torch.float32
    assert_same_weights(single, weights | wide)


def test_harmless_tensors_are_ignored(single, weights):
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    save_file(weights | old, single / SINGLE)
    assert_same_weights(single, weights)
    edit_json(single / "config.json", lambda raw: raw.update(tie_word_embeddings=True))
    assert "lm_head.weight" not in open_checkpoint(single).tensors


def test_stale_index_beside_a_single_file_does_not_count(single, sharded, weights):
    shutil.copy(sharded / INDEX, single / INDEX)
    assert_same_weights(single, weights)


def in_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda raw: raw.update(changes))


def in_index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / INDEX, lambda index: change(index["weight_map"]))


def in_tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / file, change)


def write(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / file).write_bytes(data))


def void(_: object) -> None:
    return None


def remove(*files: str) -> Callable[[Path], None]:
    return lambda folder: void([(folder / file).unlink() for file in files])


def instead(*files: str, keep: str = "") -> Callable[[Path], None]:
    """Replace everything in the folder, or all but one, by these empty files."""

    def spoil(folder: Path) -> None:
        for file in folder.iterdir():
            if file.name != keep:
                file.unlink()
        for name in files:
            (folder / name).touch()

    return spoil


def truncate(file: str, nbytes: int) -> Callable[[Path], None]:
    return lambda folder: void((folder / file).write_bytes((folder / file).read_bytes()[:nbytes]))


def as_folder(file: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).mkdir()

    return spoil


EMBED, HEAD, UP = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"

# name: (fixture, how to break it, the file that is named, words that the message must contain)
REFUSED: dict[str, tuple[str, Callable[[Path], None], str, list[str]]] = {
    "no weights": ("single", remove(SINGLE), "", [SINGLE, "nor an index"]),
    "nothing at all": ("single", instead(), "", ["holds none of", SINGLE]),
    "empty pickle": (
        "single",
        instead("pytorch_model.bin", keep="config.json"),
        "pytorch_model.bin",
        ["empty"],
    ),
    "pickles without index": ("single", instead("pytorch_model-00001-of-00002.bin"), "", ["index"]),
    "flax without index": ("single", instead("flax_model-00001-of-00002.msgpack"), "", ["index"]),
    "empty flax": (
        "single",
        instead("flax_model.msgpack", keep="config.json"),
        "flax_model.msgpack",
        ["lies"],
    ),
    "tensorflow": ("single", instead("tf_model.h5"), "", ["tf_model.h5"]),
    "meta without params": ("single", instead("consolidated.00.pth"), "", ["consolidated.00.pth"]),
    "meta, empty": ("single", instead("consolidated.00.pth", "params.json"), "params.json", ["is empty"]),
    "gguf": ("single", instead("q4.gguf"), "", ["q4.gguf"]),
    "adapter": ("single", instead("adapter_model.safetensors"), "", ["adapter_model.safetensors"]),
    "shards without index": ("sharded", remove(INDEX), "", [FIRST, "nor an index"]),
    "no config": ("single", remove("config.json"), "config.json", ["is missing"]),
    "config is a folder": ("single", as_folder("config.json"), "config.json", ["is a folder"]),
    "config is empty": ("single", write("config.json", b" \n"), "config.json", ["is empty"]),
    "config is not JSON": (
        "single",
        write("config.json", b"{'a': 1}"),
        "config.json",
        ["not JSON", "line 1"],
    ),
    "config is not UTF-8": ("single", write("config.json", b'{"a": "\xe9"}'), "config.json", ["not UTF-8"]),
    "config has a BOM": ("single", write("config.json", b"\xef\xbb\xbf{}"), "config.json", ["not JSON"]),
    "config is a list": ("single", write("config.json", b"[1]"), "config.json", ["[1]", "JSON object"]),
    "config is nested": ("single", write("config.json", b"[" * 99_999), "config.json", ["deeply"]),
    "config with NaN": (
        "single",
        write("config.json", b'{"rms_norm_eps": NaN}'),
        "config.json",
        ["rms_norm_eps", "nan", "finite"],
    ),
    "config with infinity": (
        "single",
        write("config.json", b'{"rope_theta": 1e999}'),
        "config.json",
        ["rope_theta"],
    ),
    "config says it twice": (
        "single",
        write("config.json", b'{"head_dim": 1, "head_dim": 2}'),
        "config.json",
        ["head_dim occurs twice"],
    ),
    "config of a mistral": ("single", in_config(model_type="mistral"), "config.json", ["model_type"]),
    "generation config": (
        "single",
        write("generation_config.json", b"nul"),
        "generation_config.json",
        ["JSON"],
    ),
    "tokenizer got lost": (
        "single",
        lambda folder: (folder / "tokenizer.json").symlink_to("gone"),
        "tokenizer.json",
        ["is missing"],
    ),
    "weights are empty": ("single", write(SINGLE, b""), SINGLE, ["is empty"]),
    "weights truncated": ("single", truncate(SINGLE, 9000), SINGLE, ["truncated", "9000"]),
    "weights are a folder": ("single", as_folder(SINGLE), SINGLE, ["is a folder"]),
    "missing tensor": ("single", in_tensors(SINGLE, lambda t: t.pop(UP)), SINGLE, [UP, "is missing"]),
    "missing head": ("single", in_tensors(SINGLE, lambda t: t.pop(HEAD)), SINGLE, [HEAD, "is missing"]),
    "no tensors": (
        "single",
        in_tensors(SINGLE, lambda t: t.clear()),
        SINGLE,
        ["is missing", "it holds none"],
    ),
    "a tensor under two names": (
        "single",
        in_tensors(SINGLE, lambda t: t.update({EMBED.removeprefix("model."): t[EMBED].clone()})),
        SINGLE,
        [EMBED, "is in", "too"],
    ),
    "extra tensor": (
        "single",
        in_tensors(SINGLE, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})),
        SINGLE,
        ["q_proj.bias", "not explained"],
    ),
    "extra layer": ("single", in_config(num_hidden_layers=1), SINGLE, ["model.layers.1.", "not explained"]),
    "a layer too few": ("single", in_config(num_hidden_layers=3), SINGLE, ["model.layers.2.", "missing"]),
    "two billion layers": (
        "single",
        in_config(num_hidden_layers=2**31 - 1),
        SINGLE,
        ["model.layers.2.input_layernorm.weight", "missing"],
    ),
    "wrong shape": (
        "single",
        in_tensors(SINGLE, lambda t: t.update({UP: torch.ones(40, 23)})),
        SINGLE,
        [f"tensor {UP} is [40, 23], config.json needs [40, 24]"],
    ),
    "transposed": (
        "sharded",
        in_tensors(SECOND, lambda t: t.update({UP: t[UP].T.contiguous()})),
        SECOND,
        [f"tensor {UP} is [24, 40], config.json needs [40, 24]"],
    ),
    "one dimension more": (
        "single",
        in_tensors(SINGLE, lambda t: t.update({"model.norm.weight": torch.ones(1, 24)})),
        SINGLE,
        ["model.norm.weight is [1, 24], config.json needs [24]"],
    ),
    "vocabulary grew": ("single", in_config(vocab_size=38), SINGLE, [EMBED, "[37, 24]", "[38, 24]"]),
    "integer weights": (
        "single",
        in_tensors(SINGLE, lambda t: t.update({UP: torch.ones(40, 24, dtype=torch.int8)})),
        SINGLE,
        [UP, '"I8"', "F32, F16 and BF16"],
    ),
    "index is not JSON": ("sharded", write(INDEX, b"<html>"), INDEX, ["not JSON"]),
    "index without map": ("sharded", write(INDEX, b"{}"), INDEX, ["weight_map is missing"]),
    "index with empty map": ("sharded", write(INDEX, b'{"weight_map": {}}'), INDEX, ["weight_map is empty"]),
    "index with a list": ("sharded", write(INDEX, b'{"weight_map": [1]}'), INDEX, ["weight_map is [1]"]),
    **{
        f"index points to {shard!r}": (
            "sharded",
            in_index(lambda m, shard=shard: m.update({UP: shard})),
            INDEX,
            [UP, "must be a file inside the folder"],
        )
        for shard in [
            "../x",
            "/etc/passwd",
            "a\\b",
            "a/../../x",
            "..",
            ".",
            "",
            "a\0b",
            "a\nb",
            None,
            3,
            ["x"],
        ]
    },
    "shard missing": ("sharded", remove(SECOND), SECOND, ["is missing"]),
    "index names another shard": (
        "sharded",
        in_index(lambda m: m.update({UP: "model-3.safetensors"})),
        "model-3.safetensors",
        ["is missing"],
    ),
    "index names a path through a file": (
        "sharded",
        in_index(lambda m: m.update({UP: f"{FIRST}/x"})),
        f"{FIRST}/x",
        ["cannot be read: not a directory"],
    ),
    "index names an endless file": (
        "sharded",
        in_index(lambda m: m.update({UP: "x" * 5000})),
        "",
        ["cannot be read: file name too long"],
    ),
    "shard lacks a tensor": (
        "sharded",
        in_tensors(SECOND, lambda t: t.pop(UP)),
        SECOND,
        [UP, "is missing", INDEX],
    ),
    "index swaps shards": (
        "sharded",
        in_index(lambda m: m.update({UP: FIRST})),
        FIRST,
        [UP, "is missing", INDEX],
    ),
    "index invents a tensor": ("sharded", in_index(lambda m: m.update(new=FIRST)), FIRST, ["new is missing"]),
    "index forgets a tensor": ("sharded", in_index(lambda m: m.pop(UP)), SECOND, [UP, "is not in", INDEX]),
    "tensor in two shards": (
        "sharded",
        in_tensors(SECOND, lambda t: t.update({EMBED: torch.ones(37, 24)})),
        SECOND,
        [EMBED, "is in", FIRST, "too"],
    ),
    "one shard under two names": (
        "sharded",
        in_index(lambda m: m.update({UP: f"./{SECOND}"})),
        "",
        ["is in", "too"],
    ),
    "shard truncated": ("sharded", truncate(SECOND, 900), SECOND, ["truncated"]),
}


@pytest.mark.parametrize(("fixture", "spoil", "file", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(request, fixture, spoil, file, words):
    folder = request.getfixturevalue(fixture)
    open_checkpoint(folder)  # it is the breaking that is refused
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    message, hint = caught.value.message, caught.value.hint
    if file:
        assert message.startswith(f"{file}: ")
    for word in words:
        assert word in message
    assert message.isprintable()
    assert len(message) < 500
    assert not message.endswith(".")
    assert hint
    assert not hint.endswith(".")


def test_config_errors_are_told_from_damage(single):
    in_config(hidden_act="relu")(single)
    with pytest.raises(ConfigError):
        open_checkpoint(single)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "is a file, must be a folder"),
        (lambda path: path.symlink_to("gone"), "no such folder"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.mkdir(), "holds none of"),
    ],
)
def test_what_is_no_folder_is_refused(tmp_path, make, words):
    make(tmp_path / "model")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "model")
    assert caught.value.message.startswith(f"{tmp_path / 'model'}: ")
    assert words in caught.value.message
    assert caught.value.hint


def test_unreadable_folder_is_refused(single, monkeypatch):
    def fail(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)  # chmod does not stop root, as whom CI may run
    with pytest.raises(CheckpointError, match="cannot be read: permission denied"):
        open_checkpoint(single)


def test_the_checkpoint_is_left_as_it_was(single):
    def state() -> dict[str, tuple[bytes, int, int]]:
        return {
            file.name: (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_mode)
            for file in single.iterdir()
        }

    before = state()
    for stored in open_checkpoint(single).tensors.values():
        stored.read()
    assert state() == before
