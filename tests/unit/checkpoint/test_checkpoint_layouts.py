"""One set of weights in every layout opens as the same checkpoint; what a folder holds too is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from layout_checkpoints import FLAT, LAYOUTS, META_FLASH, PARAMS, write_flax, write_meta, write_pickles
from tiny_checkpoints import DTYPES, random_weights, write_checkpoint

from llama_export.checkpoint import ComputedTensor, open_checkpoint
from llama_export.checkpoint.families import NEEDED
from llama_export.errors import CheckpointError, ConfigError
from llama_export.inspection import inspect

INDEX = "pytorch_model.bin.index.json"


def assert_same_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    tensors = open_checkpoint(folder).tensors
    assert list(tensors) == list(weights)
    for name, tensor in tensors.items():
        assert (tensor.name, tensor.dtype) == (name, weights[name].dtype)
        assert torch.equal(tensor.read(), weights[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_weights(tmp_path, layout, dtype):
    config, write = LAYOUTS[layout]
    folder = write(tmp_path / "source", dtype=dtype)
    assert_same_weights(folder, random_weights(config, DTYPES[dtype]))
    assert open_checkpoint(folder).config == config
    facts = inspect(folder)
    assert (facts["supported"], facts["precision"], facts["notes"]) == (True, dtype, [])


def test_pickles_can_be_linked_and_others_are_computed(tmp_path):
    """What stands row by row is a byte range of its file, whatever the file is."""
    kinds = {}
    for layout in ("pickles", "flax", "meta 1 shard"):
        tensors = open_checkpoint(LAYOUTS[layout][1](tmp_path / layout)).tensors
        kinds[layout] = {name for name, tensor in tensors.items() if isinstance(tensor, ComputedTensor)}
    assert kinds["pickles"] == set()
    assert "model.embed_tokens.weight" not in kinds["flax"]
    assert "model.layers.0.mlp.up_proj.weight" in kinds["flax"]
    assert {name.split(".")[-2] for name in kinds["meta 1 shard"]} == {"q_proj", "k_proj"}


def test_the_safest_format_wins_and_it_is_said(tmp_path):
    weights = {seed: random_weights(FLAT, seed=seed) for seed in range(4)}
    folder = write_flax(tmp_path / "m", FLAT, weights=weights[0])
    assert_same_weights(folder, weights[0])
    for seed, writer, said in (
        (1, write_pickles, "read from pytorch_model.bin; the folder holds flax_model.msgpack too"),
        (
            2,
            write_checkpoint,
            "read from model.safetensors; the folder holds pytorch_model.bin, flax_model.msgpack too",
        ),
    ):
        other = writer(tmp_path / f"{seed}", FLAT, weights=weights[seed])
        for path in other.iterdir():
            path.replace(folder / path.name)
        assert_same_weights(folder, weights[seed])
        assert open_checkpoint(folder).notes == (said,)
        assert inspect(folder)["notes"] == [said]
    write_meta(tmp_path / "meta", META_FLASH, PARAMS)
    (tmp_path / "meta/consolidated.00.pth").replace(folder / "consolidated.00.pth")
    assert open_checkpoint(folder).notes[0].endswith("flax_model.msgpack, consolidated.00.pth too")


def test_what_is_not_read_may_be_damaged(tmp_path):
    folder = write_checkpoint(tmp_path / "m", FLAT)
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    (folder / "flax_model.msgpack.index.json").write_bytes(b"no index")
    assert_same_weights(folder, random_weights(FLAT))


def in_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


FIRST, SECOND, NORM = (
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "model.norm.weight",
)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / SECOND).unlink(), f"{SECOND}: is missing"),
        (lambda f: in_index(f, lambda m: m.pop(NORM)), f"tensor {NORM} is not in {INDEX}"),
        (
            lambda f: in_index(f, lambda m: m.update(gone=FIRST)),
            f"{FIRST}: tensor gone is missing, {INDEX} says",
        ),
        (
            lambda f: in_index(f, lambda m: m.update(x="../x.bin")),
            'tensor x is in "../x.bin", must be a file inside',
        ),
        (
            lambda f: (f / SECOND).write_bytes((f / FIRST).read_bytes()),
            "is in pytorch_model-00001-of-00002.bin too",
        ),
        (lambda f: (f / INDEX).write_text("{}"), "weight_map is missing"),
    ],
)
def test_shards_and_index_must_agree(tmp_path, damage, words):
    folder = write_pickles(tmp_path / "m", FLAT, shards=2)
    damage(folder)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(folder)
    assert words in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("layout", ["pickle", "flax", "flax chunks", "meta 2 shards"])
def test_tensors_must_fit_the_config(tmp_path, layout):
    config, write = LAYOUTS[layout]
    weights = random_weights(config)
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"][
        :, :-2
    ].clone()
    with pytest.raises(CheckpointError, match=r"up_proj\.weight|w3\.weight") as refused:
        open_checkpoint(write(tmp_path / "m", weights=weights))
    assert refused.value.hint


@pytest.mark.parametrize("model_type", [*NEEDED, "my_own", None])
def test_other_families_are_refused_with_what_they_need(tmp_path, model_type):
    folder = write_checkpoint(tmp_path / "m", FLAT, model_type=model_type)
    with pytest.raises(ConfigError, match=r'model_type is .*, must be "llama"') as refused:
        open_checkpoint(folder)
    assert NEEDED.get(model_type, "only LLaMA's computation") in refused.value.hint


@pytest.mark.parametrize(
    "extra",
    [
        {"_name_or_path": "01-ai/Yi-6B", "rope_theta": 5000000.0, "rope_parameters": None, "pad_token_id": 0},
        {"_name_or_path": "HuggingFaceTB/SmolLM2-135M", "is_llama_config": True, "rope_interleaved": False},
        {"_name_or_path": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "pretraining_tp": 1, "use_cache": True},
        {"_name_or_path": "lmsys/vicuna-7b-v1.5", "max_length": 4096, "transformers_version": "4.31.0"},
        {"_name_or_path": "openlm-research/open_llama_3b", "torch_dtype": "float16"},
    ],
)
def test_names_do_not_matter(tmp_path, extra):
    folder = write_checkpoint(tmp_path / "m", FLAT, **extra)
    config = open_checkpoint(folder).config
    assert config.rope.rope_theta == extra.get("rope_theta", 10000.0)
    assert_same_weights(folder, random_weights(FLAT))
