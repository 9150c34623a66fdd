"""The toy with a vocabulary and a chat template: byte-level as Llama 3's, or sentencepiece as Llama 2's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chat_templates import CHATML, LLAMA2, LLAMA3, LLAMA3_SPECIALS, SPECIAL_TOKENS
from toy_bundle import list_files, write_toy_bundle
from vocabularies import small_byte_level_tokenizer_json, train_sentencepiece

from llama_runtime.manifest import ChatTemplates, Manifest, TokenizerFile, Tokens

VOCAB = 400  # a little more than either vocabulary has


def write_chat_bundle(folder: Path, kind: str = "llama3", attention: str = "flash", **fields) -> Manifest:
    """Write a bundle whose model talks nonsense, in one of three kinds: llama2, llama3, chatml."""
    manifest = write_toy_bundle(folder, attention, vocab=VOCAB)
    if kind == "llama2":
        train_sentencepiece(folder / "tokenizer.model")
        templates = ChatTemplates({"default": LLAMA2}, {"bos_token": "<s>", "eos_token": "</s>"})
        file, tokens = TokenizerFile("sentencepiece", "tokenizer.model", True, False), Tokens(1, (2,), None)
    else:
        small_byte_level_tokenizer_json(folder / "tokenizer.json", LLAMA3_SPECIALS, size=380)
        source = LLAMA3 if kind == "llama3" else CHATML
        templates = ChatTemplates({"default": source}, SPECIAL_TOKENS)
        file, tokens = TokenizerFile("tokenizers", "tokenizer.json", True, False), Tokens(0, (), None)
    chat = {"tokenizer": file, "tokens": tokens, "chat_template": templates, "files": list_files(folder)}
    manifest = replace(manifest, **chat | fields)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return manifest
