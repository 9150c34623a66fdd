"""Meta's ``params.json`` -> ``config.json`` as Hugging Face would have it: every fact read, none guessed.

What Meta keeps in its code rather than in the file follows from what is in it:

- ``max_position_embeddings``: ``max_seq_len`` where it is given; else 131072 with ``use_scaled_rope`` (Llama
  3.1 to 3.3), 8192 with rope_theta 500000 (Llama 3), 16384 with 1000000 (Code Llama); without rope_theta 2048
  with norm_eps 1e-6 or the shape of 65B (Llama 1), else 4096 (Llama 2).
- The factor of ``use_scaled_rope``: ``rope_scaling_factor`` where it is given, else that of the published
  model with this width and depth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from llama_export.checkpoint.fields import Fields
from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, read_json_object, reading, shown_name
from llama_export.errors import CheckpointError, ConfigError

PARAMS_FILE = "params.json"
_KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier"),
    *("norm_eps", "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size"),
}
# (dim, n_layers): Llama 3.1 8B, 70B (3.3 too), 405B; 3.2 1B, 3B.
_SCALING_FACTORS = {(4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0, (2048, 16): 32.0, (3072, 28): 32.0}
_POSITIONS_BY_THETA = {500000.0: 8192, 1000000.0: 16384}
_LLAMA1_65B = (8192, 80)
_RANK_LINE, _LONGEST_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?"), 4096
_SPECIAL_TOKENS = 256


@dataclass(frozen=True)
class Sizes:
    """What the shards themselves say: sizes of the whole model, and whether it has a head of its own."""

    vocab_size: int
    intermediate_size: int
    tied: bool
    dtype: str


def read_params(path: Path) -> Fields:
    """Read ``params.json``; some hold everything in a ``model`` object.

    Raises:
        CheckpointError: It cannot be read, or is no JSON object.
        ConfigError: It has a key that Llama 1 to 3.3 do not have.
    """
    values = read_json_object(path, PARAMS_FILE)
    if isinstance(values.get("model"), dict):
        values = values["model"]
    for key in values:
        if key not in _KNOWN:
            raise ConfigError(
                f"{PARAMS_FILE}: {shown_name(key)} is no parameter of Llama 1 to 3.3, known are "
                + ", ".join(sorted(_KNOWN)),
                "if it does not change what the model computes, remove it from a copy of the file",
            )
    return Fields(values, file=PARAMS_FILE)


def hugging_face_config(params: Fields, sizes: Sizes) -> dict[str, Any]:
    """Say in ``config.json``'s terms, which transformers 4 and 5 both read, what Meta's file says.

    Args:
        params: What ``read_params`` returned.
        sizes: Of the shards.

    Raises:
        ConfigError: A parameter is missing, malformed, or contradicts the shards.
    """
    dim, heads = params.positive_int("dim"), params.positive_int("n_heads")
    if dim % heads:
        raise params.wrong("dim", f"must be a multiple of n_heads, {heads}")
    kv_heads = params.positive_int("n_kv_heads", absent=heads)
    if heads % kv_heads:
        raise params.wrong("n_kv_heads", f"must divide n_heads, {heads}")
    if params.get("vocab_size") not in (None, -1, sizes.vocab_size):
        raise params.wrong("vocab_size", f"must be {sizes.vocab_size}, the embedding's rows, or -1")
    _check_intermediate_size(params, dim, sizes)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": _max_positions(params),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": params.positive_int("n_layers"),
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": params.positive_float("norm_eps"),
        "rope_scaling": _rope_scaling(params),
        "rope_theta": params.positive_float("rope_theta", absent=10000.0),
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": sizes.dtype,
        "vocab_size": sizes.vocab_size,
    }


def _check_intermediate_size(params: Fields, dim: int, sizes: Sizes) -> None:
    """Meta computes the width of the MLP; the shards have it too, and both must agree."""
    if params.get("multiple_of") is None:
        return
    multiple = params.positive_int("multiple_of")
    width = int(params.positive_float("ffn_dim_multiplier", absent=1.0) * int(2 * 4 * dim / 3))
    needed = -(-width // multiple) * multiple
    if needed != sizes.intermediate_size:
        raise params.wrong(
            "multiple_of",
            f"which with dim and ffn_dim_multiplier makes an MLP of {needed}, "
            f"the shards have {sizes.intermediate_size}",
            "params.json and the shards do not belong together; download both again",
        )


def _max_positions(params: Fields) -> int:
    if params.get("max_seq_len") is not None:
        return params.positive_int("max_seq_len")
    if params.flag("use_scaled_rope"):
        return 131072
    theta = params.positive_float("rope_theta", absent=10000.0)
    if theta in _POSITIONS_BY_THETA:
        return _POSITIONS_BY_THETA[theta]
    if theta != 10000.0:
        raise params.wrong(
            "max_seq_len", f"and rope_theta {theta:g} is no published model's", "add it to a copy of the file"
        )
    is_65b = (params.get("dim"), params.get("n_layers")) == _LLAMA1_65B and params.get("n_kv_heads") is None
    return 2048 if params.positive_float("norm_eps") == 1e-6 or is_65b else 4096


def _rope_scaling(params: Fields) -> dict[str, Any] | None:
    if not params.flag("use_scaled_rope"):
        return None
    shape = params.positive_int("dim"), params.positive_int("n_layers")
    if params.get("rope_scaling_factor") is None and shape not in _SCALING_FACTORS:
        raise params.wrong(
            "rope_scaling_factor",
            f"but use_scaled_rope is true; no published model has dim {shape[0]} and n_layers {shape[1]}",
            "add it to a copy of the file: 8 for Llama 3.1 and 3.3, 32 for Llama 3.2",
        )
    return {
        "factor": params.positive_float("rope_scaling_factor", absent=_SCALING_FACTORS.get(shape)),
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


def special_ids(tokenizer: Path | None, vocab_size: int) -> dict[str, Any]:
    """Which tokens begin and end a text, as ``config.json`` says it; nothing where there is no tokenizer.

    Llama 3's ``tokenizer.model`` holds ranks alone, and Meta's code puts 256 special tokens behind them. A
    text ends at end_of_text; those of instruction-tuned models at eom_id or eot_id, which others never write.

    Raises:
        CheckpointError: The file cannot be read, or is no tokenizer.
    """
    if tokenizer is None:
        return {}
    with reading(tokenizer.name), tokenizer.open("rb") as stream:
        line = stream.readline(_LONGEST_RANK_LINE)
    if _RANK_LINE.fullmatch(line):
        first = vocab_size - _SPECIAL_TOKENS
        return {"bos_token_id": first, "eos_token_id": [first + 1, first + 8, first + 9]}
    try:
        model = SentencePieceProcessor(model_file=str(tokenizer))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{tokenizer.name}: is not a SentencePiece model", DOWNLOAD_AGAIN) from error
    ids = {"bos_token_id": model.bos_id(), "eos_token_id": model.eos_id()}
    return {key: token for key, token in ids.items() if token >= 0}
