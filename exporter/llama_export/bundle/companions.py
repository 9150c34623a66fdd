"""The small files around the graph, so that four runtimes open the bundle as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llama_export.checkpoint import Checkpoint
from llama_export.errors import CheckpointError
from llama_export.graph import contract
from llama_export.model.attention import AttentionPath
from llama_export.tokenizer import FLAT_FILE, open_source, write_flat_file, write_tokenizer_files
from llama_export.tokenizer.files import WRITTEN
from llama_export.weights import WeightPlan

SOFT_PROMPT_FILE = "soft_prompt.safetensors"


def write_companions(
    checkpoint: Checkpoint,
    plan: WeightPlan,
    path: AttentionPath,
    folder: Path,
    extras: contract.Extras = contract.NO_EXTRAS,
) -> None:
    """Write everything but graph, weights and manifest.

    Args:
        checkpoint: The source; its templates and licences travel along unchanged.
        plan: Names the graph and its data files.
        path: Attention path, on which genai's choice of cache depends.
        folder: The staged bundle.
        extras: Of a graph that takes embeddings, genai is told nothing: it feeds token ids; nor of one that
            computes in float16, which has not been tried with it.
    """
    copy_companions(checkpoint, folder)
    write_flat_tokenizer(checkpoint, folder)
    write_json(folder / "config.json", _config(checkpoint, plan))
    fits = not extras.inputs_embeds and extras.compute == "float32"
    if checkpoint.config.generates and fits and checkpoint.soft_prompt is None:
        write_json(folder / "genai_config.json", genai_config(checkpoint, plan, path))


def copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy what travels along unchanged, and write the tokenizer's files as all runtimes read them."""
    tokenizer = open_source(checkpoint)
    if tokenizer is not None:
        write_tokenizer_files(tokenizer, folder)
    for source in checkpoint.companions:
        if source.name not in WRITTEN:
            shutil.copyfile(source, folder / source.name)


def write_flat_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the C++ runtime's vocabulary, where the tokenizer is of a kind that it has."""
    tokenizer = open_source(checkpoint)
    if tokenizer is not None:
        write_flat_file(tokenizer, folder / FLAT_FILE)


def _config(checkpoint: Checkpoint, plan: WeightPlan) -> dict[str, Any]:
    """The checkpoint's config.json, with what transformers.js must know of the data files."""
    settings = {"use_external_data_format": {plan.model_name: len(plan.data_files)}}
    return checkpoint.raw_config | {
        # The graph's, which --task may have chosen: other runtimes pick their class by it.
        "architectures": [checkpoint.config.architecture],
        "transformers.js_config": settings,
    }


def genai_config(checkpoint: Checkpoint, plan: WeightPlan, path: AttentionPath) -> dict[str, Any]:
    """What onnxruntime-genai reads instead of config.json."""
    config, ids = checkpoint.config, token_ids(checkpoint)
    # Where the model has no padding token, the first EOS stands in, as in genai's own exports.
    pad = ids["pad"] if ids["pad"] is not None else next(iter(ids["eos"]), None)
    known = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"] or None, "pad_token_id": pad}
    return {
        "model": {
            "type": "llama",
            **{key: value for key, value in known.items() if value is not None},
            "context_length": config.context_length,
            "vocab_size": config.vocab_size,
            "decoder": {
                "filename": f"onnx/{plan.model_name}",
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
                "session_options": {"provider_options": []},
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": contract.PAST_KEY.replace("{i}", "%d"),
                    "past_value_names": contract.PAST_VALUE.replace("{i}", "%d"),
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": contract.PRESENT_KEY.replace("{i}", "%d"),
                    "present_value_names": contract.PRESENT_VALUE.replace("{i}", "%d"),
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": config.context_length,
            "num_beams": 1,
            # One buffer as past and present: only GroupQueryAttention can write in place.
            "past_present_share_buffer": path == "flash",
        },
    }


def token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """Special ids, generation_config.json before config.json: ``bos``, ``eos`` (a list), ``pad``.

    Raises:
        CheckpointError: One is no token id, or not in the vocabulary.
    """
    eos = _ids(checkpoint, "eos_token_id")
    bos = _ids(checkpoint, "bos_token_id")
    pad = _ids(checkpoint, "pad_token_id", outside_is_none=True)
    return {"bos": bos[0] if bos else None, "eos": eos, "pad": pad[0] if pad else None}


def _ids(checkpoint: Checkpoint, key: str, *, outside_is_none: bool = False) -> list[int]:
    """One special token's ids; only EOS may have several."""
    named, value = "generation_config.json", checkpoint.generation_config.get(key)
    if value is None:
        named, value = "config.json", checkpoint.raw_config.get(key)
    ids = value if isinstance(value, list) and key == "eos_token_id" else [] if value is None else [value]
    size = checkpoint.config.vocab_size
    # Conversions of Llama 1 say pad_token_id -1, or one more than there are, where there is none.
    if outside_is_none and all(type(token) is int and not 0 <= token < size for token in ids):
        return []
    for token in ids:
        if type(token) is not int or not 0 <= token < size:
            raise CheckpointError(
                f"{named}: {key} is {json.dumps(value)}, must be a token id from 0 to {size - 1}",
                "correct the value, or download the file again",
            )
    return ids


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file as a person would like to read it."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
