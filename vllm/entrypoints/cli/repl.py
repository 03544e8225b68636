"""A loop that reads a line, answers it, and takes /commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from vllm.entrypoints.cli.source import Source, check_sampling, sampling_names, sampling_value
from vllm.errors import VllmError, did_you_mean

_MARK = '"""'  # around a text of several lines


class Repl:
    """What chats and completions share; `say` is what they don't."""

    prompt = "> "

    def __init__(self, source: Source, sampling: dict[str, Any]) -> None:
        self.source = source
        self.sampling = sampling
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "help": (self._help, "this list"),
            "set": (self._set, "NAME VALUE  change a sampling parameter; without VALUE, back to the model's"),
            "settings": (self._settings, "show the sampling parameters"),
            "exit": (self._exit, "end; so do /quit and Ctrl-D"),
        }

    def say(self, text: str) -> None:
        """Take a text and print what the model makes of it."""
        raise NotImplementedError

    def run(self) -> None:
        """Read and answer until the input ends."""
        if sys.stdin.isatty():
            self._greet()
        for text in self._texts():
            try:
                self._take(text)
            except VllmError as error:
                print(f"vllm: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\n(stopped)", file=sys.stderr)
            except EOFError:
                return

    def show(self, pieces: Generator[str, None, None]) -> str:
        """Print an answer as it grows; return it whole."""
        answer = []
        with closing(pieces):
            for piece in pieces:
                answer.append(piece)
                print(piece, end="", flush=True)
        print()
        return "".join(answer)

    def write_json(self, path: str, value: Any) -> None:
        """Write a file, or say why not."""
        if not path:
            print("name a file, as in /save chat.json", file=sys.stderr)
            return
        try:
            Path(path).expanduser().write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
        except OSError as error:
            print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)

    def _take(self, text: str) -> None:
        if not text.startswith("/"):
            self.say(text)
            return
        name, _, rest = text[1:].partition(" ")
        name = "exit" if name == "quit" else name
        if name not in self.commands:
            hint = did_you_mean(name, self.commands).replace("'", "") or " /help lists what there is."
            print(f"unknown command /{name}.{hint}", file=sys.stderr)
            return
        self.commands[name][0](rest.strip())

    def _texts(self) -> Iterator[str]:
        """Give what the user writes: a line, or several between marks.  Empty ones are passed over."""
        asking = sys.stdin.isatty()
        while True:
            try:
                line = self._line(self.prompt if asking else "")
                text = self._rest_of(line, asking) if line.startswith(_MARK) else line
            except EOFError:
                return
            except KeyboardInterrupt:  # as shells do: the line is thrown away
                print(file=sys.stderr)
                continue
            if text.strip():
                yield text.strip()

    def _rest_of(self, line: str, asking: bool) -> str:
        lines = [line.removeprefix(_MARK)]
        while not lines[-1].endswith(_MARK):
            lines.append(self._line("  " if asking else ""))
        return "\n".join(lines).removesuffix(_MARK)

    def _line(self, prompt: str) -> str:
        return input(prompt)

    def _greet(self) -> None:
        with suppress(ImportError):
            import readline  # noqa: F401  # importing it gives input() a history and editing
        print(f"{self.source.name}. /help for help, {_MARK} around several lines, Ctrl-D to end.", file=sys.stderr)

    def _help(self, _: str) -> None:
        for name, (_run, text) in self.commands.items():
            print(f"  /{name:<9} {text}", file=sys.stderr)

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        name = name.replace("-", "_")
        if name not in sampling_names():
            _say_names(
                f"{name or 'nothing'} is no sampling parameter.{did_you_mean(name, sampling_names())}", sampling_names()
            )
            return
        if not text.strip():
            self.sampling.pop(name, None)
            return
        try:
            value = sampling_value(name, text.strip())
        except ValueError:
            print(f"{name} must be a number, got {text.strip()!r}", file=sys.stderr)
            return
        self.sampling = check_sampling({**self.sampling, name: value})

    def _settings(self, _: str) -> None:
        for name in sampling_names():
            print(f"  {name} = {self.sampling.get(name, 'the default')}", file=sys.stderr)

    def _exit(self, _: str) -> None:
        raise EOFError


def _say_names(message: str, names: Iterable[str]) -> None:
    print(f"{message} There are {', '.join(names)}.", file=sys.stderr)
