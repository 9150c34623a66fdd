"""The three attention paths equal each other and transformers' LlamaForCausalLM, whatever the shapes."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoints import CONFIGS, NARROW_HEADS, random_weights, transformers_model, write_checkpoint

from llama_export.errors import OptionError
from llama_export.model import ATTENTION_PATHS, GrowingCache, LlamaForCausalLM, StaticCache

LIMIT = 1e-4
ALL = CONFIGS | {"narrow_heads": NARROW_HEADS}
T, LEFT, RIGHT = 21, 4, 6


@pytest.fixture(scope="module", params=ALL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def config(name):
    return ALL[name]


@pytest.fixture(scope="module")
def reference(config, name, tmp_path_factory):
    return transformers_model(write_checkpoint(tmp_path_factory.mktemp("model") / name, config))


@pytest.fixture(scope="module", params=ATTENTION_PATHS)
def model(request, config):
    return make(config, request.param)


@pytest.fixture(scope="module")
def ids(config):
    return torch.randint(0, config.vocab_size, (3, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def wanted(reference, ids):
    """[3, T, V] logits of the three whole rows."""
    with torch.no_grad():
        return reference(ids).logits


def make(config, path, dtype=torch.float32):
    model = LlamaForCausalLM(config, path)
    model.load_state_dict(random_weights(config))
    return model.eval().to(dtype)


def caches(config, rows=3, capacity=T):
    return {"growing": GrowingCache(), "static": StaticCache(config, rows, capacity)}


def assert_close(got, want):
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert float((got - want).abs().max()) <= LIMIT * float(want.abs().max())


def test_prefill(model, ids, wanted):
    with torch.no_grad():
        assert_close(model(ids), wanted)


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_prefill_then_decode(model, config, ids, wanted, kind):
    cache = caches(config)[kind]
    with torch.no_grad():
        parts = [model(ids[:, :9], cache=cache)]
        parts += [model(ids[:, t : t + 1], cache=cache) for t in range(9, T)]
    assert cache.length == T
    assert_close(torch.cat(parts, dim=1), wanted)


@pytest.mark.parametrize("kind", ["growing", "static"])
@pytest.mark.parametrize("chunk", [4, 20])
def test_chunked_prefill(model, config, ids, wanted, kind, chunk):
    cache = caches(config)[kind]
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in ids.split(chunk, dim=1)]
    assert_close(torch.cat(parts, dim=1), wanted)


@pytest.mark.parametrize("left", [LEFT, 0])
@pytest.mark.parametrize("right", [RIGHT, 0])
def test_padded_rows_equal_single_rows(model, reference, ids, left, right):
    """Row 0 is padded in front, row 1 behind, row 2 on neither side; then each decodes one more token."""
    mask = torch.ones(3, T, dtype=torch.int64)
    mask[0, :left] = 0
    mask[1, T - right :] = 0
    cache = GrowingCache()
    extra = ids[:, :1]
    with torch.no_grad():
        prefill = model(ids, attention_mask=mask, cache=cache)
        longer = torch.cat((mask, torch.ones(3, 1, dtype=torch.int64)), dim=1)
        decode = model(extra, attention_mask=longer, cache=cache)
        for row in range(3):
            tokens = torch.cat((ids[row][mask[row] == 1], extra[row]))
            want = reference(tokens[None]).logits[0]
            assert_close(torch.cat((prefill[row][mask[row] == 1], decode[row])), want)


def test_padded_rows_in_chunks(model, reference, ids):
    mask = torch.ones(3, T, dtype=torch.int64)
    mask[0, :LEFT] = 0
    cache, parts = GrowingCache(), []
    with torch.no_grad():
        for start in range(0, T, 6):
            end = min(start + 6, T)
            parts.append(model(ids[:, start:end], attention_mask=mask[:, :end], cache=cache))
        logits = torch.cat(parts, dim=1)
        assert_close(logits[0, LEFT:], reference(ids[:1, LEFT:]).logits[0])
        assert_close(logits[1:], reference(ids[1:]).logits)


def test_a_fully_masked_row_is_finite_and_disturbs_nobody(model, ids, wanted):
    mask = torch.ones(3, T, dtype=torch.int64)
    mask[1] = 0
    with torch.no_grad():
        logits = model(ids, attention_mask=mask)
    assert torch.isfinite(logits).all()
    assert_close(logits[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize("keep", [1, 5, T])
def test_num_logits_to_keep(model, ids, wanted, keep):
    with torch.no_grad():
        assert_close(model(ids, num_logits_to_keep=keep), wanted[:, -keep:])


def test_explicit_position_ids(model, reference, ids):
    positions = torch.arange(50, 50 + T).expand(3, -1)
    with torch.no_grad():
        want = reference(ids, position_ids=positions).logits
        assert_close(model(ids, position_ids=positions), want)


def test_a_long_context_to_the_last_position(model, config, reference):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, config.vocab_size, (1, config.max_position_embeddings), generator=generator)
    cache = StaticCache(config, 1, ids.shape[1])
    with torch.no_grad():
        logits = torch.cat([model(part, cache=cache) for part in ids.split(100, dim=1)], dim=1)
        assert_close(logits, reference(ids).logits)


def test_an_overfull_static_cache_is_refused_and_unchanged(model, config, ids):
    cache = StaticCache(config, 3, 10)
    with torch.no_grad():
        model(ids[:, :8], cache=cache)
        keys, values = cache.keys.clone(), cache.values.clone()
        with pytest.raises(OptionError, match="holds 10 tokens, this step needs 11"):
            model(ids[:, 8:11], cache=cache)
    assert cache.length == 8
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(config, ids, wanted, dtype, model):
    path = model.model.layers[0].self_attn.path
    half = make(config, path, dtype)
    cache = StaticCache(config, 3, T, dtype)
    with torch.no_grad():
        logits = torch.cat([half(part, cache=cache) for part in ids.split(13, dim=1)], dim=1)
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
    # Loose on purpose: what matters is that nothing overflowed or was computed in the wrong dtype.
    assert float((logits.float() - wanted).abs().max()) <= 0.2 * float(wanted.abs().max())


def test_a_fully_masked_row_is_finite_in_half_precision(config, ids, model):
    half = make(config, model.model.layers[0].self_attn.path, torch.float16)
    mask = torch.ones(3, T, dtype=torch.int64)
    mask[1] = 0
    with torch.no_grad():
        assert torch.isfinite(half(ids, attention_mask=mask)).all()
