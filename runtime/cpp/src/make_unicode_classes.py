"""Prints unicode_classes.inc: which characters Llama 3's split rule calls letters, numbers and spaces.

They are asked of tiktoken, which defines the rule; a test compares the file with tiktoken and tokenizers.
"""

from __future__ import annotations

import tiktoken

CLASSES = {"letters": r"\p{L}", "numbers": r"\p{N}", "spaces": r"\s"}


def characters(pattern: str) -> list[int]:
    """All code points of a class: a text of every character, of which tiktoken keeps what matches."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("x", pat_str=f"{pattern}+", mergeable_ranks=ranks, special_tokens={})
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    return sorted(set(map(ord, bytes(encoding.encode_ordinary(every)).decode())))


def ranges(points: list[int]) -> list[tuple[int, int]]:
    """Runs of neighbours: the first and the last of each."""
    found: list[list[int]] = []
    for point in points:
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return [(first, last) for first, last in found]


def table() -> str:
    """The file."""
    lines = ["// Made by make_unicode_classes.py; first and last of each run of characters."]
    for name, pattern in CLASSES.items():
        pairs = [f"{{0x{first:X}, 0x{last:X}}}," for first, last in ranges(characters(pattern))]
        lines.append(f"constexpr Range k_{name}[] = {{")
        lines += ["    " + " ".join(pairs[i : i + 5]) for i in range(0, len(pairs), 5)]
        lines.append("};")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
