"""The reference: the eager float32 model, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_export.graph import contract
from llama_export.model import HEADS, GrowingCache, LlamaConfig, make_step
from llama_export.model.attention import recording_attention
from llama_export.model.layer import DecoderLayer, RMSNorm
from llama_export.model.rope import inverse_frequencies
from llama_export.quantize.cache import MakeCache, float_cache
from llama_runtime.extras import Outputs

Read = Callable[[str], Tensor]
"""From a weight's name to its values, in any float dtype."""
WEIGHTS = "self_attn.weights"
Watch = Callable[[int, str, Tensor], None]
"""Called with (sequence, tensor's name, its [T, ...] values) for every intermediate tensor, in order.

What a layer gives goes by the layer's name, its attention weights [T, H, T] by ``WEIGHTS`` behind that.
"""

# What is watched in a layer: a module's input or its output, in the order of computation.
WATCHED: tuple[tuple[str, str], ...] = (
    ("input_layernorm", "output"),
    ("self_attn.q_proj", "output"),
    ("self_attn.k_proj", "output"),
    ("self_attn.v_proj", "output"),
    ("self_attn.o_proj", "input"),
    ("self_attn.o_proj", "output"),
    ("post_attention_layernorm", "output"),
    ("mlp.gate_proj", "output"),
    ("mlp.up_proj", "output"),
    ("mlp.down_proj", "input"),
    ("mlp.down_proj", "output"),
)


