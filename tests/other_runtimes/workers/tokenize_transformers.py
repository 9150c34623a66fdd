"""Texts to ids with transformers' fast tokenizer, and with tokenizers alone; see ``asked``."""

from __future__ import annotations

import json
import sys

import tokenizers
import transformers


def main() -> None:
    question = json.load(sys.stdin)
    fast = transformers.AutoTokenizer.from_pretrained(question["bundle"])
    bare = transformers.PreTrainedTokenizerFast(tokenizer_file=question["bundle"] + "/tokenizer.json")
    library = tokenizers.Tokenizer.from_file(question["bundle"] + "/tokenizer.json")
    answer = {
        "version": transformers.__version__,
        "class": type(fast).__name__,
        "transformers": [fast.encode(text, add_special_tokens=False) for text in question["texts"]],
        "file alone": [bare.encode(text, add_special_tokens=False) for text in question["texts"]],
        "with special": [fast(text)["input_ids"] for text in question["texts"]],
        "tokenizers": [library.encode(text, add_special_tokens=False).ids for text in question["texts"]],
    }
    print(json.dumps(answer))


main()
