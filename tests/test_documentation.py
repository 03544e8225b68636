"""The documentation is built without a warning, its code runs, and the messages it explains are ones that exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.pages import DOCS, blocks
from tools.documentation import configuration
from vllm.config import EngineArgs
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.models import registry

ROOT = Path(__file__).parents[1]
PAGES = ("quickstart", "offline", "loading", "adding_a_model", "multimodal")
MODELS = {"facebook/opt-125m": "opt", "Qwen/Qwen3-0.6B": "qwen3"}


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="sphinx is not installed: the extra docs")
def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", DOCS, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {f"{page}.html" for page in (*PAGES, "index", "configuration")} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("page", PAGES)
def test_its_python_runs(
    page: str,
    checkpoint: Callable[..., Path],
    media_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    redirects = tmp_path / "redirects"
    folders = {name: checkpoint(kind) for name, kind in MODELS.items()}
    if page == "multimodal":
        folders = {"llava-hf/llava-1.5-7b-hf": media_checkpoint("llava")}
    redirects.write_text("".join(f"{name} {folder}\n" for name, folder in folders.items()))
    monkeypatch.setenv("VLLM_MODEL_REDIRECT_PATH", str(redirects))
    monkeypatch.setattr(registry, "_registered", {})
    names: dict[str, Any] = {}
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(block, names)
        assert "print" not in block or capsys.readouterr().out
    names["llm"].close()


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("quickstart", []),
        ("adding_a_model", ["right: my_model/checkpoint "]),
        ("multimodal", []),
        ("troubleshooting", ["right: the model inside", "Python"]),
    ],
)
def test_its_commands_run(page: str, says: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # what is the root of the repository on the page
    script = "\n".join(blocks(page, "sh"))
    done = subprocess.run(
        ["bash", "-e"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    for words in says:
        assert re.search(words, done.stdout), done.stdout


def test_the_messages_it_explains_are_ones_that_exist() -> None:
    texts = "\n".join(text for path in (ROOT / "vllm").rglob("*.py") for text in _texts(path))
    rows = re.findall(r"^\| (`.*?`)(?: …)? \|", (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)
    assert len(rows) > 20
    parts = [part.strip() for row in rows for part in row.strip("`").split("…")]
    assert [part for part in parts if part not in texts] == []


def _texts(path: Path) -> Iterator[str]:
    """The texts in a file, with … for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[rs]", "…", node.value)


def test_every_option_is_in_the_list_once() -> None:
    page = configuration()
    names = [field.name for options in (EngineArgs, ServerArgs) for field in fields(options)]
    assert [name for name in names if page.count(f"\n| `{name}` |") != 1] == []
    assert "| `VLLM_PLUGINS` |" in page and "| `VLLM_API_KEY, OPENAI_API_KEY` |" in page
