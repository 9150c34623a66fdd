"""Chats turn by turn: nothing is read twice, what breaks off leaves things in order, files are checked."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from chat_bundle import VOCAB, write_chat_bundle
from chat_templates import SYSTEM, TOOL_TURNS
from safetensors.numpy import load_file, save_file
from toy_bundle import POSITIONS, write_toy_bundle

import llama_runtime
from llama_runtime import Conversation, SamplingOptions
from llama_runtime.errors import CacheError, ChatError, OptionError, PromptError, TokenizerError
from llama_runtime.prefix_cache import PrefixCache

SHORT = SamplingOptions(max_new_tokens=7, ignore_eos=True)
KINDS = [("llama3", "flash"), ("llama3", "sdpa"), ("llama2", "flash"), ("chatml", "flash")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request, tmp_path_factory):
    kind, attention = request.param
    folder = tmp_path_factory.mktemp(kind) / "bundle"
    write_chat_bundle(folder, kind, attention)
    return llama_runtime.load(folder, threads=1)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "bundle"
    write_chat_bundle(folder)
    return llama_runtime.load(folder, threads=1)


class Watch:
    """Notes every token that the graph reads."""

    def __init__(self, model, monkeypatch):
        self.prefilled, self.decoded = [], []
        prefill, decode = model.session.prefill, model.session.decode

        def watch_prefill(token_ids, cache, **options):
            self.prefilled += token_ids[0].tolist()
            return prefill(token_ids, cache, **options)

        def watch_decode(token_ids, cache):
            self.decoded += token_ids.tolist()
            return decode(token_ids, cache)

        monkeypatch.setattr(model.session, "prefill", watch_prefill)
        monkeypatch.setattr(model.session, "decode", watch_decode)


def test_nothing_that_is_in_the_cache_is_prefilled_again(model, monkeypatch):
    chat = Conversation(model, system="You are a fox.")
    before: list[int] = []
    for turn in range(4):
        watch = Watch(model, monkeypatch)
        done = chat.send(f"banana number {turn}?", SHORT)
        prompt = list(done.prompt_tokens)
        held = before[:-1]  # all but the last token that was generated, which was never read
        shared = next((i for i, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), len(held))
        assert watch.prefilled == prompt[shared:]
        assert chat.reused_tokens == shared
        assert watch.decoded == list(done.tokens[:-1])
        before = prompt + list(done.tokens)
        monkeypatch.undo()


def test_a_turn_costs_its_own_tokens_alone(tmp_path, monkeypatch):
    """The answer's own tokens stay, though its text would be encoded to others."""
    write_chat_bundle(tmp_path / "b")
    model = llama_runtime.load(tmp_path / "b", threads=1)
    added = model.tokenizer.vocabulary.added_tokens
    # Letters one by one, and no special token: its text encodes to fewer tokens than it was made of.
    letters = [token for token in range(VOCAB) if model.tokenizer.decode([token]) in ("a", "n")]
    bias = dict.fromkeys(set(letters) - set(added.values()), 30.0)
    chat, held = Conversation(model, system="You are a fox."), 0
    for turn in range(5):
        done = chat.send(f"who {turn}", replace(SHORT, logit_bias=bias, temperature=2.0, seed=turn))
        assert chat.reused_tokens == held
        held = len(done.prompt_tokens) + len(done.tokens) - 1
    answers = [message["content"] for message in chat.messages if message["role"] == "assistant"]
    assert any(len(model.tokenizer.encode_parts([answer])) < 7 for answer in answers)
    assert len(set(answers)) > 1


def test_reuse_changes_no_answer(model):
    chat = Conversation(model, system="You are a fox.")
    for text in ("hello", "and then?", "why?"):
        done = chat.send(text, SHORT)
        alone = model.run(model.new_row(done.prompt_tokens, SHORT, answer_ends=()))
        assert done.tokens == alone.tokens
        assert done.text == alone.text


