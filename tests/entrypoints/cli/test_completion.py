"""`vllm completion`: the shells themselves say what they would offer."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vllm.entrypoints.cli import COMMANDS
from vllm.entrypoints.cli.completion import script


def offered(line: str) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"{script('bash')}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _vllm; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vllm se", ["serve"]),
        ("vllm bench ", ["serve", "throughput", "latency", "startup", "--help"]),
        ("vllm serve --max-num-b", ["--max-num-batched-tokens"]),
        ("vllm bench serve --request", ["--request-rate"]),
        ("vllm serve --dtype fl", ["float16", "float32", "float"]),
        ("vllm bench latency --batch", ["--batch-size"]),
        ("vllm run --batch", []),
        ("vllm run ./", []),
    ],
)
def test_bash_offers(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_knows_every_command(shell: str) -> None:
    text = script(shell)
    assert all(name.split()[-1] in text for name in COMMANDS)
    assert "max-num-batched-tokens" in text and "swap-space" not in text  # what help hides is not offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_read_its_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run([shell, "-n"], input=script(shell), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
