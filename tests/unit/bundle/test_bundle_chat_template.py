"""Where a checkpoint keeps its chat templates and the tokens they name."""

from __future__ import annotations

import json
import shutil

import pytest

from llama_export.bundle.chat_template import chat_templates
from llama_export.checkpoint import open_checkpoint
from llama_export.errors import CheckpointError
from llama_export.tokenizer import write_tokenizer_json

LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def checkpoint(talking, tmp_path):
    return shutil.copytree(talking, tmp_path / "fox")


def found(folder):
    templates = chat_templates(open_checkpoint(folder))
    return None if templates is None else (templates.sources, templates.special_tokens)


def settings(folder, **values):
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def test_one_template_in_the_settings(checkpoint):
    settings(checkpoint, chat_template="{{ messages }}")
    assert found(checkpoint) == ({"default": "{{ messages }}"}, LLAMA)


def test_named_templates_in_the_settings(checkpoint):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}, {"name": "broken"}]
    settings(checkpoint, chat_template=named)
    assert found(checkpoint) == ({"default": "d", "tool_use": "t"}, LLAMA)


def test_files_of_their_own_win(checkpoint):
    settings(checkpoint, chat_template="old")
    (checkpoint / "chat_template.jinja").write_text("{{ messages }} ✓", encoding="utf-8")
    assert found(checkpoint) == ({"default": "{{ messages }} ✓"}, LLAMA)
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates/tool_use.jinja").write_text("t")
    assert found(checkpoint)[0] == {"default": "{{ messages }} ✓", "tool_use": "t"}


def test_no_template(checkpoint):
    settings(checkpoint)
    assert found(checkpoint) is None
    (checkpoint / "tokenizer_config.json").unlink()
    assert found(checkpoint) is None


def test_special_tokens_by_name_win_over_ids(checkpoint):
    settings(
        checkpoint, chat_template="x", eos_token={"content": "<|im_end|>", "special": True}, pad_token=None
    )
    (checkpoint / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "</s>", "unk_token": "<unk>"})
    )
    assert found(checkpoint)[1] == {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}


def test_ids_get_their_names_from_tokenizer_json(checkpoint):
    settings(checkpoint, chat_template="x")
    write_tokenizer_json(checkpoint / "tokenizer.model", checkpoint / "tokenizer.json")
    (checkpoint / "tokenizer.model").unlink()
    text = (checkpoint / "tokenizer.json").read_text()
    for old, new in (("<s>", "<|begin_of_text|>"), ("</s>", "<|eot_id|>")):
        text = text.replace(f'"{old}"', f'"{new}"')
    (checkpoint / "tokenizer.json").write_text(text)
    assert found(checkpoint)[1] == {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_a_template_that_is_not_utf8_is_refused(checkpoint, name):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"jinja: not UTF-8"):
        found(checkpoint)
