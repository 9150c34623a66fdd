"""Text as it is generated: whole characters only, and in sum exactly what decoding at once gives."""

from __future__ import annotations

import codecs

from llama_runtime.tokenizer import ESCAPED_BYTES, Tokenizer


class TextStream:
    """Turns tokens into text one at a time; the cost of a token does not grow with the text.

    The bytes of a character that is not complete yet are held back, at most three of them.
    """

    def __init__(self, tokenizer: Tokenizer, *, opens_text: bool = True) -> None:
        """Start a text.

        Args:
            tokenizer: What decodes.
            opens_text: The first token opens the text, as in ``Tokenizer.decode``; False where
                the tokens continue a prompt, so that prompt + text has the space between them.
        """
        self._vocabulary = tokenizer.vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.invalid_bytes)
        self._opens_text = opens_text

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; empty while a character is incomplete."""
        if token in self._vocabulary.special_ids:
            return ""
        if self._opens_text:
            piece = self._vocabulary.first_token_bytes(token)
            self._opens_text = False
        else:
            piece = self._vocabulary.token_bytes(token)
        return self._decoder.decode(piece).translate(ESCAPED_BYTES)

    def flush(self) -> str:
        """End the text: what is still incomplete is invalid, and becomes U+FFFD."""
        return self._decoder.decode(b"", final=True).translate(ESCAPED_BYTES)
