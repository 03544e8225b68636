"""Pages of the documentation as tests see them: blocks of code by language, and who can run what is in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from vllm.entrypoints.cli import command_parser
from vllm.entrypoints.cli.serve import split
from vllm.entrypoints.serve.lineup import line_up
from vllm.entrypoints.serve.settings import ServerArgs

DOCS = Path(__file__).parents[1] / "docs"
URL = "http://127.0.0.1:8000"
"""Where the pages' server is."""
ELSEWHERE = ("docker", "kubectl", "install", "systemctl", "export")
"""Commands whose blocks need a machine that is not there."""


def blocks(page: str, language: str = r"\w*") -> list[str]:
    """Return the blocks of a page, in order; without a language, those of all of them."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / f"{page}.md").read_text("utf-8"), re.M | re.S)


def commands(block: str) -> list[list[str]]:
    """Return the words of each line of a block for a shell; lines that end in a backslash go on."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def starts_server(block: str) -> bool:
    """Whether a block does nothing but start a server."""
    return all(words[:2] == ["vllm", "serve"] for words in commands(block))


def runs_elsewhere(block: str) -> bool:
    """Whether a block needs a machine that is not there."""
    return any(name in words for words in commands(block) for name in ELSEWHERE)


def write_files(page: str, folder: Path) -> list[Path]:
    """Write the blocks of YAML whose first line is a file's name; return the files.  A later one replaces an earlier one."""
    written = []
    for block in blocks(page, "yaml"):
        name = re.match(r"# ([\w.-]+)\n", block)
        assert name and isinstance(yaml.safe_load(block), dict), block
        (folder / name[1]).write_text(block)
        written.append(folder / name[1])
    return written


def check_options(arguments: list[str]) -> None:
    """Check that the server would start with these arguments.  Raises ConfigError or SystemExit."""
    shared, models = split(command_parser("serve")[0].parse_args(arguments))
    line_up(shared, models)
    ServerArgs(**shared.server)
