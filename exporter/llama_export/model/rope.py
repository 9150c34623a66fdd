"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in Hugging Face's half-split layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llama_export.model.config import LlamaConfig, RopeConfig


def inverse_frequencies(config: LlamaConfig) -> Tensor:
    """Angle per position of each rotated pair.

    Args:
        config: The checkpoint's architecture; its ``rope`` chooses the scaling.

    Returns:
        [D / 2] float32, radians per position; for ``longrope`` [2, D / 2], of short and of long texts.
    """
    rope, D = config.rope, config.head_dim
    # A real device even under `with torch.device("meta")`: these are facts, not weights.
    exponents = torch.arange(0, D, 2, dtype=torch.int64, device="cpu").float() / D
    wavelengths = rope.rope_theta**exponents  # in positions per radian
    inv_freq = 1.0 / wavelengths
    match rope.rope_type:
        case "linear":
            return inv_freq / rope.factor
        case "llama3":
            return scale_llama3(inv_freq, rope)
        case "yarn":
            kept = _yarn_kept(rope, D)
            return inv_freq / rope.factor * (1 - kept) + inv_freq * kept
        case "longrope":
            divisors = torch.tensor([rope.short_factor, rope.long_factor], device="cpu")
            return 1.0 / (divisors * wavelengths)
        case _:  # dynamic is unscaled within the original context: see frequencies_for
            return inv_freq


def frequencies_for(lengths: Tensor, inv_freq: Tensor, config: LlamaConfig) -> Tensor:
    """Angle per position of each rotated pair, in texts of the given lengths.

    Args:
        lengths: [B, T or 1] int64: how long the text is that each token is rotated for.
        inv_freq: What ``inverse_frequencies`` returns.
        config: Its ``rope`` decides whether the length matters at all.

    Returns:
        [B, T or 1, D / 2] float32; [D / 2] where the length does not matter.
    """
    rope, D = config.rope, config.head_dim
    original = rope.original_max_position_embeddings
    match rope.rope_type:
        case "longrope":
            return torch.where((lengths > original).unsqueeze(-1), inv_freq[1], inv_freq[0])
        case "dynamic":
            # NTK-aware scaling raises theta to theta * growth**(D / (D - 2)): the longest wave grows by
            # `growth`, the shortest not at all.
            growth = 1 + rope.factor * (lengths - original).clamp(min=0).float() / original
            exponents = torch.arange(0, D, 2, dtype=torch.float32, device=lengths.device) / (D - 2)
            return inv_freq * growth.unsqueeze(-1) ** -exponents
        case _:
            return inv_freq


def attention_factor(config: LlamaConfig) -> float:
    """What cosine and sine are multiplied by, so that attention stays as peaked in a stretched context."""
    rope = config.rope
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.rope_type == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return _yarn_scale(rope.factor, rope.mscale) / _yarn_scale(rope.factor, rope.mscale_all_dim)
        return _yarn_scale(rope.factor, 1.0)
    if rope.rope_type == "longrope" and rope.factor > 1:
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))
    return 1.0


def _yarn_scale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_kept(rope: RopeConfig, D: int) -> Tensor:
    """How much of each frequency YaRN leaves alone (Peng et al. 2023, arXiv 2309.00071, section 3.2).

    Returns:
        [D / 2] float32: 1 for waves that turn at least ``beta_fast`` times within the original context, 0
        for those that turn at most ``beta_slow`` times, and a straight line over the pairs in between.
    """

    def pair_that_turns(times: float) -> float:
        turns = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return D * math.log(turns) / (2 * math.log(rope.rope_theta))

    first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    # transformers clips the last one to D - 1, not to D / 2 - 1; so do checkpoints made with it.
    first, last = max(first, 0), min(last, D - 1)
    if first == last:
        last += 0.001
    pairs = torch.arange(D // 2, dtype=torch.float32, device="cpu")
    return 1 - ((pairs - first) / (last - first)).clamp(0, 1)


def scale_llama3(inv_freq: Tensor, rope: RopeConfig) -> Tensor:
    """Stretch long wavelengths as Llama 3.1 does (Meta's reference implementation, ``apply_scaling``).

    Args:
        inv_freq: [D / 2] float32, unscaled.
        rope: Scaling parameters.

    Returns:
        [D / 2] float32: wavelengths longer than original / low_freq_factor are stretched by ``factor``,
        those shorter than original / high_freq_factor are kept, and in between the two are blended.
    """
    original = rope.original_max_position_embeddings
    wavelength = 2 * math.pi / inv_freq
    blend = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * inv_freq / rope.factor + blend * inv_freq
    scaled = torch.where(wavelength > original / rope.low_freq_factor, inv_freq / rope.factor, blended)
    return torch.where(wavelength < original / rope.high_freq_factor, inv_freq, scaled)


def cos_sin(position_ids: Tensor, inv_freq: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles.

    Args:
        position_ids: [...] int64.
        inv_freq: [D / 2] float32, or [..., D / 2] where every position has its own.
        factor: Multiplies both; what ``attention_factor`` returns.

    Returns:
        Two tensors [..., D / 2] float32.
    """
    angles = position_ids.unsqueeze(-1).float() * inv_freq  # [..., D / 2]
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) of every head by its position's angle.

    Args:
        states: [B, H, T, D] queries or keys.
        cos: [B, T, D / 2] float32.
        sin: [B, T, D / 2] float32.

    Returns:
        [B, H, T, D] in the dtype of ``states``.
    """
    half = states.shape[-1] // 2
    first, second = states[..., :half].float(), states[..., half:].float()  # [B, H, T, D / 2] each
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [B, 1, T, D / 2]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(states.dtype)
