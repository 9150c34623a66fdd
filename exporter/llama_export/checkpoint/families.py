"""Models that are not LLaMA: what each computes that LLaMA does not, so that a refusal can say it."""

from __future__ import annotations

# By model_type. Where a checkpoint uses nothing of it, only its name keeps it from being a LLaMA.
NEEDED = {
    "mistral": "a sliding window; where sliding_window is null it computes what LLaMA does, so a copy of "
    'config.json with model_type "llama" and architectures ["LlamaForCausalLM"] is right',
    "mixtral": "a choice of experts in every layer",
    "qwen2": "biases on q_proj, k_proj and v_proj but not on o_proj",
    "qwen2_moe": "biases on q_proj, k_proj and v_proj, and a choice of experts",
    "qwen3": "a norm on every query and key head",
    "qwen3_moe": "a norm on every query and key head, and a choice of experts",
    "gemma": "a scaled embedding, norms that add one to their weight, and GELU",
    "gemma2": "a scaled embedding, four norms a layer, capped logits and a sliding window",
    "gemma3_text": "a scaled embedding, norms on query and key heads, and a sliding window in most layers",
    "phi": "layers whose attention and MLP run side by side, LayerNorm, and partial rotary embedding",
    "phi3": "q, k and v, and gate and up, as one matrix each, and a sliding window",
    "falcon": "q, k and v as one matrix, and LayerNorm",
    "gpt_neox": "q, k and v as one matrix, LayerNorm, and partial rotary embedding",
    "gpt2": "learned positions in place of rotary embedding, and LayerNorm",
    "olmo": "norms without weights",
    "olmo2": "norms behind attention and MLP, and on queries and keys",
    "cohere": "layers whose attention and MLP run side by side, LayerNorm, and scaled logits",
    "granite": "multipliers on embedding, attention, residuals and logits",
    "stablelm": "LayerNorm and partial rotary embedding",
    "internlm2": "q, k and v as one matrix",
    "baichuan": "q, k and v as one matrix, and ALiBi in its larger sizes",
    "deepseek_v2": "compressed keys and values, and a choice of experts",
    "deepseek_v3": "compressed keys and values, and a choice of experts",
    "mllama": "an image encoder and layers that attend to it",
    "llama4": "a choice of experts, chunked attention and an image encoder",
    "llama4_text": "a choice of experts and chunked attention",
}


def what_is_needed(model_type: object) -> str:
    """Say what it would take to export a model of another family, as a hint."""
    needed = NEEDED.get(model_type) if isinstance(model_type, str) else None
    if needed is None:
        return "only LLaMA's computation is exported; what this model adds to it is not known here"
    return f"it would take {needed}"
