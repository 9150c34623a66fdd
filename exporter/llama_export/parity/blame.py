"""Where it went wrong: the first layer and tensor at which candidate and reference part."""

from __future__ import annotations

from collections.abc import Sequence

from llama_export.parity.report import Blame, LayerError, TensorDifference, layer_of


def blame_weights(tensors: Sequence[TensorDifference]) -> Blame:
    """Name the first stored tensor that is not the checkpoint's."""
    wrong = [tensor for tensor in tensors if tensor.differing]
    first = wrong[0]
    sentence = (
        f"the stored {first.name} is not the checkpoint's: {first.differing:,} of its {first.values:,} "
        f"values differ, as do {len(wrong) - 1} other tensors"
    )
    return Blame("weights", sentence, layer_of(first.name), first.name)


def blame_layers(rung: str, layers: Sequence[LayerError], limit: float) -> Blame:
    """Name the first intermediate tensor that is beyond a limit.

    Args:
        rung: The red one, whose tokens were run again.
        layers: Every intermediate tensor of that run, in the order of computation.
        limit: What a tensor may differ by.
    """
    index = next((i for i, entry in enumerate(layers) if not entry.error <= limit), None)
    if index is None:
        sentence = (
            "fed directly, with every intermediate tensor exposed, the graph computes what the reference "
            "does: the fault is in how the runtime feeds or optimises it, not in a layer"
        )
        return Blame(rung, sentence, None, None)
    first = layers[index]
    before = f", {layers[index - 1].tensor} before it agrees" if index else ", the first one there is"
    place = "outside of the layers" if first.layer is None else f"in layer {first.layer}"
    sentence = (
        f"candidate and reference part {place}: {first.tensor} differs by {first.error:.2g} "
        f"of its largest value{before}"
    )
    return Blame(rung, sentence, first.layer, first.tensor)
