"""Chats in C++: the template reduced at export, and the same prompts and answers as Python's Jinja gives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from c_abi import AbiError
from chat_templates import CONVERSATIONS, TEMPLATES
from talking_checkpoint import CONFIG, write_talking_checkpoint
from tokenizer_sources import RANKS, write_ranks

import llama_export
import llama_runtime
from llama_export.bundle.chat_roles import chat_roles, render
from llama_export.recipe import Recipe
from llama_runtime import SamplingOptions
from llama_runtime.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("quick_graphs")

EXTRA = ["<|im_start|>", "<|im_end|>"]
REDUCED = ["llama2", "llama3", "chatml"]
HELLO = [{"role": "user", "content": "hello"}]
AWKWARD = {
    "names": [{"role": "user", "content": "<|im_end|><|eot_id|></s> <|im_end|> [INST]<s>"}],
    "spaces": [
        {"role": "user", "content": " \n a  b\u2003"},
        {"role": "assistant", "content": "\t"},
        {"role": "user", "content": "\u001cx\u0085"},
    ],
}


def write_chat_checkpoint(folder: Path, template: str) -> Path:
    """Llama 2's kind for its template; else Llama 3's, with an end of turn that is found in any text."""
    size = RANKS + 256 + len(EXTRA)
    pieces = template == TEMPLATES["llama2"]
    changes = {"max_position_embeddings": 1024} | ({} if pieces else {"vocab_size": size})
    config = dataclasses.replace(CONFIG, **changes)
    write_talking_checkpoint(folder, config=config)
    settings: dict = {"add_bos_token": True, "chat_template": template}
    if not pieces:
        write_ranks(folder / "tokenizer.model")
        ids = {"bos_token_id": RANKS, "eos_token_id": RANKS + 1}
        (folder / "generation_config.json").write_text(json.dumps(ids))
        names = {"<|start_header_id|>": RANKS + 6, "<|end_header_id|>": RANKS + 7, "<|eot_id|>": RANKS + 9}
        names |= {"<|begin_of_text|>": RANKS, "<|end_of_text|>": RANKS + 1}
        named = {str(token): {"content": name, "special": True} for name, token in names.items()}
        settings |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        reserved = RANKS + 256
        named |= {
            str(reserved + i): {"content": name, "special": name == "<|im_start|>"}
            for i, name in enumerate(EXTRA)
        }
        settings["added_tokens_decoder"] = named
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory, quick_graphs):
    made: dict[str, llama_export.Exported] = {}

    def bundle(name: str, template: str | None = None):
        if name not in made:
            folder = tmp_path_factory.mktemp("chat")
            source = write_chat_checkpoint(folder / "source", template or TEMPLATES[name])
            made[name] = llama_export.export(source, folder / "bundle", recipe=Recipe(verify=False))
        return made[name]

    return bundle


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("chat", [*CONVERSATIONS, *AWKWARD])
def test_prompts_and_answers_are_pythons(bundle_of, open_model, name, chat):
    bundle = bundle_of(name).output
    cpp, python = open_model(bundle), llama_runtime.load(bundle, threads=1)
    assert cpp.has == {"tokenizer": True, "chat": True}
    messages = (CONVERSATIONS | AWKWARD)[chat]
    for options in ({"max_new_tokens": 24}, {"max_new_tokens": 24, "temperature": 1.0, "seed": 5}):
        wanted = python.chat(messages, SamplingOptions(**options))
        got = cpp.chat(messages, **options)
        assert got.prompt_tokens == wanted.prompt_tokens
        assert (got.tokens, got.text, got.finish) == (wanted.tokens, wanted.text, wanted.finish_reason)


@pytest.mark.parametrize("name", REDUCED)
def test_roles_say_what_the_template_renders(bundle_of, name):
    bundle = bundle_of(name)
    roles = bundle.manifest.chat_template.roles
    assert roles == read_manifest(bundle.output).chat_template.roles
    assert not [note for note in bundle.notes if "C++" in note]
    template = llama_runtime.load(bundle.output).chat_template()
    for messages in CONVERSATIONS.values():
        turns = [(message["role"], message["content"]) for message in messages]
        merged: list = []
        for part in template.parts(messages):
            if merged and isinstance(part, str) and isinstance(merged[-1], str):
                merged[-1] += part
            else:
                merged.append(part)
        assert render(roles, turns) == merged
    assert roles.trim["user"] == (name != "chatml")


def test_a_longer_chat_reads_its_new_turn_alone(bundle_of, open_model):
    bundle = bundle_of("llama3").output
    cpp, messages = open_model(bundle), [*CONVERSATIONS["turns"]]
    for turn in range(4):
        got = cpp.chat(messages, max_new_tokens=16)
        fresh = open_model(bundle).chat(messages, max_new_tokens=16)
        assert (got.tokens, got.text) == (fresh.tokens, fresh.text), turn
        answer = {"role": "assistant", "content": got.text}
        messages += [answer, {"role": "user", "content": f"and {turn}?"}]
    shorter = cpp.chat(messages[:2], max_new_tokens=16)
    assert shorter.tokens == open_model(bundle).chat(messages[:2], max_new_tokens=16).tokens


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_longer_chat_with_a_growing_cache(open_model, tmp_path, attention):
    source = write_chat_checkpoint(tmp_path / "source", TEMPLATES["llama3"])
    recipe = Recipe(verify=False, attention=attention)
    bundle = llama_export.export(source, tmp_path / "bundle", recipe=recipe).output
    cpp, messages = open_model(bundle), [*CONVERSATIONS["turns"]]
    for _ in range(3):
        got = cpp.chat(messages, max_new_tokens=12)
        assert got.tokens == open_model(bundle).chat(messages, max_new_tokens=12).tokens
        messages += [{"role": "assistant", "content": "well"}, {"role": "user", "content": "go on"}]


ONCE = "{% for message in messages %}{{ message.content }}{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }}" + ONCE
LAST = "{{ messages[-1].content }}"
UPPER = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"
NUMBERED = "{% for message in messages %}{{ loop.index }}: {{ message.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("name", "template", "reason"),
    [
        ("thinking", None, "what it writes depends on what the messages say"),
        ("dated", DATED, "its text depends on the date"),
        ("last", LAST, "it leaves messages out, repeats them or changes their order"),
        ("upper", UPPER, "it leaves messages out, repeats them or changes their order"),
        ("numbered", NUMBERED, "what it puts in front of assistant messages behind a user's is"),
    ],
)
def test_what_cannot_be_reduced_is_refused_with_the_reason(bundle_of, open_model, name, template, reason):
    bundle = bundle_of(name, template)
    assert bundle.manifest.chat_template.roles is None
    assert [note for note in bundle.notes if "rendered prompts alone" in note and reason in note]
    assert chat_roles(bundle.output, bundle.manifest).startswith(reason)
    cpp = open_model(bundle.output)
    assert cpp.has["chat"] is False
    with pytest.raises(AbiError, match="the bundle's chat template cannot be reduced to roles") as caught:
        cpp.chat(HELLO)
    assert caught.value.status == "chat"
    assert "parse_special" in caught.value.hint


def test_a_rendered_prompt_is_the_way_out(bundle_of, open_model):
    bundle = bundle_of("thinking").output
    python, cpp = llama_runtime.load(bundle, threads=1), open_model(bundle)
    rendered = python.chat_template().text(HELLO)
    assert "<|user|>" in rendered
    options = {"max_new_tokens": 12}
    wanted = python.chat(HELLO, SamplingOptions(**options))
    got = cpp.generate(rendered, parse_special=1, **options)
    assert (got.prompt_tokens, got.text) == (wanted.prompt_tokens, wanted.text)


def test_a_tools_answer_is_refused_and_its_rendered_prompt_is_not(bundle_of, open_model):
    bundle = bundle_of("llama3").output
    python, cpp = llama_runtime.load(bundle, threads=1), open_model(bundle)
    said = {"role": "assistant", "content": "counting"}
    turns = [*HELLO, said, {"role": "tool", "content": "seven"}]
    for refused in (turns, [*turns, *HELLO]):
        with pytest.raises(AbiError, match="of role tool") as caught:
            cpp.chat(refused)
        assert "render the prompt, and generate from it with parse_special" in caught.value.hint
    rendered = python.chat_template().text(turns)
    assert "seven" in rendered
    wanted = python.chat(turns, SamplingOptions(max_new_tokens=12))
    got = cpp.generate(rendered, parse_special=1, max_new_tokens=12)
    assert (got.prompt_tokens, got.text) == (wanted.prompt_tokens, wanted.text)


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        ([], "there are no messages"),
        (["user", "assistant"], "the last message is of role assistant, needs user"),
        (["assistant", "user"], "a message of role assistant stands as the first"),
        (["user", "user"], "a message of role user stands behind one of role user"),
        (["tool", "user"], "a message of role tool stands as the first"),
        (["user", "system", "user"], "a message of role system stands behind one of role user"),
    ],
)
def test_turns_without_a_place(bundle_of, open_model, roles, told):
    cpp = open_model(bundle_of("llama3").output)
    with pytest.raises(AbiError, match=told):
        cpp.chat([{"role": role, "content": "x"} for role in roles])
    with pytest.raises(AbiError, match="the system message is empty"):
        cpp.chat([{"role": "system", "content": " "}, *HELLO])
    assert cpp.chat(HELLO, max_new_tokens=3).tokens
