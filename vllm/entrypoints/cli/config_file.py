"""Options from a YAML file: `--config file.yaml`.

    model: Qwen/Qwen3-0.6B
    port: 8080
    served-model-name: [small, qwen]     # several values are a list, and so are several models
    hf-overrides: {rope_theta: 10000}    # what is JSON on the command line is a mapping
    enable-prefix-caching: false         # a switch is true or false

Keys are flags without their dashes; underscores will do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.cli.options import Repeated
from vllm.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vllm.entrypoints.cli.parser import Parser


def arguments_of(path: str, parser: Parser, without: Container[str] = ()) -> list[str]:
    """Return what the file says as arguments for `parser`, but for the keys `without`.

    Raises ConfigError naming the file and the key.
    """
    return arguments_in(_read(path), path, parser, without)


def arguments_in(content: Mapping[Any, Any], path: str, parser: Parser, without: Container[str] = ()) -> list[str]:
    """Return what keys and values say as arguments for `parser`; `path` is where they stand."""
    flags = {flag: action for flag, action in parser.flags().items() if flag not in ("--help", "--config")}
    arguments: list[str] = []
    for key, value in content.items():
        name = str(key).replace("_", "-")
        flag = f"--{name}"
        if flag not in flags:
            known = [known.removeprefix("--") for known in flags]
            raise ConfigError(f"{path}: unknown option {key!r}.{did_you_mean(name, known)}")
        if value is not None and name not in without:
            arguments += _one(path, flag, flags[flag], value, f"--no-{name}" in flags)
    return arguments


def _read(path: str) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).expanduser().read_text())
    except OSError as error:
        raise ConfigError(f"--config: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config: {path} is not text") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config: {path} is not YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config: {path} must hold keys and values, as in `port: 8000`, not a {type(content).__name__}"
        )
    return content


def _one(path: str, flag: str, action: argparse.Action, value: Any, negatable: bool) -> list[str]:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {flag.removeprefix('--')} must be true or false, got {value!r}")
        if value:
            return [flag]
        return [f"--no-{flag.removeprefix('--')}"] if negatable else []
    if isinstance(action, Repeated):
        return [f"{flag}={_text(each)}" for each in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        if action.nargs not in ("+", "*"):
            raise ConfigError(f"{path}: {flag.removeprefix('--')} takes one value, got a list of {len(value)}")
        return [flag, *map(_text, value)]
    return [f"{flag}={_text(value)}"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
