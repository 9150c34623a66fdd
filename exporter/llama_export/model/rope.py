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
        [D / 2] float32, radians per position.
    """
    # A real device even under `with torch.device("meta")`: these are facts, not weights.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    inv_freq = 1.0 / config.rope.rope_theta**exponents
    return scale_llama3(inv_freq, config.rope) if config.rope.rope_type == "llama3" else inv_freq


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


def cos_sin(position_ids: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles.

    Args:
        position_ids: [...] int64.
        inv_freq: [D / 2] float32.

    Returns:
        Two tensors [..., D / 2] float32.
    """
    angles = position_ids.unsqueeze(-1).float() * inv_freq  # [..., D / 2]
    return angles.cos(), angles.sin()


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
