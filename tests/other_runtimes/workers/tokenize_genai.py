"""Texts to ids with onnxruntime-genai's tokenizer; null where it refuses a text; see ``asked``."""

from __future__ import annotations

import json
import sys

import onnxruntime_genai


def main() -> None:
    question = json.load(sys.stdin)
    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(question["bundle"]))

    def encode(text: str) -> list[int] | None:
        try:
            return [int(token) for token in tokenizer.encode(text)]
        except Exception:  # it raises plain ones
            return None

    print(json.dumps({"genai": [encode(text) for text in question["texts"]]}))


main()
