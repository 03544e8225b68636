"""Pages of the documentation that are made from the code: `PAGES` has them by name, and `make docs` writes them."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from vllm import env
from vllm.config import DEFAULT_MODEL, EngineArgs
from vllm.entrypoints.cli.options import GROUPS
from vllm.entrypoints.cli.serve import GROUPS as SERVER_GROUPS
from vllm.entrypoints.serve.settings import ServerArgs


def write_pages(folder: Path) -> None:
    """Write the pages that are made, where they differ from what is there."""
    for name, make in PAGES.items():
        content = make()
        page = folder / name
        if not page.exists() or page.read_text("utf-8") != content:
            page.write_text(content, "utf-8")


def configuration() -> str:
    """The options of the engine and of the server, and the environment's variables."""
    parts = [
        "# Configuration",
        "An option is a keyword of `LLM(…)` and `EngineArgs(…)`, and with dashes a flag of the commands: "
        "`max_model_len=4096`, `--max-model-len 4096`. This page is made from the code.",
        "## The model and the engine",
        *_tables(EngineArgs, GROUPS),
        "## The server",
        "Flags of `vllm serve`, beside those of the engine.",
        *_tables(ServerArgs, SERVER_GROUPS),
        "## Environment variables",
        _variables(),
    ]
    return "\n\n".join(parts) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {"configuration.md": configuration}
"""Name of a page → what makes it."""


def _tables(options: type, groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    known = {field.name: field for field in fields(options)}
    hints = typing.get_type_hints(options)
    rest = [name for name in known if not any(name in names for names in groups.values())]
    parts = []
    for title, names in {"": tuple(rest), **groups}.items():
        rows = [_row(known[name], hints[name]) for name in names if name in known]
        if rows:
            parts += [f"### {title[0].upper()}{title[1:]}"] if title else []
            parts.append("\n".join(["| option | type | default | |", "|---|---|---|---|", *rows]))
    return parts


def _row(field: Field[Any], hint: Any) -> str:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    shown = "" if default is None or default == DEFAULT_MODEL else f"`{default!r}`"
    choices = field.metadata["choices"]
    kind = ", ".join(f"`{choice!r}`" for choice in choices) if choices else f"`{_type(hint)}`"
    return f"| `{field.name}` | {_cell(kind)} | {_cell(shown)} | {_cell(field.metadata['doc'])} |"


def _type(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " | ".join(_type(part) for part in typing.get_args(hint) if part is not type(None))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _variables() -> str:
    """The table in the docstring of `vllm.env`, names as code."""
    assert env.__doc__ is not None
    table = env.__doc__[env.__doc__.index("| variable") :].strip()
    return re.sub(r"^\| ([A-Z][A-Z_, ]+) \|", r"| `\1` |", table, flags=re.MULTILINE)
