"""A chat's tokens, told again: the ids that were read or generated stand wherever the text is still theirs.

A model does not generate the tokens that its text would be encoded to. Encoding its answer anew would
give others, and all that follows would have to be read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from llama_runtime.streaming import TextStream
from llama_runtime.tokenizer import Tokenizer


def encode_transcript(parts: Sequence[str | int], known: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Turn a rendered chat into ids, beginning with known ones as far as they say the same.

    Args:
        parts: From ``ChatTemplate.parts``.
        known: What the cache holds: an earlier prompt and its answer.
        tokenizer: What the ids decode with.

    Returns:
        Ids that decode to the same as ``tokenizer.encode_parts(parts)``.
    """
    borders = tokenizer.vocabulary.special_ids | {part for part in parts if isinstance(part, int)}
    ids: list[int] = []
    for start, group in _groups(parts):
        behind = len(ids)
        if isinstance(group, int):
            if known[behind : behind + 1] != [group]:
                return ids + _encode_rest(parts, start, tokenizer)
            ids.append(group)
            continue
        end = next((i for i in range(behind, len(known)) if known[i] in borders), len(known))
        opens = start == 0 or tokenizer.vocabulary.restarts_after_special
        run = _same_text(known[behind:end], group, tokenizer, opens)
        if run is None:
            return ids + _encode_rest(parts, start, tokenizer)
        ids += run
    return ids


def _groups(parts: Sequence[str | int]) -> Iterator[tuple[int, str | int]]:
    """Ids, and texts between them as one; each with its index in ``parts``."""
    start = 0
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        members = list(group)
        if is_text:
            yield start, "".join(map(str, members))
        else:
            yield from ((start + i, member) for i, member in enumerate(members))
        start += len(members)


def _same_text(run: Sequence[int], text: str, tokenizer: Tokenizer, opens: bool) -> list[int] | None:
    """The run, or a beginning of it, if it says ``text``; only white space may be missing."""
    whole = _text(run, tokenizer, opens)
    if text.startswith(whole) and not text[len(whole) :].strip():
        length = len(run)
    else:
        length = _longest_beginning(run, text, tokenizer, opens)
    if length == 0:
        return None
    rest = text[len(_text(run[:length], tokenizer, opens)) :]
    return [*run[:length], *(tokenizer.vocabulary.encode_inside(rest) if rest else ())]


def _longest_beginning(run: Sequence[int], text: str, tokenizer: Tokenizer, opens: bool) -> int:
    """How many tokens say all of ``text`` but white space at its end; 0 if none do.

    A template may have cut the end off an answer: white space, a stop string, or all of it.
    """
    stream, said, length = TextStream(tokenizer, opens_text=opens), "", 0
    for count, token in enumerate(run, start=1):
        shown = stream.push(token)
        said += shown
        if not text.startswith(said):
            break
        if shown and not text[len(said) :].strip() and _text(run[:count], tokenizer, opens) == said:
            length = count
    return length


def _text(run: Sequence[int], tokenizer: Tokenizer, opens: bool) -> str:
    stream = TextStream(tokenizer, opens_text=opens)
    return "".join([*map(stream.push, run), stream.flush()])


def _encode_rest(parts: Sequence[str | int], start: int, tokenizer: Tokenizer) -> list[int]:
    if start == 0 or isinstance(parts[start], int):
        return tokenizer.encode_parts(parts[start:])
    # How a text is encoded depends on the token in front of it.
    return tokenizer.encode_parts(parts[start - 1 :])[1:]
