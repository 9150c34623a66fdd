"""Embedding, tagging and answering on toys: pooling, places in the text, spans, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_texts import TextToy

from llama_runtime.errors import OptionError, PromptError, TokenizerError
from llama_runtime.tasks.answer import Answerer
from llama_runtime.tasks.embed import Embedder
from llama_runtime.tasks.offsets import encode_with_offsets
from llama_runtime.tasks.tag import Tag, Tagger, entities
from llama_runtime.tokenizer import Tokenizer
from llama_runtime.vocabulary import Vocabulary

# Longest first; what is in none of them is spelled in bytes: tokens 20 + its half, twice.
PIECES = [b" harbour", b" red", b" fox", b"es", b" at", b",", b" ", b"sea", b"\xc3", b"\xa9", b"caf"]


def encode(text, parse_special=False):
    rest, ids = (b" " + text.encode()), []
    while rest:
        token = next(index for index, piece in enumerate(PIECES) if rest.startswith(piece))
        ids.append(token)
        rest = rest[len(PIECES[token]) :]
    return ids


VOCABULARY = Vocabulary(
    encode=encode,
    encode_inside=encode,
    token_bytes=lambda token: PIECES[token],
    first_token_bytes=lambda token: PIECES[token].removeprefix(b" "),
    special_ids=frozenset({40, 41}),
    added_tokens={},
    restarts_after_special=True,
    replaces_each_byte=True,
)
BOS = Tokenizer(VOCABULARY, Path("toy"), 40, 41, add_bos=True)
BOTH = Tokenizer(VOCABULARY, Path("toy"), 40, 41, add_bos=True, add_eos=True)


# embed


def states(row):
    return [[token, 1.0] for token in row]


def test_pooling_is_over_a_texts_own_tokens():
    embedder = Embedder(TextToy(("batch_size", "sequence_length", 2), states).model)
    rows = [[3, 5, 10], [7], [2, 4]]
    assert embedder.embed(rows).tolist() == [[6, 1], [7, 1], [3, 1]]
    assert embedder.embed(rows, pooling="last").tolist() == [[10, 1], [7, 1], [4, 1]]
    assert embedder.embed(rows, pooling="cls").tolist() == [[3, 1], [7, 1], [2, 1]]
    assert [found.tolist() for found in embedder.hidden_states(rows)] == [states(row) for row in rows]
    scaled = embedder.embed(rows, normalize=True)
    assert np.allclose(np.linalg.norm(scaled, axis=1), 1)
    assert np.allclose(scaled * np.sqrt([[37], [50], [10]]), embedder.embed(rows))
    with pytest.raises(OptionError, match="pooling is 'max', must be one of mean, last, cls"):
        embedder.embed(rows, pooling="max")


# places


def test_every_token_knows_its_characters():
    text = "red foxes, caf\u00e9"
    found = encode_with_offsets(BOTH, text)
    assert found.tokens[0] == 40
    assert found.tokens[-1] == 41
    assert (found.first, found.end) == (1, len(found.tokens) - 1)
    # Both halves of the last character have the whole of it.
    spans = [(0, 3), (3, 7), (7, 9), (9, 10), (10, 11), (11, 14), (14, 15), (14, 15)]
    assert list(found.spans[found.first : found.end]) == spans
    assert [text[slice(*span)] for span in spans][:3] == ["red", " fox", "es"]


def test_a_vocabulary_that_changes_the_text_is_refused():
    folds = Vocabulary(**{**vars(VOCABULARY), "encode": lambda text, special=False: encode(text.lower())})
    with pytest.raises(TokenizerError, match="do not add up"):
        encode_with_offsets(Tokenizer(folds, Path("toy"), None, None), "RED".replace("RED", "Red fox"))


# tag

LABELS = ("O", "B-A", "I-A", "B-B")


def test_words_get_one_label_from_their_tokens():
    # " fox" says B-A weakly, "es" says I-A strongly; everything else is outside.
    logits = {2: [0, 1.0, 0, 0], 3: [0, 0, 4.0, 0]}
    toy = TextToy(
        ("batch_size", "sequence_length", 4), lambda row: [logits.get(t, [3.0, 0, 0, 0]) for t in row], BOS
    )
    tagger = Tagger(toy.model, LABELS)
    text = "red foxes at  sea"
    (first,), (surest,), (mean,) = (
        tagger.tag([text], aggregation=how) for how in ("first", "max", "average")
    )
    assert [(tag.text, tag.start, tag.end) for tag in first] == [
        ("red", 0, 3),
        ("foxes", 4, 9),
        ("at", 10, 12),
        ("sea", 14, 17),
    ]
    assert [tag.label for tag in first] == ["O", "B-A", "O", "O"]
    assert surest[1].label == mean[1].label == "I-A"
    weak, strong = np.exp([0, 1, 0, 0]), np.exp([0, 0, 4, 0])
    assert first[1].score == pytest.approx(weak[1] / weak.sum())
    assert surest[1].score == pytest.approx(strong[2] / strong.sum())
    assert mean[1].score == pytest.approx((weak[2] / weak.sum() + strong[2] / strong.sum()) / 2)
    several = tagger.tag(["red", text, "fox"])
    assert several[1] == first
    assert [len(words) for words in several] == [1, 4, 1]


def test_entities_join_words_of_one_kind():
    labels = ["B-A", "I-A", "O", "I-A", "B-A", "I-B", "I-B"]
    tags = [Tag(f"w{i}", label, i / 10, 3 * i, 3 * i + 2) for i, label in enumerate(labels)]
    text = " ".join(tag.text for tag in tags)
    found = entities(text, tags)
    assert [(tag.text, tag.label, tag.start, tag.end) for tag in found] == [
        ("w0 w1", "A", 0, 5),
        ("w3", "A", 9, 11),
        ("w4", "A", 12, 14),
        ("w5 w6", "B", 15, 20),
    ]
    assert found[0].score == pytest.approx(0.05)
    assert entities(text, ()) == ()


def test_what_a_tagger_refuses():
    toy = TextToy(("batch_size", "sequence_length", 4), lambda row: [], BOS)
    with pytest.raises(OptionError, match="aggregation is 'sum'"):
        Tagger(toy.model, LABELS).tag(["red"], aggregation="sum")
    with pytest.raises(PromptError, match="needs a string"):
        Tagger(toy.model, LABELS).tag([[1, 2]])
    toy = TextToy(("batch_size", "sequence_length", 4), lambda row: [])
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Tagger(toy.model, LABELS).tag(["red"])


# answer


class TwoOutputs(TextToy):
    """Start and end logits: a token's own value, and that of its half."""

    def __init__(self, start, end, tokenizer=BOS):
        super().__init__(("batch_size", "sequence_length"), lambda row: [0] * len(row), tokenizer)
        self.compute = {"start_logits": start, "end_logits": end}
        from llama_runtime.manifest import TensorSpec

        shape = ("batch_size", "sequence_length")
        self.model.manifest.outputs = tuple(TensorSpec(n, "float32", shape) for n in self.compute)
        self.model.session.run = self.both

    def both(self, feeds, names):
        found = {}
        for name in names:
            self._compute = lambda row, table=self.compute[name]: [table.get(token, 0.0) for token in row]
            found[name] = self._run(feeds, [name])[name]
        return found


