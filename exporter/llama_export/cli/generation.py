"""What a generation is to a program, and text that a terminal can show."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from llama_runtime import Generation

# Escape sequences would act on the terminal: show the picture of a control character instead.
PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def facts(done: Generation) -> dict[str, Any]:
    """A generation as JSON has it."""
    found: dict[str, Any] = {
        "text": done.text,
        "tokens": done.tokens,
        "prompt_tokens": done.prompt_tokens,
        "finish_reason": done.finish_reason,
        "seed": done.seed,
        "prefill_ms": done.timings.prefill_ms,
        "decode_tokens_per_s": done.timings.decode_tokens_per_second(done),
    }
    if done.score is not None:
        found["score"] = done.score
    if done.logprobs is not None:
        found["logprobs"] = [asdict(logprobs) for logprobs in done.logprobs]
    return found


def shown(text: str) -> str:
    """Text for stdout: as it is, but on a terminal without what would act on it."""
    return text.translate(PICTURES) if sys.stdout.isatty() else text
