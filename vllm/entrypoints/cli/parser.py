"""argparse with better answers: the nearest option for an unknown one, and options that may come from a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from vllm.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """The parser of one command."""

    def __init__(self, prog: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the command line; where it names a --config file, what the file says comes first and loses."""
        given = list(args or ())
        options, unknown = self.parse_known_args(given, namespace)
        self._refuse(unknown)
        if getattr(options, "config", None) is None:
            return options
        from vllm.entrypoints.cli.config_file import arguments_of

        try:
            named = ("model",) if {"model", "model_tag"} & vars(options).keys() else ()  # else it would be one more
            from_file = arguments_of(options.config, self, named)
        except ConfigError as error:
            self.exit(1, f"vllm: {error}\n")
        end = f"--config={options.config}"  # a list of values before it must not take a positional for one more
        options, _ = self.parse_known_args([*from_file, end, *given], namespace)
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")

    def flags(self) -> dict[str, argparse.Action]:
        """Return every --flag with its action."""
        return {flag: action for flag, action in self._option_string_actions.items() if flag.startswith("--")}

    def positionals(self) -> list[argparse.Action]:
        return [action for action in self._actions if not action.option_strings]

    def _refuse(self, unknown: list[str]) -> None:
        if not unknown:
            return
        name = unknown[0].split("=", 1)[0]
        if name.startswith("-"):
            self.error(f"unknown option {name}.{did_you_mean(name, self.flags()).replace(chr(39), '')}")
        self.error(f"unexpected argument {name!r}")