def test_the_history_is_what_was_said(llama3):
    chat = Conversation(llama3, system="Be brief.")
    pieces = list(chat.stream("hello", SHORT))
    answer = "".join(piece.text for piece in pieces)
    assert chat.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": answer},
    ]
    again = llama3.chat(chat.messages[:2], SHORT)
    assert again.text == answer and again.finish_reason == "length"
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.send("hello", SHORT).text == answer


def test_callbacks_get_every_piece(llama3):
    seen = []
    done = llama3.chat([{"role": "user", "content": "hello"}], SHORT, on_piece=seen.append)
    assert [piece.token for piece in seen] == list(done.tokens)
    assert "".join(piece.text for piece in seen) == done.text
    seen.clear()
    done = llama3.generate("hello", SHORT, on_piece=seen.append)
    assert [piece.token for piece in seen] == list(done.tokens)
    chat = Conversation(llama3)
    seen.clear()
    assert chat.send("hello", SHORT, on_piece=seen.append).tokens == tuple(piece.token for piece in seen)
    with pytest.raises(OptionError, match="num_beams is 2"):
        llama3.generate("hello", SamplingOptions(num_beams=2), on_piece=seen.append)


def test_tools_and_tool_messages(llama3):
    tools = [{"name": "weather"}]
    chat = Conversation(llama3, messages=TOOL_TURNS[1:3], tools=tools)
    done = chat.send(TOOL_TURNS[3], SHORT)
    read = llama3.tokenizer.decode(done.prompt_tokens, skip_special=False)
    assert '"name": "weather"' in read and "Oslo" in read and "<|python_tag|>" in read and "snow" in read
    assert done.prompt_tokens == llama3.chat(TOOL_TURNS[1:], SHORT, tools=tools).prompt_tokens


def test_an_answer_ends_at_the_templates_eos(llama3):
    eot = llama3.tokenizer.vocabulary.added_tokens["<|eot_id|>"]
    options = SamplingOptions(max_new_tokens=7, logit_bias={eot: 100.0})
    done = llama3.chat([SYSTEM, {"role": "user", "content": "x"}], options)
    assert (done.tokens, done.finish_reason, done.text) == ((eot,), "eos", "")


def test_an_answer_is_a_text_of_its_own(tmp_path):
    write_chat_bundle(tmp_path / "b", "llama2")
    model = llama_runtime.load(tmp_path / "b", threads=1)
    space_banana = model.tokenizer.encode("banana", add_special=False)[0]
    options = SamplingOptions(max_new_tokens=2, logit_bias={space_banana: 100.0})
    chat = Conversation(model)
    word = model.tokenizer.decode([space_banana])
    assert chat.send("x", options).text == f"{word} {word}"
    assert not word.startswith(" ")
    # The template writes the space that the token has: the answer is still not read again.
    held = chat._known
    assert list(chat.send("y", options).prompt_tokens[: len(held)]) == held


@pytest.mark.parametrize("seed", range(6))
def test_an_interruption_anywhere_leaves_all_in_order(model, monkeypatch, seed):
    chooser = random.Random(seed)
    chat = Conversation(model, system="You are a fox.")
    fatal, calls = chooser.randint(0, 9), 0
    run = model.session._run

    def interrupted(*arguments):
        nonlocal calls
        result = run(*arguments)
        calls += 1
        if calls == fatal + 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(model.session, "_run", interrupted)
    shown = ""
    try:
        for piece in chat.stream("first", SHORT):
            shown += piece.text
        for piece in chat.stream("second", SHORT):
            shown += piece.text
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    said = "".join(message["content"] for message in chat.messages if message["role"] == "assistant")
    assert said == shown
    third = chat.send("third", SHORT)
    calm = model.run(model.new_row(third.prompt_tokens, SHORT, answer_ends=()))
    assert (third.tokens, third.text) == (calm.tokens, calm.text)


def test_leaving_the_loop_keeps_what_was_shown(llama3):
    chat = Conversation(llama3)
    shown = ""
    for index, piece in enumerate(chat.stream("hello", SHORT)):
        shown += piece.text
        if index == 3:
            break
    assert chat.messages[-1] == {"role": "assistant", "content": shown}
    # What was never begun is not in the history.
    chat.stream("never", SHORT)
    assert len(chat.messages) == 2


