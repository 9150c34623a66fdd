"""Jinja as chat templates expect it, in a sandbox: what they may call, and where their own strings are.

Imported when a template is opened, not before: Jinja is needed for chats alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Methods and filters that look for a string, or take one away, rather than write it.
SEARCHING = {"split", "rsplit", "partition", "rpartition", "startswith", "endswith", "find", "index", "count"}
REMOVING = {"replace", "removeprefix", "removesuffix", "strip", "lstrip", "rstrip"}


class GenerationBlock(Extension):
    """``{% generation %}``, with which training code marks an answer: here, what it holds is written."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares a set, for all instances)

    def parse(self, parser: Parser) -> nodes.Node:
        """Read up to ``{% endgeneration %}``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def compile_template(source: str, mark: Callable[[str], str]) -> Template:
    """Compile a chat template.

    Args:
        source: Jinja, as transformers runs it.
        mark: Applied to every string that the template itself can write, but not to those that it only
            looks for in others.

    Raises:
        jinja2.TemplateSyntaxError: It is not Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    del environment.globals["lipsum"]
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    tree = environment.parse(source)
    for node in _written(tree):
        if isinstance(node, nodes.TemplateData):
            node.data = mark(node.data)
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            node.value = mark(node.value)
    return environment.from_string(tree)


def _written(node: nodes.Node) -> Iterator[nodes.Node]:
    """All nodes but the strings that others are compared with, keys, and what is searched for."""
    yield node
    for child in node.iter_child_nodes():
        if not _only_looks(node, child):
            yield from _written(child)


def _only_looks(parent: nodes.Node, child: nodes.Node) -> bool:
    if isinstance(parent, nodes.Operand | nodes.Compare | nodes.Test):
        return True
    if isinstance(parent, nodes.Getitem):
        return child is parent.arg
    if isinstance(parent, nodes.Call) and isinstance(parent.node, nodes.Getattr):
        name, arguments = parent.node.attr, parent.args
    elif isinstance(parent, nodes.Filter):
        name, arguments = parent.name, parent.args
    else:
        return False
    return (name in SEARCHING and child in arguments) or (name in REMOVING and child in arguments[:1])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes < and & for a web page, as escapes.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
