"""Prompt lookup in C++: the tokens of plain decoding, which are Python's."""

from __future__ import annotations

import pytest
from c_abi import AbiError
from kernel_choice import choose

from llama_runtime.kernels import LIBRARY

TEXTS = (
    "Once there was a dog. The dog had a ball. Once there was a dog. The dog had",
    'The cat said: "Hello". The cat said:',
)
BUNDLES = {
    "float32, sdpa": {"attention": "sdpa"},
    "bfloat16": {"weights": "copy", "precision": "bfloat16"},
    "int8": {"weights": "copy", "precision": "int8"},
    "int4": {"weights": "copy", "precision": "int4"},
    "int4, eager": {"attention": "eager", "weights": "copy", "precision": "int4"},
}
OPTIONS = [
    {},
    {"temperature": 0.7, "seed": 1, "top_p": 0.9},
    {"temperature": 0.7, "seed": 3, "repetition_penalty": 1.1},
    {"stop": ("friend", "dog. "), "logprobs": 2},
]


def compare(model) -> None:
    for text in TEXTS:
        for count, options in enumerate(OPTIONS):
            plain = model.generate(text, max_new_tokens=70, **options)
            ahead = model.generate(
                text, max_new_tokens=70, prompt_lookup_num_tokens=2 + 3 * (count % 3), **options
            )
            found = ahead.text, ahead.tokens, ahead.finish
            assert found == (plain.text, plain.tokens, plain.finish), (text, options)
            assert len(ahead.logprobs) == len(plain.logprobs)


@pytest.mark.parametrize("name", BUNDLES)
def test_reading_ahead_changes_no_token(open_model, demo_of, name):
    compare(open_model(demo_of(**{"verify": False} | BUNDLES[name])))


@pytest.mark.skipif(not LIBRARY.exists(), reason="the kernels were not built: make kernels")
@pytest.mark.parametrize("name", ["bfloat16", "int8", "int4"])
def test_nor_with_our_own_kernels(open_model, demo_of, monkeypatch, name):
    choose(monkeypatch)
    monkeypatch.setenv("LLAMA_RUNTIME_KERNELS", str(LIBRARY))
    compare(open_model(demo_of(**{"verify": False} | BUNDLES[name])))


def test_pieces_come_one_by_one_and_may_stop(open_model, demo_of):
    model, told = open_model(demo_of(verify=False)), []

    def on_piece(token, text, finish):
        told.append(token)
        return len(told) != 33

    plain = model.generate(TEXTS[0], max_new_tokens=70, ignore_eos=1)
    got = model.generate(TEXTS[0], on_piece, max_new_tokens=70, ignore_eos=1, prompt_lookup_num_tokens=8)
    assert got.finish == "cancelled"
    assert got.tokens == tuple(told) == plain.tokens[:33]
    again = model.generate(TEXTS[0], max_new_tokens=70, ignore_eos=1, prompt_lookup_num_tokens=8)
    assert again.tokens == plain.tokens


def test_a_number_below_0_is_refused(open_model, demo_of):
    with pytest.raises(AbiError, match="option: prompt_lookup_num_tokens is -1, needs at least 0"):
        open_model(demo_of(verify=False)).generate(TEXTS[0], prompt_lookup_num_tokens=-1)
