"""`vllm complete [MODEL]`: continue texts in the terminal, with a model in this process or a server's."""

from __future__ import annotations

import argparse
from contextlib import closing

from vllm.entrypoints.cli.repl import Repl
from vllm.entrypoints.cli.source import add_source_options, open_source, sampling_options

EPILOG = "/help lists what can be said to the program itself.  Ctrl-C stops a completion."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quick", metavar="PROMPT", help="continue this text, and end")
    add_source_options(parser)


def run(options: argparse.Namespace) -> None:
    sampling = {"max_tokens": 64, **sampling_options(options)}  # a text, unlike an answer, has no end of its own
    with closing(open_source(options)) as source:
        completer = Completer(source, sampling)
        if options.quick is None:
            completer.run()
        else:
            completer.say(options.quick)


class Completer(Repl):
    """Every line is a prompt of its own."""

    prompt = "... "

    def say(self, text: str) -> None:
        """Print how the text goes on."""
        self.show(self.source.complete(text, self.sampling))
