"""Where a chat template comes from.

argument ─▶ chat_template.jinja (+ additional_chat_templates/) ─▶ tokenizer_config.json ─▶ chat_template.json
"""

from __future__ import annotations

import difflib
from pathlib import Path

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
