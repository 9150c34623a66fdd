"""A cache of 8-bit codes: transformers with a cache that rounds likewise, and all that moves a cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from parity_cases import difference
from tiny_checkpoints import CONFIGS, VARIANTS, transformers_model, write_checkpoint
from transformers import DynamicCache

import llama_runtime
from llama_export import pipeline
from llama_export.errors import OptionError
from llama_export.model import LlamaConfig
from llama_export.parity import verify
from llama_export.quantize.cache import RoundedCache, cache_scales
from llama_export.recipe import Recipe
from llama_runtime import SamplingOptions
from llama_runtime.cache import position_bytes
from llama_runtime.opening import open_session
from llama_runtime.prefix_cache import PrefixCache

DEMO = Path(__file__).parents[2] / "recipes/tiny/checkpoint"
# Of the largest logit: a value at the edge of two codes may take the other one.
EDGE = 1e-2


def scales_in(bundle) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer, as the graph has them: [1, K, 1, D]."""
    graph = onnx.load(bundle.output / bundle.manifest.model.path, load_external_data=False).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    return [
        tuple(torch.from_numpy(numpy_helper.to_array(arrays[node.input[i]]).copy()) for i in (12, 13))
        for node in nodes
    ]


class Rounding(DynamicCache):
    """transformers' own cache, of what int8 codes hold."""

    def __init__(self, scales):
        super().__init__()
        self.scales = scales

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        rounded = [
            (values / scale).round().clamp(-128, 127) * scale
            for values, scale in zip((key_states, value_states), self.scales[layer_idx], strict=True)
        ]
        return super().update(*rounded, layer_idx, *args, **kwargs)


@pytest.mark.parametrize("name", ["gqa", "mqa_llama3", "mha_tied", "yarn", "linear"])
def test_logits_are_those_of_transformers_with_a_rounding_cache(tmp_path, name):
    source = write_checkpoint(tmp_path / "from", (CONFIGS | VARIANTS)[name], "float32")
    bundle = pipeline.export(source, tmp_path / "bundle", recipe=Recipe(cache="int8"))
    assert bundle.manifest.cache.dtype == "int8"
    oracle, scales = transformers_model(source), scales_in(bundle)
    ids = np.random.default_rng(5).integers(0, oracle.config.vocab_size, (1, 40))
    for own_kernels in (True, False):
        session = open_session(bundle.output, bundle.manifest, threads=1, own_kernels=own_kernels)
        cache = session.new_cache(capacity=40)
        assert all(tensor.dtype == np.int8 for tensor in cache.tensors)
        got = [session.prefill(ids[:, :25], cache, all_logits=True)]
        got += [session.decode(ids[:, i], cache)[:, None] for i in range(25, 40)]
        with torch.no_grad():
            rounding, plain = (
                oracle(torch.from_numpy(ids), past_key_values=kept).logits.numpy()
                for kept in (Rounding(scales), DynamicCache())
            )
        assert difference(np.concatenate(got, axis=1), rounding) <= EDGE
        assert difference(np.concatenate(got, axis=1), plain) > 1e-4  # something was rounded