def test_a_refused_message_changes_nothing(llama3):
    chat = Conversation(llama3)
    chat.send("hello", SHORT)
    before = list(chat.messages)
    for message, error in (("\udcff", PromptError), ({"content": "x"}, ChatError), ("x " * 300, ChatError)):
        with pytest.raises(error):
            chat.send(message, SHORT)
        assert chat.messages == before
    for options in (SamplingOptions(num_beams=2), SamplingOptions(temperature=1.0, num_return_sequences=2)):
        with pytest.raises(OptionError, match="a chat has one answer"):
            chat.send("x", options)


def test_overflow_is_an_error_unless_chosen(llama3):
    chat = Conversation(llama3, system="Stay.")
    message = rf"the chat is \d+ tokens, and 7 new ones are asked for; the model has {POSITIONS} positions"
    with pytest.raises(ChatError, match=message) as caught:
        for _ in range(20):
            chat.send("a banana is a yellow fruit", SHORT)
    assert "overflow: drop_oldest" in caught.value.hint
    with pytest.raises(OptionError, match="overflow is 'slide', needs one of error, drop_oldest"):
        Conversation(llama3, overflow="slide")


def test_the_oldest_turns_go_and_the_system_message_stays(model):
    chat = Conversation(model, system="Stay.", overflow="drop_oldest")
    for turn in range(20):
        done = chat.send(f"a banana is yellow fruit {turn}!", SHORT)
        assert len(done.prompt_tokens) + 7 <= POSITIONS
        read = model.tokenizer.decode(done.prompt_tokens)
        assert "Stay." in read
        # Whole turns go, the oldest first.
        kept = [n for n in range(20) if f"fruit {n}!" in read]
        assert kept == list(range(kept[0], turn + 1))
        assert chat.dropped_messages == 2 * kept[0]
    assert 0 < chat.dropped_messages < 38
    assert len(chat.messages) == 41
    with pytest.raises(ChatError, match="the last turn with the system message is"):
        chat.send("x " * 300, SHORT)


def test_edited_history_is_read_from_the_edit_on(llama3):
    chat = Conversation(llama3, system="Stay.")
    chat.send("one", SHORT)
    first = chat.send("two", SHORT)
    chat.messages = chat.messages[:3]
    assert chat.send("two", SHORT).tokens == first.tokens
    # The same prompt again: all but its last token was there.
    assert chat.reused_tokens == len(first.prompt_tokens) - 1


# Files


@pytest.fixture
def saved(model, tmp_path):
    chat = Conversation(model, system="You are a fox.")
    chat.send("hello", SHORT)
    chat.save(tmp_path / "chat")
    return chat, tmp_path / "chat"


def test_a_saved_chat_goes_on_without_reading_anything_again(model, saved, monkeypatch):
    chat, path = saved
    other = Conversation(llama_runtime.Generator(model.session, model.tokenizer))
    other.restore(path)
    assert other.messages == chat.messages
    watch = Watch(model, monkeypatch)
    there = chat.send("and then?", SHORT)
    read = list(watch.prefilled)
    here = other.send("and then?", SHORT)
    assert watch.prefilled[len(read) :] == read
    assert (here.tokens, here.prompt_tokens) == (there.tokens, there.prompt_tokens)
    assert other.reused_tokens == chat.reused_tokens > 0
    assert [entry.name for entry in path.parent.iterdir()] == ["chat"]


def test_an_empty_chat_can_be_saved(llama3, tmp_path):
    Conversation(llama3).save(tmp_path / "chat")
    chat = Conversation(llama3, system="gone")
    chat.restore(tmp_path / "chat")
    assert chat.messages == []
    assert chat.send("hello", SHORT).tokens == Conversation(llama3).send("hello", SHORT).tokens


def _changed(path, change):
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata)