def test_the_answer_is_the_likeliest_span_of_the_context():
    # The question's own tokens score highest, and are no answer.
    toy = TwoOutputs({1: 5.0, 2: 4.0, 7: 9.0}, {3: 5.0, 7: 9.0})
    context = "red foxes at harbour"
    (found,) = Answerer(toy.model).answer([("sea", context)])
    assert (found.text, found.start, found.end) == ("red foxes", 0, 9)
    begins, ends = np.exp([5, 4, 0, 0, 0.0]), np.exp([0, 0, 5, 0, 0.0])
    assert found.score == pytest.approx(begins[0] / begins.sum() * ends[2] / ends.sum())
    (short,) = Answerer(toy.model).answer([("sea", context)], max_answer_tokens=2)
    assert (short.text, short.start, short.end) == ("foxes", 4, 9)
    batch = Answerer(toy.model).answer([("sea", context), ("red", "fox"), ("sea sea", context)])
    assert [answer.text for answer in batch] == ["red foxes", "fox", "red foxes"]


def test_an_end_does_not_stand_before_its_start():
    toy = TwoOutputs({2: 9.0}, {1: 9.0})
    (found,) = Answerer(toy.model).answer([("sea", "red fox at")])
    assert found.start <= found.end
    assert found.text in ("red", "fox", "fox at", "red fox at", "red fox")


@pytest.mark.parametrize("stride", [1, 4, 128])
def test_a_long_context_is_read_in_windows(stride):
    toy = TwoOutputs({0: 9.0}, {0: 9.0})
    context = "red fox " * 20 + "harbour" + " red" * 20
    (found,) = Answerer(toy.model).answer([("sea", context)], stride_tokens=stride)
    assert found.text == "harbour"
    assert context[found.start : found.end] == "harbour"
    assert all(T <= 20 for _, T in toy.runs)


def test_what_an_answerer_refuses():
    answerer = Answerer(TwoOutputs({}, {}).model)
    for pair, word in ((("", "red"), "question"), (("red", " "), "context")):
        with pytest.raises(PromptError, match=f"the {word} is empty"):
            answerer.answer([pair])
    with pytest.raises(PromptError, match="the question is 20 tokens long, the model has 20 positions"):
        answerer.answer([(" ".join(["red"] * 19), "fox")])
    with pytest.raises(OptionError, match="at least 1"):
        answerer.answer([("red", "fox")], max_answer_tokens=0)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Answerer(TwoOutputs({}, {}, None).model).answer([("red", "fox")])
    assert answerer.answer([]) == []
