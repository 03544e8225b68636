"""Where a chat template comes from, and how it is compiled.

    argument ─▶ chat_template.jinja (+ additional_chat_templates/) ─▶ tokenizer_config.json ─▶ chat_template.json

Templates are code from a checkpoint, so that they run in Jinja's immutable sandbox and see plain values only.
"""

from __future__ import annotations

import difflib
import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from vllm.errors import ConfigError, ModelError
from vllm.inputs.tokenizer_files import read_json


def load_chat_template(chat_template: Path | str | None, *, is_literal: bool = False) -> str | None:
    """Return the text of a chat template given as a path or as the template itself.

    A string with braces or line breaks is a template; any other is the path of a file.  `is_literal` says that the
    string is a template whatever it looks like.  Raises ConfigError for a file that can't be read.
    """
    if chat_template is None:
        return None
    if not isinstance(chat_template, (str, Path)):
        raise TypeError(f"chat_template must be a path or a template, got {chat_template!r}")
    if is_literal:
        if isinstance(chat_template, Path):
            raise TypeError(f"chat_template {str(chat_template)!r} is a path, but is_literal=True; give its text")
        return chat_template
    if isinstance(chat_template, str) and any(mark in chat_template for mark in "{}\n"):
        return chat_template
    return _read_template(Path(chat_template).expanduser())


def find_templates(folder: str | Path) -> dict[str, str]:
    """Return a checkpoint's templates by name; the only one, or the usual one, is called "default"."""
    folder = Path(folder)
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        stored = read_json(folder / name).get("chat_template")
        if isinstance(stored, str):
            return {"default": stored}
        if isinstance(stored, dict):
            return {str(key): str(value) for key, value in stored.items()}
        if stored:
            return {entry["name"]: entry["template"] for entry in stored}
    return {}


def choose_template(model: str, templates: dict[str, str], given: str | Path | None, has_tools: bool) -> str:
    """Return the template to use: the one that is given (a name, a path or a text), else the model's own."""
    if given is not None:
        named = templates.get(given) if isinstance(given, str) else None
        return named if named is not None else load_chat_template(given) or ""
    if has_tools and "tool_use" in templates:
        return templates["tool_use"]
    if "default" in templates:
        return templates["default"]
    if templates:
        names = ", ".join(sorted(templates))
        raise ModelError(f"{model} has several chat templates and no default; choose one with chat_template=: {names}")
    raise ModelError(
        f"{model} has no chat template; it may be a base model.  Give one with chat_template= (a path or a Jinja "
        "template), or use generate() with a prompt of your own"
    )


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


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"chat_template {str(path)!r} is not a text file in UTF-8") from None
    except OSError as error:
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        similar = difflib.get_close_matches(path.name, near, n=1)
        hint = f" Similar: {path.parent / similar[0]}." if similar else ""
        raise ConfigError(
            f"chat_template {str(path)!r} can't be read ({error.strerror}).{hint}"
            " Give the path of a Jinja file, or the template itself"
        ) from None


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