CHANGES = {
    "bundle": (lambda t, m: m.update(bundle="0" * 64), "saved with another bundle"),
    "version": (lambda t, m: m.update(version="2"), "version 2 of a saved chat, this runtime reads 1"),
    "format": (lambda t, m: m.update(format="x"), "not a saved chat"),
    "messages": (lambda t, m: m.update(chat='{"messages": 3}'), "corrupt: messages is 3"),
    "no layer": (lambda t, m: t.pop("1"), "do not have the model's shape"),
    "dtype": (lambda t, m: t.update({"0": t["0"].astype(np.float16)}), "do not have the model's shape"),
    "shape": (lambda t, m: t.update({"0": t["0"][:, :-1]}), "do not have the model's shape"),
    "tokens": (lambda t, m: t.update(tokens=t["tokens"][:3]), "fewer than it has keys"),
    "unknown token": (lambda t, m: t.update(tokens=t["tokens"] + VOCAB), "tokens are not the model's"),
    "no tokens": (lambda t, m: t.pop("tokens"), "tokens are not the model's"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_not_this_chats_is_refused(llama3, tmp_path, change, message):
    chat, path = Conversation(llama3), tmp_path / "chat"
    chat.send("hello", SHORT)
    chat.save(path)
    before = list(chat.messages)
    _changed(path, change)
    with pytest.raises(CacheError, match=message) as caught:
        chat.restore(path)
    assert caught.value.message.isprintable() and chat.messages == before


def test_a_file_that_is_no_file_or_cut_short_is_refused(llama3, tmp_path):
    chat, path = Conversation(llama3), tmp_path / "chat"
    chat.send("hello", SHORT)
    chat.save(path)
    content = path.read_bytes()
    for wrong in (content[: len(content) // 2], content[:5], b"", json.dumps({"a": 1}).encode()):
        path.write_bytes(wrong)
        with pytest.raises(CacheError, match="not a saved chat"):
            chat.restore(path)
    with pytest.raises(CacheError, match="cannot be read"):
        chat.restore(tmp_path / "absent")
    with pytest.raises(CacheError, match="cannot be written"):
        chat.save(tmp_path / "absent" / "chat")


def test_what_a_chat_needs(tmp_path):
    write_toy_bundle(tmp_path / "bare")
    bare = llama_runtime.load(tmp_path / "bare")
    with pytest.raises(ChatError, match="the bundle has no chat template"):
        bare.chat([{"role": "user", "content": "x"}])
    write_chat_bundle(tmp_path / "mute", tokenizer=None)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Conversation(llama_runtime.load(tmp_path / "mute"))


# The cache underneath


@pytest.mark.parametrize("attention", ["flash", "sdpa"])
def test_any_order_of_prompts_gives_the_logits_of_each_alone(tmp_path, attention):
    write_toy_bundle(tmp_path / "b", attention)
    session = llama_runtime.load(tmp_path / "b", threads=1).session
    chooser, kept = random.Random(3), PrefixCache(session)
    prompt: list[int] = [1]
    for _ in range(40):
        cut = chooser.randint(0, len(prompt))
        prompt = (prompt[:cut] + chooser.choices(range(61), k=chooser.randint(1, 30)))[:200]
        alone = PrefixCache(session)
        np.testing.assert_allclose(kept.prefill(prompt, 4), alone.prefill(prompt, 4), atol=2e-4)
        assert kept.tokens == prompt
        for token in chooser.choices(range(61), k=chooser.randint(0, 4)):
            np.testing.assert_allclose(kept.decode(token), alone.decode(token), atol=2e-4)
        if chooser.random() < 0.3:
            again = PrefixCache(session)
            again.write(kept.tokens, kept.read())
            kept = again


def test_the_cache_does_not_grow_beyond_the_model(tmp_path):
    write_toy_bundle(tmp_path / "b")
    session = llama_runtime.load(tmp_path / "b", threads=1).session
    cache = PrefixCache(session)
    cache.prefill([1, 2, 3], 1)
    with pytest.raises(PromptError, match=f"a cache of {POSITIONS + 1} positions"):
        cache.prefill([1] * POSITIONS, 1)
    cache.prefill([1] * (POSITIONS - 1), 1)
    cache.decode(5)
    with pytest.raises(PromptError, match=f"a cache of {POSITIONS + 1} positions"):
        cache.decode(5)
