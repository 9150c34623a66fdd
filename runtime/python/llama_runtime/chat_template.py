"""Messages become a prompt, in which only the checkpoint's template can write control tokens.

A template writes its control tokens as text, ``<|eot_id|>``, and a user may write the same text. So before
the template is compiled, each one in its own strings becomes a lone surrogate: one character that no
valid text holds. After rendering, the surrogates are the tokens, and all else is text, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_runtime.errors import ChatError
from llama_runtime.tokenizer import Tokenizer, check_text

if TYPE_CHECKING:
    from llama_runtime.manifest import ChatTemplates

Message = Mapping[str, Any]
Part = str | int

MARKERS = range(0xD800, 0xE000)
MARKER = re.compile(r"[\ud800-\udfff]")
MAX_CHARACTERS = 1 << 24
NO_TEMPLATE = "give the prompt as text, or export a checkpoint that has a chat template"


class ChatTemplate:
    """One of the bundle's chat templates, compiled.

    Attributes:
        name: "default", "tool_use", ...
    """

    def __init__(self, name: str, source: str, variables: Mapping[str, str], tokenizer: Tokenizer) -> None:
        """Compile a template.

        Args:
            name: For messages.
            source: Jinja.
            variables: What it finds as ``bos_token``, ``eos_token`` and their like.
            tokenizer: Whose special tokens it may write.

        Raises:
            ChatError: It is not Jinja.
        """
        from jinja2 import TemplateError

        from llama_runtime.sandbox import compile_template

        self.name = name
        self._names: list[str] = []
        self._ids = tokenizer.vocabulary.added_tokens
        # White space that a vocabulary lists as an added token is ordinary text to a template.
        names = sorted((name for name in self._ids if not name.isspace()), key=len, reverse=True)
        self._any_name = re.compile("|".join(map(re.escape, names)) or "(?!)")
        try:
            check_text(source)
            self._template = compile_template(source, self._mark)
        except (TemplateError, RecursionError) as error:
            raise ChatError(f"the chat template {name!r} is not valid Jinja: {_one_line(error)}") from None
        self._variables = {key: self._mark(value) for key, value in variables.items()}
        special_ids = tokenizer.vocabulary.special_ids
        # What a vocabulary finds in any text, though the template writes it as a control token.
        found = [
            name for name in sorted(self._names, key=len, reverse=True) if self._ids[name] not in special_ids
        ]
        self._found_in_text = re.compile("|".join(map(re.escape, found)) or "(?!)")

    def parts(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[Part]:
        """Render messages into texts and token ids, for ``Tokenizer.encode_parts``.

        Args:
            messages: Each has a ``role``, most have ``content``; what else they hold the template may read.
            tools: Passed to the template: JSON schemas of functions that the model may call.
            add_generation_prompt: End with what opens the model's answer.
            variables: More of what the template may read.

        Raises:
            ChatError: The messages are malformed, the template refuses them or cannot be rendered.
            PromptError: A text is not valid UTF-8.
        """
        parts: list[Part] = []
        rendered = self._render(messages, tools, add_generation_prompt, variables)
        for text, marker in zip(MARKER.split(rendered), [*MARKER.findall(rendered), ""], strict=True):
            parts += self._as_text(text)
            if marker:
                parts.append(self._ids[self._name_of(marker)])
        return parts

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Render messages to read them: tokens by name. The arguments and errors are those of ``parts``."""
        rendered = self._render(messages, tools, add_generation_prompt, variables)
        return MARKER.sub(lambda match: self._name_of(match[0]), rendered)

    def _mark(self, text: str) -> str:
        if MARKER.search(text):
            raise ChatError(f"the chat template {self.name!r} holds characters that are not valid UTF-8")

        def marker(match: re.Match[str]) -> str:
            if match[0] not in self._names:
                self._names.append(match[0])
            return chr(MARKERS[self._names.index(match[0])])

        return self._any_name.sub(marker, text)

    def _name_of(self, marker: str) -> str:
        index = MARKERS.index(ord(marker))
        if index >= len(self._names):
            raise ChatError(f"the chat template {self.name!r} wrote {marker!a}, which is not valid UTF-8")
        return self._names[index]

    def _as_text(self, text: str) -> list[Part]:
        # Cut behind its first character, the name of a token is not found.
        cuts = [match.start() + 1 for match in self._found_in_text.finditer(text)]
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        from jinja2 import TemplateError

        context = self._variables | {key: _plain(value, key) for key, value in variables.items()}
        context |= {
            "messages": check_messages(messages),
            "tools": None if tools is None else [_plain(tool, f"tools[{i}]") for i, tool in enumerate(tools)],
            "documents": context.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _bounded(self._template.generate(context))
        except ChatError:
            raise
        except TemplateError as error:
            raise ChatError(f"the chat template refuses the messages: {_one_line(error)}") from None
        except Exception as error:  # Templates run into any error that Python has.
            what = f"{type(error).__name__}: {_one_line(error)}"
            raise ChatError(f"the chat template {self.name!r} cannot be rendered: {what}") from None


def choose_template(templates: ChatTemplates | None, tools: object, name: str | None = None) -> str:
    """The name of the template to use: the one asked for, else "tool_use" for tools, else "default".

    Raises:
        ChatError: The bundle has none, or none of that name.
    """
    if templates is None:
        raise ChatError("the bundle has no chat template", NO_TEMPLATE)
    if name is None:
        name = "tool_use" if tools is not None and "tool_use" in templates.sources else "default"
    if name not in templates.sources:
        known = ", ".join(templates.sources)
        raise ChatError(f"the bundle has no chat template {name!r}", f"name one of its own: {known}")
    return name


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copy messages as plain data, which is all that a template may see; keys without a value are left out.

    Raises:
        ChatError: Not a list of objects with a role, or something in it is not JSON.
        PromptError: A text is not valid UTF-8.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ChatError(f"messages is {repr(messages)[:60]}, needs a list of objects with role and content")
    if not messages:
        raise ChatError("there are no messages, needs at least one")
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            shown = repr(message)[:60]
            raise ChatError(f"messages[{index}] is {shown}, needs an object with role and content")
        plain = _plain(message, f"messages[{index}]")
        checked.append({key: value for key, value in plain.items() if value is not None})
    return checked


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, str):
        check_text(value)
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ChatError(f"{where} is a {type(value).__name__}, needs what JSON can hold")


def _bounded(pieces: Iterable[str]) -> str:
    kept, length = [], 0
    for piece in pieces:
        kept.append(piece)
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise ChatError(f"the chat template wrote more than {MAX_CHARACTERS} characters")
    return "".join(kept)


def _one_line(error: Exception) -> str:
    lineno = getattr(error, "lineno", None)
    line = f"line {lineno}: " if lineno else ""
    return line + " ".join(str(error).split())[:300].rstrip(".")
