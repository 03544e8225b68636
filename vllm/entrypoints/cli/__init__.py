"""The `vllm` command.

    vllm serve [MODEL]           serve a model over HTTP
    vllm run [MODEL] PROMPT      continue a prompt, or answer it with --chat
    vllm --help                  all commands

A command is a module with `add_arguments(parser)` and `run(options)`, imported when the command is given and not before;
what is heavy it imports in `run`, when the arguments are known to be right.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.cli.parser import Parser
from vllm.errors import VllmError, did_you_mean
from vllm.version import __version__


@dataclass(frozen=True, slots=True)
class Command:
    """What the list of commands says of one, and where it lives."""

    module: str
    help: str

    def load(self) -> Any:
        """Import the module of the command."""
        return importlib.import_module(self.module)


_HERE = "vllm.entrypoints.cli"
_BENCH = "vllm.entrypoints.bench"
COMMANDS = {
    "serve": Command(f"{_HERE}.serve", "serve a model over HTTP, with OpenAI's endpoints"),
    "run": Command(f"{_HERE}.run", "continue or answer one prompt"),
    "chat": Command(f"{_HERE}.chat", "talk with a model in the terminal"),
    "complete": Command(f"{_HERE}.complete", "continue texts in the terminal"),
    "run-batch": Command(f"{_HERE}.run_batch", "answer a file of requests in OpenAI's batch format"),
    "models": Command(f"{_HERE}.models", "list what is supported, or say what a model takes"),
    "check": Command(f"{_HERE}.check", "compare a model with transformers, and say how fast it is"),
    "bench serve": Command(f"{_BENCH}.serve", "measure a server under load"),
    "bench throughput": Command(f"{_BENCH}.throughput", "measure tokens per second, without a server"),
    "bench latency": Command(f"{_BENCH}.latency", "measure the time of one batch, without a server"),
    "bench startup": Command(f"{_BENCH}.startup", "measure the time from nothing to a first token"),
    "collect-env": Command(f"{_HERE}.collect_env", "describe the machine and what is installed, for a report"),
    "completion": Command(f"{_HERE}.completion", "print a script that completes this command in a shell"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.  A user's mistake is one line on stderr, not a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = _command(given)
    parser, run = command_parser(name)
    options = parser.parse_args(given[len(name.split()) :])
    try:
        status = run(options)
        sys.stdout.flush()
        return status or 0
    except VllmError as error:
        print(f"vllm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def command_parser(name: str) -> tuple[Parser, Callable[[Any], int | None]]:
    """Return the parser of a command, and what runs it."""
    command = COMMANDS[name]
    module = command.load()
    description = f"{command.help[0].upper()}{command.help[1:]}."
    parser = Parser(f"vllm {name}", description=description, epilog=getattr(module, "EPILOG", None))
    module.add_arguments(parser)
    parser.usage = " ".join([f"vllm {name} [options]", *map(_shown, parser.positionals())])
    return parser, module.run


def _shown(positional: Any) -> str:
    name = positional.metavar or positional.dest.upper()
    return f"[{name}]" if positional.nargs == "?" else name


def _command(given: list[str]) -> str:
    """Return the name of the command that the arguments begin with, or say what there is and exit."""
    parser = _top_parser()
    if not given or given[0].startswith("-"):
        parser.parse_args(given)
        parser.error(f"a command is required: COMMAND is one of {', '.join(_first_words())}")
    name = given[0]
    if name in COMMANDS:
        return name
    if name not in _first_words():
        parser.error(f"unknown command {name}.{_nearest(name, _first_words())}")
    seconds = [command.split()[1] for command in COMMANDS if command.startswith(f"{name} ")]
    group = Parser(f"vllm {name}", usage=f"vllm {name} COMMAND [options]", description=_listing(f"{name} "))
    rest = given[1:]
    if not rest or rest[0].startswith("-"):
        group.parse_args(rest)
        group.error(f"a command is required: COMMAND is one of {', '.join(seconds)}")
    if rest[0] not in seconds:
        group.error(f"unknown command {rest[0]}.{_nearest(rest[0], seconds)}")
    return f"{name} {rest[0]}"


def _top_parser() -> Parser:
    parser = Parser(
        "vllm",
        usage="vllm COMMAND [options]",
        description=f"An LLM inference and serving engine.\n\n{_listing()}",
        epilog="vllm COMMAND --help describes a command's options.",
    )
    parser.add_argument("-v", "--version", action="version", version=__version__)
    return parser


def _listing(prefix: str = "") -> str:
    lines = [f"  {name:<18}{command.help}" for name, command in COMMANDS.items() if name.startswith(prefix)]
    return "\n".join(["commands:", *lines])


def _first_words() -> list[str]:
    return list(dict.fromkeys(name.split()[0] for name in COMMANDS))


def _nearest(name: str, known: list[str]) -> str:
    return did_you_mean(name, known).replace("'", "") or f" There are {', '.join(known)}."
