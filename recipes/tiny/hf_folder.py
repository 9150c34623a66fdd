"""Write the trained model as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from llama_export.model import LlamaConfig, LlamaForCausalLM
from llama_export.tokenizer import write_tokenizer_json

LICENSE = Path(__file__).parents[2] / "LICENSE"
BOS_ID, EOS_ID = 1, 2


def write_folder(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config, weights in bfloat16, tokenizer files and licence beside ``tokenizer.model``.

    Args:
        model: The trained model, in float32.
        folder: Holds ``tokenizer.model`` already.
    """
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    # Not save_file, which makes a file that its owner alone may read.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _write_json(folder / "config.json", hf_config(model.config))
    _write_json(folder / "generation_config.json", _generation_config())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(model.config))
    write_tokenizer_json(folder / "tokenizer.model", folder / "tokenizer.json")
    shutil.copyfile(LICENSE, folder / "LICENSE")


def hf_config(config: LlamaConfig) -> dict[str, Any]:
    """Say the architecture as transformers 5 writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "dtype": "bfloat16",
        "eos_token_id": EOS_ID,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": None,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_theta": config.rope.rope_theta, "rope_type": config.rope.rope_type},
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": BOS_ID,
        "do_sample": True,
        "eos_token_id": EOS_ID,
        # The vocabulary has no padding token; </s> may stand in, as what follows it is never read.
        "pad_token_id": EOS_ID,
        # Meta's own defaults for Llama 2 and 3.
        "temperature": 0.6,
        "top_p": 0.9,
    }


def _tokenizer_config(config: LlamaConfig) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
