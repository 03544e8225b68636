"""`vllm chat [MODEL]`: a conversation in the terminal, with a model in this process or a server's."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from vllm.entrypoints.cli.repl import Repl
from vllm.entrypoints.cli.source import Message, Source, add_source_options, open_source, sampling_options

EPILOG = "/help in a conversation lists what can be said to the program itself.  Ctrl-C stops an answer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quick", metavar="MESSAGE", help="answer this message, and end")
    parser.add_argument("--system-prompt", metavar="TEXT", help="how the model is to behave")
    add_source_options(parser)


def run(options: argparse.Namespace) -> None:
    sampling = sampling_options(options)
    with closing(open_source(options)) as source:
        chat = Chat(source, sampling, options.system_prompt)
        if options.quick is None:
            chat.run()
        else:
            chat.say(options.quick)


class Chat(Repl):
    """One conversation."""

    prompt = "> "

    def __init__(self, source: Source, sampling: dict[str, object], system: str | None = None) -> None:
        super().__init__(source, sampling)
        self.system = system
        self.messages: list[Message] = []
        self.commands |= {
            "system": (self._set_system, "TEXT  how the model is to behave; without TEXT, forget it"),
            "reset": (self._reset, "begin a new conversation"),
            "undo": (self._undo, "take back the last message and its answer"),
            "retry": (self._retry, "answer the last message again"),
            "save": (self._save, "FILE  write the conversation as JSON"),
        }

    def say(self, text: str) -> None:
        """Take a message, and print its answer as it comes.  A message that fails is not part of the conversation."""
        self.messages.append({"role": "user", "content": text})
        try:
            answer = self.show(self.source.chat(self._conversation(), self.sampling))
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer})

    def _conversation(self) -> list[Message]:
        first: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.messages]

    def _set_system(self, text: str) -> None:
        self.system = text or None

    def _reset(self, _: str) -> None:
        self.messages.clear()

    def _undo(self, _: str) -> None:
        del self.messages[-2:]

    def _retry(self, _: str) -> None:
        if len(self.messages) < 2:
            print("there is nothing to answer yet", file=sys.stderr)
            return
        kept = self.messages[-2:]
        del self.messages[-2:]
        try:
            self.say(kept[0]["content"])
        except BaseException:
            self.messages += kept
            raise

    def _save(self, path: str) -> None:
        self.write_json(path, self._conversation())