def test_scales_hold_what_was_read_at_any_position():
    """A key at another position has another angle, not another length."""
    config = dataclasses.replace(CONFIGS["gqa"], num_hidden_layers=2)
    draw = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(shape, generator=draw) * 0.3 for name, shape in config.tensor_shapes().items()
    }
    read, ids = weights.__getitem__, [list(range(10)), [5, 9, 2]]
    scales = cache_scales(config, read, ids)
    assert len(scales) == 2
    K, D = config.num_key_value_heads, config.head_dim
    for by_layer in scales:
        assert by_layer.keys.shape == by_layer.values.shape == (K, D)
        assert torch.equal(by_layer.keys[:, : D // 2], by_layer.keys[:, D // 2 :])
    largest = keys_at(config, read, ids, offset=0)
    for offset in (3, 17):
        largest = torch.maximum(largest, keys_at(config, read, ids, offset))
    assert (largest <= 127 * scales[0].keys + 1e-6).all()
    assert (largest.amax(1) > 127 * scales[0].keys.amax(1) / 2.5).all()  # and not much more


def keys_at(config: LlamaConfig, read, windows, offset: int) -> torch.Tensor:
    """[K, D], the largest keys of the first layer when the texts stand at another position."""
    from llama_export.parity.reference import reference_hidden

    kept = []

    class Keeping(RoundedCache):
        def __init__(self):
            self.keys, self.values = [], []

        def append(self, layer, keys, values):
            kept.append(keys[0].abs().amax(1))
            return keys, values

    reference_hidden(
        config,
        read,
        windows,
        first_positions=[offset] * len(windows),
        layers=1,
        make_cache=lambda _: Keeping(),
    )
    return torch.stack(kept).amax(0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo with a float cache, and with one of 8 bits; int4 weights, as it would be used."""
    root = tmp_path_factory.mktemp("demo")
    recipes = {"float": Recipe(precision="int4"), "int8": Recipe(precision="int4", cache="int8")}
    return {name: pipeline.export(DEMO, root / name, recipe=recipe) for name, recipe in recipes.items()}


def test_the_report_says_what_it_costs(demo):
    rungs = {rung.name: rung for rung in demo["int8"].report.rungs}
    exact = {rung.name: rung for rung in demo["float"].report.rungs}
    assert rungs["attention"].measured <= 1e-5  # the reference rounds as the graph does
    assert rungs["KL divergence"].measured <= 1.1 * exact["KL divergence"].measured + 2e-3
    assert verify(demo["int8"].output, DEMO, quick=True).passed


def test_it_takes_a_quarter_of_the_memory(demo):
    small, large = (position_bytes(demo[name].manifest.kv_cache) for name in ("int8", "float"))
    assert 4 * small == large


def test_chats_batches_beams_and_lookup_move_codes_as_they_move_floats(demo):
    generator = llama_runtime.load(demo["int8"].output)
    texts = ["Once upon a time", "The dog had a ball. The dog had", "Lily"]
    options = SamplingOptions(max_new_tokens=40, ignore_eos=True)
    alone = [generator.generate(text, options) for text in texts]
    assert [found.tokens for found in generator.generate_batch(texts, options)] == [a.tokens for a in alone]
    ahead = dataclasses.replace(options, prompt_lookup_num_tokens=6)
    assert [generator.generate(text, ahead).tokens for text in texts] == [a.tokens for a in alone]
    beams = generator.generate_sequences(
        texts[0], SamplingOptions(max_new_tokens=12, num_beams=3, num_return_sequences=2)
    )
    assert beams[0].score >= beams[1].score

    cache, again = PrefixCache(generator.session), PrefixCache(generator.session)
    prompt = list(alone[1].prompt_tokens)
    cache.prefill(prompt, 8)
    again.write(prompt, cache.read())
    longer = [*prompt, 7, 9]
    np.testing.assert_array_equal(cache.prefill(longer, 4), again.prefill(longer, 4))
    assert again.reused_tokens == len(prompt)


def test_a_text_of_ones_own_sets_the_scales(tmp_path, demo):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat and the dog ran in the park. " * 40)
    recipe = Recipe(precision="int4", cache="int8", calibration=text, quantizer="search")
    made = pipeline.export(DEMO, tmp_path / "bundle", recipe=recipe)
    (ours, _), (theirs, _) = scales_in(demo["int8"])[0], scales_in(made)[0]
    assert not torch.equal(ours, theirs)
    bits = [rung.measured for rung in made.report.rungs if rung.name == "KL divergence"]
    assert bits[0] < 1


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"cache": "int8", "attention": "sdpa"}, "an int8 cache needs the operator of the flash path"),
        (
            {"cache": "int8", "compute": "float16", "precision": "float16", "weights": "copy"},
            "compute float16",
        ),
        ({"cache": "int4"}, "cache is 'int4', must be one of float32, int8"),
        ({"cache": "float32", "calibration": Path("text.txt")}, "calibration is for quantized matrices"),
    ],
    ids=str,
)
def test_what_goes_with_no_int8_cache_is_refused(tmp_path, recipe, says):
    with pytest.raises(OptionError, match=says):
        pipeline.export(DEMO, tmp_path / "bundle", recipe=Recipe(**recipe))
    assert not list(tmp_path.iterdir())
