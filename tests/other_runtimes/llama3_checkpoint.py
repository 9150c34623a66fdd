"""A small random checkpoint of Llama 3's kind: byte-level vocabulary, scaled rope, tied head."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

from tiny_checkpoints import write_checkpoint
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llama_export.model import LlamaConfig, RopeConfig

# What a person would find in Llama 3's own tokenizer.json.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, END_OF_TEXT, START_HEADER, END_HEADER, EOT = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
CORPUS = [
    "Once upon a time there was a small red fox, and it lived by the sea.",
    "In 1984 the 3 foxes' dens weren't far from the river: 12,345 steps at most!",
    "Grüße aus Köln — naïve café, señor; 東京と大阪、そして京都。 Привет, мир!",
    "def f(x):\n    return x + 1\n\n\nif __name__ == '__main__':\n    print(f(41))\n",
    "We're told that it's raining; they'll say I'd've known. 🦙🦙 llamas\tand alpacas",
] * 8
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def byte_level_tokenizer(vocab_size: int) -> Tokenizer:
    """Train a vocabulary of Llama 3's kind."""
    library = _split(Tokenizer(models.BPE(ignore_merges=True)))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    return _finished(library)


def _split(library: Tokenizer) -> Tokenizer:
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bytes_of_text = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of_text])
    return library


def _finished(library: Tokenizer) -> Tokenizer:
    """With everything around the vocabulary; special tokens stand behind all others."""
    _split(library).decoder = decoders.ByteLevel()
    names = (BOS, END_OF_TEXT, START_HEADER, END_HEADER, EOT)
    library.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    bos = library.token_to_id(BOS)
    template = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B:1", [(BOS, bos)])
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return library


def write_llama3_checkpoint(folder: Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write the folder; head_dim is hidden_size / num_attention_heads, which optimum takes for granted.

    Args:
        folder: Is made.
        tokenizer: One with Llama 3's special tokens; None trains a small one.
    """
    library = tokenizer or byte_level_tokenizer(480)
    ids = {name: library.token_to_id(name) for name in (BOS, END_OF_TEXT, EOT)}
    config = LlamaConfig(
        vocab_size=library.get_vocab_size(),
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope=RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 64),
        tie_word_embeddings=True,
    )
    tokens = {"bos_token_id": ids[BOS], "eos_token_id": [ids[END_OF_TEXT], ids[EOT]]}
    write_checkpoint(folder, config, "bfloat16", **tokens)
    library.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": BOS,
        "eos_token": EOT,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": True,  # as Meta's own files have it, though it must change nothing
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    sampling = tokens | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    return folder


def real_tokenizer(ranks_file: Path) -> Tokenizer:
    """Llama 3's own ranks (Meta's ``tokenizer.model``, zipped) with its first special tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    vocab = {}
    for line in gzip.decompress(ranks_file.read_bytes()).splitlines():
        token, rank = line.split()
        vocab["".join(shown[byte] for byte in base64.b64decode(token))] = int(rank)
    merges = []
    for name in vocab:  # in the order of their ranks
        pairs = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        known = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return _finished(Tokenizer(models.BPE(vocab, merges, ignore_merges=True)))
