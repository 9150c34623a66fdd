"""The reference: the eager float32 model, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_export.checkpoint import Checkpoint
from llama_export.model import GrowingCache, make_step
from llama_export.model.layer import DecoderLayer, RMSNorm
from llama_export.model.rope import inverse_frequencies

Advance = Callable[[int], None]


@torch.no_grad()
def reference_logits(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    advance: Advance = lambda nbytes: None,
    *,
    prompts: Sequence[int] = (),
) -> list[Tensor]:
    """Compute the logits of whole sequences in one teacher-forced pass.

    Args:
        checkpoint: Its weights are read one layer at a time and forgotten; private memory is one layer in
            float32, or the head.
        sequences: Token ids, each at least one.
        advance: Called with the number of checkpoint bytes done.
        prompts: How many tokens of each sequence are read at once, before the others are decoded one by
            one; matters where angles depend on the length of the text. Default all of them.

    Returns:
        For each sequence of T tokens, [T, V] float32.
    """
    config = checkpoint.config

    def weight(name: str) -> Tensor:
        tensor = checkpoint.tensors[name].read()
        advance(tensor.nbytes)
        return tensor

    embedding = weight("model.embed_tokens.weight")
    hidden = [embedding[torch.tensor(ids)].float() for ids in sequences]  # [T, hidden_size] each
    if not config.tie_word_embeddings:
        del embedding
    inv_freq = inverse_frequencies(config)
    read_at_once = prompts or [len(ids) for ids in sequences]
    steps = []
    for ids, prompt in zip(sequences, read_at_once, strict=True):
        positions = torch.arange(len(ids))[None]
        # Each token is rotated for the text as it was when the token was read.
        lengths = (positions + 1).clamp(min=prompt)
        steps.append(make_step(torch.ones_like(positions), positions, inv_freq, config, lengths))
    for index in range(config.num_hidden_layers):
        with torch.device("meta"):
            layer = DecoderLayer(config, 0, "eager")
        prefix = f"model.layers.{index}."
        state = {name.removeprefix(prefix): weight(name).float() for name in config.layer_shapes(index)}
        layer.load_state_dict(state, assign=True)
        hidden = [layer(h, step, GrowingCache()) for h, step in zip(hidden, steps, strict=True)]
        del layer, state

    norm = RMSNorm(config, "eager")
    norm.weight = nn.Parameter(weight("model.norm.weight").float())
    head = (embedding if config.tie_word_embeddings else weight("lm_head.weight")).float()
    return [F.linear(norm(h), head) for h in hidden]
