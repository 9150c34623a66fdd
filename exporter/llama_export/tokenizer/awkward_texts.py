"""Texts on which tokenizers part: spaces, controls, all scripts, names of special tokens, long runs."""

from __future__ import annotations

from collections.abc import Sequence

_TOGETHER = 16
# One space character after another, alone and inside.
_BLANKS = "\t\n\r\v\f\u00a0\u0085\u1680\u180e\u2003\u200b\u2028\u2029\u3000\ufeff\u2581"
_SPACES = (
    *(" " * n for n in (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31)),
    *(text for blank in _BLANKS for text in (blank, f"a{blank}b", f" {blank} ", f"{blank}{blank}c")),
    *("Hello  world", " Hello", "  Hello", "Hello ", "Hello  ", "Hello\n", "\nHello", " \tHello\t \n"),
    *("\r\n", "\n\n\n", " \n", "\n ", " \n \n ", "\r\n\r\n\t", "a \n b"),
    "def f(x):\n    if x:\n\treturn  x\n\n\n",
    *("a\x00b", "\x00", "\x01\x1b[0m", "\x7f\x80\x9f", "\u202eabc\u202c", "\u0378", "\ufffd\ufffe\uffff"),
    *("e\u0301", "cafe\u0301", "\u0301", "A\u030a\u0323", "a\u0300\u0301\u0302\u0303", "\u212b \u212a"),
    *("\u1112\u1161\u11ab", "\ue000\uf8ff", "\U0010ffff", "\U00010348\U0001d54f\U00020000", "he'\u017f"),
)
_LINES = r"""
Banana
 banana
I'm you're we'LL they'D it'S don't 'tis rock'n'roll
''''
'S's
0
12
123
1234
12345678901 3.14159 1,000,000
٣٤٥ Ⅷ x² ½
café Äpfel straße naïve ﬁn İIıi
日本語のテスト、中文，字符
한국어
العربية مَ עברית
हिन्दी ไทย தமிழ் ქა
🦙 👩‍👩‍👧 👍🏽 🇫🇷 ❤️ 1️⃣
x=1;y=2 if(a&&b||!c){return;}
https://a.b/c?d=e&f=%20#g $\frac{1}{2}$ \n \u0041 a/b\c
--- ... ?!?! …—“”‘’
<html></html> {"a": [1, 2.5e-3, null]}
<s>
</s>
<unk>
<pad>
<s> a
a<s>b</s>c
a <s> b
<s><s>
<S> < s > <s s> <<s>>
<0x0A>
<0x41><0xE2><0x82><0xAC><0xFF>
[INST] hi [/INST] <<SYS>> [PAD]
<|begin_of_text|>
<|end_of_text|> <|eot_id|><|eom_id|>x<|python_tag|>
<|finetune_right_pad_id|><|reserved_special_token_0|>
 <|reserved_special_token_247|> <|reserved_special_token_|>
<|eot_id| |>
<|start_header_id|>user<|end_header_id|>hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>
<|im_start|>user hi<|im_end|>
<|im_start|> <|im_end|> <|endoftext|>
Ġ ĊĠ âĢĶ
"""
_RUNS = (
    *(one * n for one in ("a", "=", "0", "é", "🦙", "あ", "\u0301") for n in (9, 64, 401)),
    *(
        one * n
        for one in (" ", "\n", "\t", "\r\n", " \n", "- ", "ab", "<s>", "' ", "\u2581")
        for n in (33, 400)
    ),
    "a" * 4000,
    " " * 4000,
    "x " * 1500,
    " ".join(map(str, range(900))),
)
AWKWARD_TEXTS: tuple[str, ...] = tuple(dict.fromkeys((*_SPACES, *_LINES[1:-1].split("\n"), *_RUNS)))


def vocabulary_texts(pieces: Sequence[str]) -> list[str]:
    """Every piece of a vocabulary, some at a time, so that no entry of it stays untried."""
    return ["".join(pieces[start : start + _TOGETHER]) for start in range(0, len(pieces), _TOGETHER)]
