"""The `vllm` command.

    vllm run [MODEL] PROMPT      continue a prompt, or answer it with --chat
    vllm --version

Options of the engine are the fields of EngineArgs, spelled --like-this.  Nothing heavy is imported before the arguments
are known to be right.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from vllm.config import UNSUPPORTED, WITHOUT_EFFECT, EngineArgs
from vllm.errors import VllmError, did_you_mean
from vllm.version import __version__

_SWITCHES = ("enable_", "disable_", "enforce_", "use_", "worker_use_")
"""How the names of options begin that take no value."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.  A user's mistake is one line on stderr, not a traceback."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except VllmError as error:
        print(f"vllm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Names the nearest option when one is unknown."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=", 1)[0]
            known = [flag for parser in self._all() for flag in parser._option_string_actions]
            self.error(f"unknown option {name}.{did_you_mean(name, known).replace(chr(39), '')}")
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")

    def _all(self) -> list[argparse.ArgumentParser]:
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [self, *(parser for group in groups for parser in group.choices.values())]


def _parser() -> _Parser:
    parser = _Parser("vllm", description="An LLM inference and serving engine.", allow_abbrev=False)
    parser.add_argument("-v", "--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="continue or answer a prompt", allow_abbrev=False)
    run.set_defaults(command=_run)
    run.add_argument("model", nargs="?", default=EngineArgs.model, help="folder or Hub name; none: the model inside")
    run.add_argument("prompt", help="the text to continue")
    run.add_argument("--chat", action="store_true", help="answer the prompt through the model's chat template")
    run.add_argument("--max-tokens", type=int, default=64, help="output tokens at most (default: %(default)s)")
    run.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the model's)")
    run.add_argument("-n", type=int, default=1, help="number of outputs (default: %(default)s)")
    add_engine_options(run)
    return parser


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of EngineArgs but the model."""
    group = parser.add_argument_group("engine")
    hints = typing.get_type_hints(EngineArgs)
    for option in dataclasses.fields(EngineArgs):
        if option.name == "model":
            continue
        flag, kind = f"--{option.name.replace('_', '-')}", _scalar(hints[option.name])
        common = {"dest": option.name, "default": argparse.SUPPRESS, "help": option.metadata["doc"]}
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        else:
            choices = [choice for choice in option.metadata["choices"] or () if choice is not None] or None
            group.add_argument(flag, type=kind, choices=choices, metavar=_metavar(option), **common)

    for name in (*UNSUPPORTED, *WITHOUT_EFFECT):  # of the interface; the engine says what it does with them
        flag, common = f"--{name.replace('_', '-')}", {"dest": name, "default": argparse.SUPPRESS}
        if name.startswith(_SWITCHES):
            group.add_argument(flag, action="store_true", help=argparse.SUPPRESS, **common)
        else:
            group.add_argument(flag, type=_value, help=argparse.SUPPRESS, **common)


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the engine's options that were given."""
    names = {option.name for option in dataclasses.fields(EngineArgs)} | {*UNSUPPORTED, *WITHOUT_EFFECT}
    return {name: value for name, value in vars(options).items() if name in names}


def _scalar(hint: Any) -> Any:
    """The type that a flag's text is turned into."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if any(typing.get_origin(kind) is dict or kind is dict for kind in [hint, *kinds]):
        return _json_object
    return next((kind for kind in (int, float, str) if kind in kinds), kinds[0])


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _value(text: str) -> Any:
    """A number or an object where the text is one, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _metavar(option: dataclasses.Field[Any]) -> str | None:
    return None if option.metadata["choices"] else option.name.upper().rsplit("_", 1)[-1]


def _run(options: argparse.Namespace) -> None:
    from vllm.entrypoints.llm import LLM
    from vllm.sampling_params import SamplingParams

    temperature = 1.0 if options.temperature is None else options.temperature
    SamplingParams(
        n=options.n, max_tokens=options.max_tokens, temperature=temperature
    )  # a mistake shows before loading
    with LLM(**engine_options(options)) as llm:
        params = llm.get_default_sampling_params()
        params.max_tokens, params.n = options.max_tokens, options.n
        if options.temperature is not None:
            params.temperature = options.temperature
        if options.chat:
            (output,) = llm.chat([{"role": "user", "content": options.prompt}], params)
        else:
            (output,) = llm.generate(options.prompt, params)
    for completion in output.outputs:
        print(completion.text if options.chat else options.prompt + completion.text)


if __name__ == "__main__":
    sys.exit(main())
