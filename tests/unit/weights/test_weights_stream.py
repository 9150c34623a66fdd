"""One pass over the checkpoint's bytes: hashed, checked, cast and written, in pieces."""

from __future__ import annotations

import hashlib

import pytest
import torch
from tiny_checkpoints import CONFIGS, DTYPES, random_weights, write_checkpoint

from llama_export.checkpoint import open_checkpoint, tensor
from llama_export.errors import CheckpointError, OptionError
from llama_export.weights import plan_weights, stream, write_weights

CONFIG = CONFIGS["gqa"]
UNNEEDED = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((8,), float(i)) for i in range(3)}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seen(folder):
    """Bytes, mode and time of last change of every file."""
    return {p.name: (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime_ns) for p in folder.iterdir()}


def write(folder, target, mode="copy", precision=None):
    """Open, plan and write; what the plan was, and what was returned."""
    checkpoint = open_checkpoint(folder)
    plan = plan_weights(checkpoint, mode, precision)
    target.mkdir()
    done = []
    digests = write_weights(checkpoint, plan, target, done.append)
    assert sum(done) == sum(path.stat().st_size for path in checkpoint.weight_files)
    return plan, *digests


@pytest.fixture(params=["whole", "pieces"])
def pieces(request, monkeypatch):
    """Everything in one piece, and cut into many: single rows of matrices, a few values of vectors."""
    if request.param == "pieces":
        monkeypatch.setattr(tensor, "PIECE_BYTES", 100)
        monkeypatch.setattr(stream, "PIECE_BYTES", 100)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_copies_are_torchs_own_casts(tmp_path, stored, wanted, shards):
    folder = write_checkpoint(tmp_path / "from", CONFIG, stored, shards=shards)
    plan, sources, written = write(folder, tmp_path / "to", precision=wanted)
    assert sources == {
        path.resolve(): stream.FileDigest(path.stat().st_size, sha256(path))
        for path in folder.glob("*.safetensors")
    }
    (location,) = written
    file = tmp_path / "to" / location
    assert written[location] == stream.FileDigest(file.stat().st_size, sha256(file))
    assert file.stat().st_size == plan.total_bytes
    data, end = file.read_bytes(), 0
    tensors = random_weights(CONFIG, DTYPES[stored])
    for name, weight in plan.weights.items():
        want = tensors[name].to(DTYPES[wanted]).flatten().view(torch.uint8).numpy().tobytes()
        assert data[weight.offset : weight.offset + weight.nbytes] == want, name
        assert not any(data[end : weight.offset])  # gaps are zeros
        end = weight.offset + weight.nbytes


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("mode", ["link", "beside"])
def test_links_are_hashed_and_nothing_is_written(tmp_path, mode):
    folder = write_checkpoint(tmp_path / "from", CONFIG, shards=2, unneeded=UNNEEDED)
    _, sources, written = write(folder, tmp_path / "to", mode)
    assert written == {}
    assert not list((tmp_path / "to").iterdir())
    assert {path.name: digest.sha256 for path, digest in sources.items()} == {
        path.name: sha256(path) for path in folder.glob("*.safetensors")
    }


@pytest.mark.usefixtures("pieces")
def test_unneeded_tensors_are_hashed_but_not_written(tmp_path):
    plain = write_checkpoint(tmp_path / "plain", CONFIG)
    with_tables = write_checkpoint(tmp_path / "with_tables", CONFIG, unneeded=UNNEEDED)
    _, _, first = write(plain, tmp_path / "first")
    _, sources, second = write(with_tables, tmp_path / "second")
    assert first == second
    file = with_tables / "model.safetensors"
    assert sources == {file.resolve(): stream.FileDigest(file.stat().st_size, sha256(file))}


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("mode", ["link", "copy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("stored", DTYPES)
def test_nonfinite_weights_are_refused_by_name(tmp_path, mode, value, name, stored):
    weights = random_weights(CONFIG, DTYPES[stored])
    weights[name].view(-1)[-1] = value
    folder = write_checkpoint(tmp_path / "from", CONFIG, stored, weights=weights)
    with pytest.raises(CheckpointError, match=f"model.safetensors: tensor {name} holds NaN or infinite") as e:
        write(folder, tmp_path / "to", mode)
    assert e.value.hint


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_what_overflows_float16_is_refused_with_its_value(tmp_path, stored):
    weights = random_weights(CONFIG, DTYPES[stored])
    name = "model.layers.2.mlp.down_proj.weight"
    weights[name][3, 5] = -98304.0
    folder = write_checkpoint(tmp_path / "from", CONFIG, stored, weights=weights)
    with pytest.raises(OptionError, match=f"tensor {name} holds 98304, float16 ends at 65504") as refused:
        write(folder, tmp_path / "to", precision="float16")
    assert "bfloat16 or float32" in refused.value.hint
    write(folder, tmp_path / "exact", precision="float32")


def test_float16_keeps_what_it_can_hold(tmp_path):
    weights = random_weights(CONFIG)
    weights["model.norm.weight"][:3] = torch.tensor([65504.0, -65504.0, 65519.0])
    folder = write_checkpoint(tmp_path / "from", CONFIG, weights=weights)
    write(folder, tmp_path / "to", precision="float16")


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, mode):
    folder = write_checkpoint(tmp_path / "from", CONFIG)
    checkpoint = open_checkpoint(folder)
    plan = plan_weights(checkpoint, mode, None)
    file = checkpoint.weight_files[0]
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 10)
    with pytest.raises(CheckpointError, match=r"model.safetensors: ends early"):
        write_weights(checkpoint, plan, tmp_path, lambda nbytes: None)


def test_progress_never_goes_back(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "from", CONFIG, shards=2))
    steps = []
    write_weights(checkpoint, plan_weights(checkpoint, "link", None), tmp_path, steps.append)
    assert min(steps) > 0


def test_the_checkpoint_is_only_read(tmp_path):
    folder = write_checkpoint(tmp_path / "from", CONFIG, shards=2)
    for path in folder.iterdir():
        path.chmod(0o440)
    before = seen(folder)
    write(folder, tmp_path / "to", precision="float16")
    assert seen(folder) == before
