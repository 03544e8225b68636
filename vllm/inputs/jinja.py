"""How a chat template runs.

Templates are code from a checkpoint, so that they run in Jinja's immutable sandbox and see plain values only.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from vllm.errors import ModelError, RequestError


def run_template(template: str, variables: dict[str, Any]) -> str:
    """Return what a template makes of its variables.  Raises RequestError if it fails."""
    compiled = compile_template(template)
    try:
        return compiled.render(variables)
    except RecursionError:
        raise RequestError("the chat template failed: the messages are nested too deeply", "messages") from None
    except jinja2.TemplateError as error:
        raise RequestError(f"the chat template refuses these messages: {error.message}", "messages") from None
    except Exception as error:  # whatever foreign code may do
        raise RequestError(f"the chat template failed: {type(error).__name__}: {error}", "messages") from error


@functools.lru_cache(maxsize=64)
def compile_template(template: str) -> jinja2.Template:
    """Return the compiled template.  Raises ModelError for one that isn't Jinja."""
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from None


@functools.lru_cache(maxsize=64)
def content_format(template: str) -> str:
    """Return which message contents the template takes: "string", "openai" (a list of parts), or "any" of the two.

    A template that goes over a message's content in a loop takes a list; if it also asks whether a value is a string,
    it takes both.
    """
    try:
        tree = _environment().parse(template)
    except jinja2.TemplateSyntaxError:
        compile_template(template)  # says so with the line
        raise
    if not any(_is_content(loop.iter, _content_names(tree)) for loop in tree.find_all(nodes.For)):
        return "string"
    return "any" if any(test.name == "string" for test in tree.find_all(nodes.Test)) else "openai"


def _content_names(tree: nodes.Template) -> set[str]:
    """Variables and macro parameters that hold a message's content."""
    names: set[str] = set()
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
        for parameter, argument in zip(macro.args if macro else [], call.args, strict=False):
            if _is_content(argument, names):
                names.add(parameter.name)
    return names


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    """Whether an expression is `message.content`, `message["content"]`, a name for it, or one of those filtered."""
    while isinstance(node, nodes.Filter) and isinstance(node.node, nodes.Node):
        node = node.node
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    environment.globals["dict"] = _dict
    environment.globals["namespace"] = _Variables
    return environment


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what an assistant wrote, for training.  Here: its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]


class _Variables(Namespace):
    """Jinja's namespace without names that Python gives a meaning."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a variable of the template
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace variable can't be called {name!r}; drop the underscore")


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as a model reads it: Jinja's own filter would escape characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """What templates call as `dict(…)`: the call alone, without the type and its attributes."""
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)