Past = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of every layer, [1, K, P, D] each, that stand in front of a sequence."""


@torch.no_grad()
def reference_past(config: LlamaConfig, read: Read, embeddings: Tensor) -> Past:
    """Compute the keys and values of positions that have embeddings and no tokens.

    Args:
        config: The architecture.
        read: As for ``reference_hidden``.
        embeddings: [P, hidden_size] float32.
    """
    positions = torch.arange(len(embeddings))[None]
    step = make_step(torch.ones_like(positions), positions, inverse_frequencies(config), config)
    hidden, past = embeddings, list[tuple[Tensor, Tensor]]()
    for layer in _layers(config, read, config.num_hidden_layers):
        cache = GrowingCache()
        hidden = layer(hidden, step, cache)
        past.append((cache.keys[0], cache.values[0]))
        del layer
    return past


@torch.no_grad()
def reference_hidden(
    config: LlamaConfig,
    read: Read,
    sequences: Sequence[Sequence[int]],
    *,
    reads: Sequence[Sequence[int]] | None = None,
    first_positions: Sequence[int] | None = None,
    layers: int | None = None,
    watch: Watch | None = None,
    pasts: Sequence[Past | None] | None = None,
    make_cache: MakeCache = float_cache,
) -> list[Tensor]:
    """Compute the hidden states of whole sequences in one teacher-forced pass.

    Args:
        config: The architecture.
        read: Asked for one weight at a time, in the order of computation; private memory is one layer in
            float32 and the next weight.
        sequences: Token ids, each at least one.
        reads: How many tokens of each sequence are read in each run; matters where angles depend on the
            length of the text. Default all in one.
        first_positions: Position of each sequence's first token; default 0.
        layers: How many layers to compute, from the first; default all.
        watch: Shown the intermediate tensors.
        pasts: What stands in front of each sequence; default nothing.
        make_cache: What keeps a layer's keys and values, where no past stands in front.

    Returns:
        For each sequence of T tokens, [T, hidden_size] float32 behind the last layer computed.
    """
    pasts = pasts or [None] * len(sequences)
    starts = first_positions or [past[0][0].shape[2] if past else 0 for past in pasts]
    embedding = read("model.embed_tokens.weight")
    hidden = [embedding[torch.tensor(ids)].float() for ids in sequences]  # [T, hidden_size] each
    del embedding
    for index, states in enumerate(hidden):
        if watch is not None:
            watch(index, "model.embed_tokens", states)
    inv_freq = inverse_frequencies(config)
    steps = []
    reads = reads or [[len(ids)] for ids in sequences]
    for ids, runs, start, past in zip(sequences, reads, starts, pasts, strict=True):
        positions = torch.arange(start, start + len(ids))[None]
        # Each token is rotated for the text as it was when the token was read.
        sizes = torch.tensor(runs)
        lengths = (start + sizes.cumsum(0)).repeat_interleave(sizes)[None]
        visible = torch.ones(1, len(ids) + (start if past else 0), dtype=torch.int64)
        steps.append(make_step(visible, positions, inv_freq, config, lengths))
    count = config.num_hidden_layers if layers is None else layers
    built = _layers(config, read, count)
    for index in range(count):
        layer = next(built)  # enumerate() would hold it until the next one is built
        prefix = f"model.layers.{index}."
        for number, (step, past) in enumerate(zip(steps, pasts, strict=True)):
            handles = _hook(layer, prefix, number, watch) if watch is not None else []
            seen = list[Tensor]()
            if watch is not None:
                layer.self_attn.attend = recording_attention(seen)
            cache = GrowingCache(*([tensor] for tensor in past[index])) if past else make_cache(index)
            hidden[number] = layer(hidden[number], step, cache)
            for handle in handles:
                handle.remove()
            if watch is not None:
                watch(number, prefix + WEIGHTS, seen[0][0].transpose(0, 1))
                watch(number, prefix.removesuffix("."), hidden[number])
        del layer
    return hidden


def _layers(config: LlamaConfig, read: Read, count: int) -> Iterator[DecoderLayer]:
    """The first layers in float32, one at a time."""
    weights = _ahead(read, [name for index in range(count) for name in config.layer_shapes(index)])
    for index in range(count):
        with torch.device("meta"):
            layer = DecoderLayer(config, 0, "eager")
        names = config.layer_shapes(index)
        state = {name.removeprefix(f"model.layers.{index}."): next(weights) for name in names}
        layer.load_state_dict(state, assign=True)
        del state
        yield layer
        del layer


@torch.no_grad()
def reference_logits(
    config: LlamaConfig,
    read: Read,
    sequences: Sequence[Sequence[int]],
    *,
    reads: Sequence[Sequence[int]] | None = None,
    last: Sequence[int] | None = None,
    watch: Watch | None = None,
    pasts: Sequence[Past | None] | None = None,
    make_cache: MakeCache = float_cache,
) -> list[Tensor]:
    """Compute the logits of whole sequences in one teacher-forced pass.

    Args:
        config: The architecture.
        read: As for ``reference_hidden``.
        sequences: Token ids, each at least one.
        reads: As for ``reference_hidden``.
        last: Of how many tokens, from each sequence's end, the logits are wanted; default all.
        watch: Shown the intermediate tensors.
        pasts: As for ``reference_hidden``.
        make_cache: As for ``reference_hidden``.

    Returns:
        For each sequence of T tokens, [T or last, V] float32.
    """
    hidden = reference_hidden(
        config, read, sequences, reads=reads, watch=watch, pasts=pasts, make_cache=make_cache
    )
    norm = _final_norm(config, read)
    head = read("model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight").float()
    logits = []
    for number, states in enumerate(hidden):
        normed = norm(states if last is None else states[-last[number] :])
        logits.append(F.linear(normed, head))
        if watch is not None:
            watch(number, "model.norm", normed)
            watch(number, "lm_head", logits[-1])
    return logits


@torch.no_grad()
def reference_outputs(
    config: LlamaConfig, read: Read, rows: Sequence[Sequence[int]], *, watch: Watch | None = None
) -> list[Outputs]:
    """Compute what a task head gives for each text by itself.

    Args:
        config: The architecture, with its head.
        read: As for ``reference_hidden``.
        rows: Token ids.
        watch: Shown the intermediate tensors.

    Returns:
        For each row of T tokens, output name to [T, ...] or [...].
    """
    hidden = reference_hidden(config, read, rows, watch=watch)
    norm = _final_norm(config, read)
    with torch.device("meta"):
        head = HEADS[config.head.task](config)
    head.load_state_dict({name: read(name).float() for name in config.head_shapes()}, assign=True)
    found = []
    for number, (tokens, states) in enumerate(zip(rows, hidden, strict=True)):
        ids, normed = torch.tensor(tokens)[None], norm(states)
        if watch is not None:
            watch(number, "model.norm", normed)
        outputs = head(normed[None], ids, torch.ones_like(ids))
        named = zip(contract.outputs(config), outputs, strict=True)
        found.append({spec.name: output[0].numpy() for spec, output in named})
    return found


def _final_norm(config: LlamaConfig, read: Read) -> RMSNorm:
    norm = RMSNorm(config, "eager")
    norm.weight = nn.Parameter(read("model.norm.weight").float())
    return norm


def _ahead(read: Read, names: Iterable[str]) -> Iterator[Tensor]:
    """Yield weights in float32, each read and widened while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for name in names:
            coming = pool.submit(_widened, read, name)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def _widened(read: Read, name: str) -> Tensor:
    return read(name).float()


def _hook(
    layer: nn.Module, prefix: str, number: int, watch: Watch
) -> list[torch.utils.hooks.RemovableHandle]:
    """Show ``watch`` what goes in and out of a layer's modules."""

    def show(name: str, side: str) -> Callable[..., None]:
        label = f"{prefix}{name}" + (" input" if side == "input" else "")
        if side == "input":
            return lambda module, inputs, output: watch(number, label, inputs[0])
        return lambda module, inputs, output: watch(number, label, output)

    return [layer.get_submodule(name).register_forward_hook(show(name, side)) for name, side in WATCHED]
