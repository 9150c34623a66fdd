"""Where every weight will stand: link and beside refer to the checkpoint's bytes, copy lays them out anew."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from safetensors import safe_open
from tiny_checkpoints import CONFIGS, DTYPES, link_like_the_hub, random_weights, write_checkpoint

from llama_export.checkpoint import open_checkpoint
from llama_export.checkpoint.computed import transpose
from llama_export.errors import OptionError
from llama_export.weights import plan_weights, write_weights
from llama_export.weights.plan import WEIGHT_MODES

CONFIG = CONFIGS["gqa"]


@pytest.fixture
def single(tmp_path):
    return open_checkpoint(write_checkpoint(tmp_path / "single", CONFIG, "bfloat16"))


@pytest.fixture
def sharded(tmp_path):
    return open_checkpoint(write_checkpoint(tmp_path / "sharded", CONFIG, "bfloat16", shards=3))


def places(plan):
    return [(w.location, w.offset, w.nbytes) for w in plan.weights.values()]


@pytest.mark.parametrize("mode", ["link", "beside"])
@pytest.mark.parametrize("which", ["single", "sharded"])
def test_linked_places_are_the_checkpoints_own_bytes(request, mode, which):
    checkpoint = request.getfixturevalue(which)
    plan = plan_weights(checkpoint, mode, None)
    assert set(plan.weights) == set(CONFIG.tensor_shapes())
    for weight in plan.weights.values():
        file = plan.data_files[weight.location]
        data = file.read_bytes()[weight.offset : weight.offset + weight.nbytes]
        with safe_open(file, "pt") as stored:
            tensor = stored.get_tensor(weight.source.name)
        assert weight.dtype == tensor.dtype == torch.bfloat16
        assert data == tensor.view(-1).view(torch.uint8).numpy().tobytes()
    assert plan.precision == "bfloat16"
    assert plan.total_bytes == sum(path.stat().st_size for path in checkpoint.weight_files)


def test_names_of_linked_files_are_those_that_transformers_js_counts(sharded):
    plan = plan_weights(sharded, "link", None)
    assert plan.model_name == "model.onnx"
    assert list(plan.data_files) == ["model.onnx_data", "model.onnx_data_1", "model.onnx_data_2"]
    assert list(plan.data_files.values()) == list(sharded.weight_files)


def test_beside_keeps_the_checkpoints_names(sharded):
    plan = plan_weights(sharded, "beside", None)
    assert list(plan.data_files) == [path.name for path in sharded.weight_files]


def test_links_of_a_hub_snapshot_are_resolved(tmp_path):
    written = write_checkpoint(tmp_path / "written", CONFIG, shards=2)
    checkpoint = open_checkpoint(link_like_the_hub(written, tmp_path / "cache"))
    plan = plan_weights(checkpoint, "link", None)
    for file in plan.data_files.values():
        assert file.parent.name == "blobs"
        assert not file.is_symlink()


@pytest.mark.parametrize("precision", [*DTYPES, None])
def test_copied_weights_are_aligned_ordered_and_do_not_overlap(sharded, precision):
    plan = plan_weights(sharded, "copy", precision)
    dtype = DTYPES[precision or "bfloat16"]
    end = 0
    order = []
    for name, weight in plan.weights.items():
        assert weight.offset % 64 == 0
        assert end <= weight.offset < end + 64
        assert weight.dtype == dtype
        assert weight.nbytes == weight.source.nbytes // 2 * dtype.itemsize
        end = weight.offset + weight.nbytes
        order.append((sharded.weight_files.index(weight.source.file), weight.source.offset))
        assert name == weight.source.name
    assert order == sorted(order)
    assert plan.total_bytes == end
    assert list(plan.data_files.values()) == [None]
    assert plan.precision == (precision or "bfloat16")


def test_large_tensors_start_on_a_page_of_64_kib(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=8191, num_hidden_layers=1)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "large", config))
    plan = plan_weights(checkpoint, "copy", None)
    large = [w for w in plan.weights.values() if w.nbytes >= 1 << 20]
    assert len(large) == 2
    assert all(w.offset % (1 << 16) == 0 for w in large)


@pytest.mark.parametrize(
    ("mode", "precision", "model", "data"),
    [
        ("copy", "float16", "model_fp16.onnx", "model_fp16.onnx_data"),
        ("copy", "float32", "model.onnx", "model.onnx_data"),
        ("copy", "bfloat16", "model.onnx", "model.onnx_data"),
        ("link", None, "model.onnx", "model.onnx_data"),
    ],
)
def test_file_names_follow_the_precision(single, mode, precision, model, data):
    plan = plan_weights(single, mode, precision)
    assert (plan.model_name, list(plan.data_files)) == (model, [data])


@pytest.mark.parametrize("mode", ["link", "beside"])
def test_linked_weights_cannot_change_their_precision(single, mode):
    assert plan_weights(single, mode, "bfloat16").precision == "bfloat16"
    with pytest.raises(OptionError, match=f"--weights {mode} keeps the checkpoint's bfloat16") as refused:
        plan_weights(single, mode, "float32")
    assert "--weights copy" in refused.value.hint


@pytest.mark.parametrize("mode", WEIGHT_MODES)
def test_a_checkpoint_of_two_dtypes_keeps_both(tmp_path, mode):
    weights = {
        name: value if value.ndim == 1 else value.bfloat16() for name, value in random_weights(CONFIG).items()
    }
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "mixed", CONFIG, "bfloat16", weights=weights))
    plan = plan_weights(checkpoint, mode, None)
    assert plan.precision == "bfloat16"
    kept = {name: weight.dtype for name, weight in plan.weights.items()}
    assert kept == {name: value.dtype for name, value in weights.items()}


def test_a_plan_reads_no_weight(single):
    """The headers are enough: what follows them may be gone."""
    file = single.weight_files[0]
    first = min(tensor.offset for tensor in single.tensors.values())
    with file.open("r+b") as stream:
        stream.truncate(first)
    assert len(plan_weights(single, "copy", "float32").weights) == len(CONFIG.tensor_shapes())


@pytest.fixture
def computed(single):
    """A checkpoint one of whose tensors is transposed on disk."""
    name = "model.layers.0.mlp.up_proj.weight"
    turned = transpose(name, dataclasses.replace(single.tensors[name], shape=(42, 44)))
    return dataclasses.replace(single, tensors=single.tensors | {name: turned})


def test_what_cannot_be_linked_is_copied_unless_a_link_was_asked_for(single, computed):
    assert plan_weights(single, None, None).mode == "link"
    plan = plan_weights(computed, None, None)
    assert (plan.mode, plan.precision) == ("copy", "bfloat16")
    for mode in ("link", "beside"):
        with pytest.raises(OptionError, match=rf"--weights {mode} .*up_proj.weight must be transposed") as no:
            plan_weights(computed, mode, None)
        assert "--weights copy" in no.value.hint


def test_computed_weights_are_written_and_their_files_hashed_once(tmp_path, single, computed):
    plan, done = plan_weights(computed, None, None), []
    digests, written = write_weights(computed, plan, tmp_path, done.append)
    whole = single.weight_files[0].read_bytes()
    assert [d.sha256 for d in digests.values()] == [hashlib.sha256(whole).hexdigest()]
    assert sum(done) == len(whole)
    data = (tmp_path / "model.onnx_data").read_bytes()
    assert written["model.onnx_data"].sha256 == hashlib.sha256(data).hexdigest()
    for name, weight in plan.weights.items():
        want = computed.tensors[name].read().view(torch.int16).numpy().tobytes()
        assert data[weight.offset : weight.offset + weight.nbytes] == want
