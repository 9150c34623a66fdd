"""A person's text as windows of tokens, for a model to read while it is quantized."""

from __future__ import annotations

from pathlib import Path

from llama_export.errors import OptionError
from llama_export.model.config import LlamaConfig
from llama_export.tokenizer.source import SourceTokenizer

WINDOW_TOKENS, MOST_WINDOWS = 256, 64


def calibration_windows(
    file: Path, tokenizer: SourceTokenizer | None, config: LlamaConfig
) -> list[list[int]]:
    """Cut a text into windows, spread evenly over it.

    Args:
        file: UTF-8.
        tokenizer: The checkpoint's.
        config: Its architecture, whose context bounds a window.

    Returns:
        At most ``MOST_WINDOWS`` windows of ``WINDOW_TOKENS`` token ids, each with BOS in front where the
        model has one.

    Raises:
        OptionError: There is no tokenizer, or the file is no text of at least one window.
    """
    if tokenizer is None:
        raise OptionError(
            "the checkpoint has no tokenizer, calibration needs one to read its text",
            "add tokenizer.model or tokenizer.json, or leave --calibration out",
        )
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror})", "name a text file") from None
    except UnicodeDecodeError:
        raise OptionError(f"{file}: not UTF-8, a calibration text must be", "convert it first") from None
    bos = bos_in_front(tokenizer)
    length = min(WINDOW_TOKENS, config.context_length) - len(bos)
    tokens = [t for t in tokenizer.reference().encode(text, False) if t < config.vocab_size]
    count = len(tokens) // length
    if not count:
        raise OptionError(
            f"{file}: holds {len(tokens)} tokens, calibration needs at least one window of {length}",
            "name a longer text, some pages like those the model will read",
        )
    step = max(count // MOST_WINDOWS, 1)
    return [bos + tokens[i * length : (i + 1) * length] for i in range(0, count, step)][:MOST_WINDOWS]


def bos_in_front(tokenizer: SourceTokenizer) -> list[int]:
    """The token in front of every text, or none."""
    return [] if tokenizer.special.bos is None else [tokenizer.special.bos[1]]
