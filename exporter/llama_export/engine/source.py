"""A bundle as the source of an engine: its own weights and config are all that is needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llama_export.checkpoint import Checkpoint
from llama_export.checkpoint.config import parse_config
from llama_export.checkpoint.fields import CONFIG_FILE, Fields
from llama_export.checkpoint.head import parse_head
from llama_export.checkpoint.json_file import read_json_object
from llama_export.checkpoint.tensor import StoredTensor
from llama_export.engine.options import DTYPES, EngineOptions
from llama_export.errors import OptionError
from llama_export.parity.stored_weights import stored_weights
from llama_export.weights import WeightPlan, plan_weights
from llama_export.weights.precision import PRECISIONS
from llama_runtime.manifest import Manifest


def open_bundle(folder: Path, manifest: Manifest) -> Checkpoint:
    """Read a bundle as the checkpoint that it holds.

    Raises:
        OptionError: Weights that are not its own or not floats, or a learned prompt.
        CheckpointError: Its config.json is not what was published.
    """
    check_source(folder, manifest)
    raw = read_json_object(folder / CONFIG_FILE, CONFIG_FILE)
    config = parse_config(raw)
    stored = stored_weights(folder, manifest, config)
    config = dataclasses.replace(config, head=parse_head(Fields(raw), stored, None))
    tensors: dict[str, StoredTensor] = {}
    for name in config.tensor_shapes():
        tensor = stored[name]
        if not isinstance(tensor, StoredTensor):
            raise _not_floats(folder, "partly in blocks")
        tensors[name] = tensor
    return Checkpoint(
        folder=folder,
        config=config,
        config_file=folder / CONFIG_FILE,
        raw_config=raw,
        dtype=PRECISIONS[manifest.precision],
        tensors=dict(tensors),
        weight_files=tuple(dict.fromkeys(tensor.file for tensor in tensors.values())),
        companions=(),
        generation_config={},
        notes=(),
    )


def check_source(folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle that no engine can be made of.

    Raises:
        OptionError: Weights that are not its own or not floats, embeddings as input, or a learned prompt.
    """
    if manifest.weights == "beside":
        raise OptionError(
            f"{folder}: is a checkpoint with its bundle beside, to which nothing is added",
            "name another output for the checkpoint: llama-export trt CHECKPOINT OUTPUT",
        )
    if manifest.precision not in PRECISIONS:
        raise _not_floats(folder, manifest.precision)
    if manifest.soft_prompt is not None:
        raise OptionError(
            f"{folder}: begins every text with a learned prompt, which engines do not have yet",
            "export without it, or run the bundle with --device cpu",
        )
    if manifest.embed_tokens is not None:
        raise OptionError(
            f"{folder}: takes embeddings in place of token ids, engines take ids alone",
            "export a bundle without --inputs-embeds",
        )


def _not_floats(folder: Path, found: str) -> OptionError:
    return OptionError(
        f"{folder}: the weights are {found}, engines are made of {', '.join(PRECISIONS)}",
        "name the checkpoint itself, or a bundle that was exported without --precision int8 or int4",
    )


def plan_engine_weights(source: Checkpoint, options: EngineOptions, name: str) -> WeightPlan:
    """Decide where the weights of an engine's graph stand: linked where they are what it computes in.

    Args:
        source: From ``open_bundle``.
        options: Their ``precision`` is what is wanted.
        name: Of the engine, and so of its files.
    """
    dtype = DTYPES[options.precision]
    tensors = source.tensors.values()
    same = all(isinstance(t, StoredTensor) and t.dtype == PRECISIONS[dtype] for t in tensors)
    plan = plan_weights(source, "link", None) if same else plan_weights(source, "copy", dtype)
    named = {location: location.replace(plan.model_name, f"{name}.onnx", 1) for location in plan.data_files}
    return dataclasses.replace(
        plan,
        model_name=f"{name}.onnx",
        data_files={named[location]: file for location, file in plan.data_files.items()},
        weights={
            key: dataclasses.replace(weight, location=named[weight.location])
            for key, weight in plan.weights.items()
        },
    )
