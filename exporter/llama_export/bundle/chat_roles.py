"""A chat template reduced to the text around each message, for runtimes that have no Jinja.

Most templates of the LLaMA family only put something in front of each message, which depends on its role
and on the role of the one before. Such a template is learned from renderings, and then compared with it on
conversations it was not learned from; one that does more is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

from llama_runtime.chat_template import ChatTemplate
from llama_runtime.errors import ChatError
from llama_runtime.manifest import ChatRoles, Manifest
from llama_runtime.tokenizer import open_tokenizer

Part = str | int
Turns = Sequence[tuple[str, str]]  # role and content

_PLAIN = ("user", "assistant", "user", "assistant", "user")
_WITH_SYSTEM = ("system", *_PLAIN)
_PADDING = (" \n", "\t ")
_CONTENTS = (
    "Hello!",
    "a  b\n\nc",
    " padded\t\n",
    "<|eot_id|></s><s>[INST] <<SYS>> <|im_end|>",
    "{{ messages }} {% endfor %}",
    "\u00fcn\u00ef\u4e2d\u6587 \U0001f999\u00a0",
    "<think>x</think> y",
    "\u2581",
    "",
)


class CannotReduceError(Exception):
    """The template does more than put text around messages."""


def chat_roles(folder: Path, manifest: Manifest) -> ChatRoles | str:
    """Reduce a staged bundle's default chat template.

    Args:
        folder: The bundle, with its tokenizer's files.
        manifest: Of a bundle that has a chat template.

    Returns:
        The roles, or why there are none.
    """
    templates, file = manifest.chat_template, manifest.tokenizer
    if templates is None or file is None or "default" not in templates.sources:
        return "there is no tokenizer, or no default template"
    source = templates.sources["default"]
    if "strftime_now" in source:
        return "its text depends on the date"
    tokenizer = open_tokenizer(folder, file, manifest.tokens)
    try:
        return _reduce(ChatTemplate("default", source, templates.special_tokens, tokenizer))
    except (CannotReduceError, ChatError) as error:
        return str(error)


def with_chat_roles(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest, with roles where its chat template can be reduced to them."""
    found = chat_roles(folder, manifest)
    if manifest.chat_template is None or isinstance(found, str):
        return manifest
    return replace(manifest, chat_template=replace(manifest.chat_template, roles=found))


def render(roles: ChatRoles, turns: Turns) -> list[Part]:
    """What the roles make of a conversation; texts that follow each other are one."""
    parts: list[Part] = []
    for (front, _), (role, content) in pairwise([("", ""), *turns]):
        parts += [*roles.between[front][role], content.strip() if roles.trim[role] else content]
    return _joined([*parts, *roles.answer])


def _reduce(template: ChatTemplate) -> ChatRoles:
    shapes = [_PLAIN[:length] for length in (1, 3, 5)]
    if _takes_system(template):
        shapes += [_WITH_SYSTEM[:length] for length in (2, 4, 6)]
    between: dict[str, dict[str, tuple[Part, ...]]] = {}
    answers = set()
    for shape in shapes:
        *fronts, answer = _around(template, shape)
        answers.add(tuple(answer))
        for (front, role), parts in zip(pairwise(["", *shape]), fronts, strict=True):
            known = between.setdefault(front, {}).setdefault(role, tuple(parts))
            if known != tuple(parts):
                where = f"behind a {front}'s" if front else "at the start"
                raise CannotReduceError(
                    f"what it puts in front of {role} messages {where} is not always the same"
                )
    if len(answers) != 1:
        raise CannotReduceError("what it puts behind the last message is not always the same")
    names = {role for shape in shapes for role in shape}
    roles = ChatRoles(between, dict.fromkeys(sorted(names), False), answers.pop())
    roles.trim.update({role: _trims(template, roles, shapes[-1], role) for role in names})
    _check(template, roles, shapes)
    return roles


def _takes_system(template: ChatTemplate) -> bool:
    try:
        _around(template, _WITH_SYSTEM[:2])
    except (ChatError, CannotReduceError):
        return False
    return True


def _around(template: ChatTemplate, shape: Sequence[str]) -> list[list[Part]]:
    """What stands in front of each message, and behind the last, around contents that occur nowhere else."""
    marks = [f"Zq{index}xW" for index in range(len(shape))]
    parts = _rendered(template, list(zip(shape, marks, strict=True)))
    groups: list[list[Part]] = [[]]
    for part in parts:
        if isinstance(part, str):
            while len(groups) <= len(marks) and marks[len(groups) - 1] in part:
                front, _, part = part.partition(marks[len(groups) - 1])
                groups[-1] += [front] if front else []
                groups.append([])
        if part != "":
            groups[-1].append(part)
    seen = "".join(part for group in groups for part in group if isinstance(part, str))
    if len(groups) != len(shape) + 1 or any(mark in seen for mark in marks):
        raise CannotReduceError("it leaves messages out, repeats them or changes their order")
    return groups


def _trims(template: ChatTemplate, roles: ChatRoles, shape: Sequence[str], role: str) -> bool:
    turns = [(name, "word".join(_PADDING) if name == role else "word") for name in shape]
    wanted = _rendered(template, turns)
    for trims in (False, True):
        tried = ChatRoles(roles.between, roles.trim | {role: trims}, roles.answer)
        if render(tried, turns) == wanted:
            return trims
    raise CannotReduceError(f"it changes the content of {role} messages")


def _check(template: ChatTemplate, roles: ChatRoles, shapes: Sequence[Sequence[str]]) -> None:
    for start in range(len(_CONTENTS)):
        for shape in shapes:
            contents = [_CONTENTS[(start + index) % len(_CONTENTS)] for index in range(len(shape))]
            # Many templates leave an empty system message out; a reader refuses it.
            turns = [
                (role, content or ("x" if role == "system" else ""))
                for role, content in zip(shape, contents, strict=True)
            ]
            if render(roles, turns) != _rendered(template, turns):
                raise CannotReduceError("what it writes depends on what the messages say")


def _rendered(template: ChatTemplate, turns: Turns) -> list[Part]:
    return _joined(template.parts([{"role": role, "content": content} for role, content in turns]))


def _joined(parts: Iterable[Part]) -> list[Part]:
    found: list[Part] = []
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        members = list(group)
        text = "".join(map(str, members)) if is_text else ""
        found += ([text] if text else []) if is_text else members
    return found
