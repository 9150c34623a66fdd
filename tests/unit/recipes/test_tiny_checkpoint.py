"""The committed checkpoint is an ordinary small Hugging Face folder, and it speaks."""

from __future__ import annotations

import json

import corpus
import pytest
import sample
import story
import torch
from safetensors import safe_open

FOLDER = sample.CHECKPOINT
TEXTS = [*corpus.read_heldout()[:20], "", "  two  spaces", "Zoë, José\n\n42 🦙"]


@pytest.fixture(scope="module")
def model():
    return sample.load_model()


@pytest.fixture(scope="module")
def tokenizer():
    return sample.load_tokenizer()


def test_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 10_000_000


def test_weights_are_bfloat16_and_as_configured(model):
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == model.config.tensor_shapes()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert 2_000_000 <= sum(tensor.numel() for tensor in tensors.values()) <= 5_000_000
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "bfloat16"


def test_transformers_computes_the_same(model, tokenizer):
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    ids = torch.tensor([corpus.encode(TEXTS[0], tokenizer)])
    with torch.no_grad():
        expected, got = oracle(ids).logits, model(ids)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_transformers_and_tokenizers_give_the_same_ids(tokenizer):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    auto, plain = AutoTokenizer.from_pretrained(FOLDER), Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert (auto.bos_token_id, auto.eos_token_id, auto.unk_token_id) == (1, 2, 0)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_bos=True)
        assert auto(text)["input_ids"] == ids
        assert plain.encode(text).ids == ids
        assert auto.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == text


def test_vocabulary_follows_llama2(tokenizer):
    assert [tokenizer.id_to_piece(index) for index in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert tokenizer.vocab_size() == 1024
    assert tokenizer.encode("12", out_type=str) == ["▁", "1", "2"]
    assert tokenizer.encode("\n", out_type=str) == ["▁", "<0x0A>"]
    assert "<0xC3>" in tokenizer.encode("Zoë", out_type=str)


def test_sampled_texts_parse(model, tokenizer):
    texts = sample.sample_texts(model, tokenizer, count=20, seed=2)
    assert sum(map(story.parses, texts)) >= 16, texts
    assert texts == sample.sample_texts(model, tokenizer, count=20, seed=2)
