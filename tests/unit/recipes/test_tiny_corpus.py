"""The corpus is split, packed and counted as it says."""

from __future__ import annotations

import corpus
import numpy as np
import pytest
import sample
import story
from ngram import ORDER, NgramModel


def test_heldout_file_is_what_the_recipe_holds_out():
    train, heldout = corpus.split_corpus(500)
    assert heldout == corpus.read_heldout()
    assert len(heldout) == corpus.HELDOUT_COUNT
    assert not set(train) & set(heldout)
    assert all(map(story.parses, heldout))


def test_heldout_round_trip(tmp_path):
    texts = ["one.\nQuestion: 1? Answer: Zoë.", "two."]
    corpus.write_heldout(texts, tmp_path / "heldout.txt")
    assert corpus.read_heldout(tmp_path / "heldout.txt") == texts


def test_rows_start_with_bos_and_hold_whole_texts():
    tokenizer = sample.load_tokenizer()
    texts, _ = corpus.split_corpus(50)
    rows = corpus.pack_rows(texts, tokenizer, 256)
    assert rows.dtype == np.int64 and rows.shape[1] == 256
    assert (rows[:, 0] == tokenizer.bos_id()).all()
    first = corpus.encode(texts[0], tokenizer)
    assert rows[0, : len(first)].tolist() == first


@pytest.fixture(scope="module")
def small_ngram():
    rng = np.random.default_rng(0)
    return NgramModel([[1, *rng.integers(3, 9, size=30), 2] for _ in range(40)], vocab_size=12)


@pytest.mark.parametrize("context", [[1, 1, 1, 1], [1, 1, 1, 5], [3, 4, 5, 6], [0, 0, 0, 0], [8, 8, 2, 1]])
def test_ngram_probabilities_sum_to_one(small_ngram, context):
    windows = np.array([[*context, token] for token in range(12)])
    probabilities = small_ngram.window_probabilities(windows)
    assert probabilities.min() > 0
    assert probabilities.sum() == pytest.approx(1)


def test_ngram_learns_what_it_has_seen():
    model = NgramModel([[1, 5, 6, 7, 8, 2]] * 20 + [[1, 5, 6, 9, 2]], vocab_size=12)
    seen, rare = model.probabilities([1, 5, 6, 7, 8, 2]), model.probabilities([1, 5, 6, 9, 2])
    assert len(seen) == 5 and ORDER == 5
    assert seen[2] > 0.8 and rare[2] < 0.1
