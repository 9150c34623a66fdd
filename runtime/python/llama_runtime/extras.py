"""What a bundle gives besides logits and cache: hidden states and attention weights, by their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llama_runtime.errors import OptionError
from llama_runtime.manifest import Manifest, TensorSpec

LAST = "last_hidden_state"
_STATES, _ATTENTIONS = "hidden_states.", "attentions."
_NEW, _TOTAL = "sequence_length", "total_sequence_length"

Outputs = dict[str, np.ndarray]


def hidden_state_names(manifest: Manifest) -> list[str]:
    """The outputs that are hidden states, in the order of computation: the last is behind the final norm."""
    return [spec.name for spec in manifest.outputs if spec.name == LAST or spec.name.startswith(_STATES)]


def check_outputs(manifest: Manifest, names: Sequence[str]) -> tuple[str, ...]:
    """Refuse outputs that are not extras of this bundle.

    Raises:
        OptionError: One is not, by name.
    """
    known = hidden_state_names(manifest) + attention_names(manifest)
    for name in names:
        if name not in known:
            has = ", ".join(known) or "none besides the logits"
            raise OptionError(
                f"outputs names {name!r}, the bundle has {has}",
                "export with --hidden-states last or all, or --attentions",
            )
    return tuple(names)


def attention_names(manifest: Manifest) -> list[str]:
    """The outputs that are attention weights, layer by layer."""
    return [spec.name for spec in manifest.outputs if spec.name.startswith(_ATTENTIONS)]


def shape_of(spec: TensorSpec, rows: int, new: int, total: int) -> list[int]:
    """An output's shape in a run of [rows, new] tokens that ends at ``total`` positions."""
    sizes = {_NEW: new, _TOTAL: total}
    return [dim if isinstance(dim, int) else sizes.get(dim, rows) for dim in spec.shape]


def join_chunks(manifest: Manifest, chunks: Sequence[Outputs]) -> Outputs:
    """Put together what several runs gave for the chunks of one text.

    Attention weights of an earlier chunk get zeros for the slots that it had not read yet.
    """
    if len(chunks) == 1:
        return chunks[0]
    specs = {spec.name: spec for spec in manifest.outputs}
    joined: Outputs = {}
    for name in chunks[0]:
        parts, shape = [chunk[name] for chunk in chunks], specs[name].shape
        if _TOTAL in shape:
            longest = parts[-1].shape[-1]
            parts = [np.pad(x, ((0, 0), (0, 0), (0, 0), (0, longest - x.shape[-1]))) for x in parts]
        joined[name] = np.concatenate(parts, axis=shape.index(_NEW))
    return joined
