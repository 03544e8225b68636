"""Pages about the server: what is on them runs, in order, beside the server that the page starts, on tiny models behind the
names that it uses.  What needs another machine is parsed."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.entrypoints.serve.serving import starting
from tests.pages import URL, blocks, check_options, commands, runs_elsewhere, starts_server, write_files
from vllm.entrypoints.serve.metrics import Metrics

PAGES = ("serving", "metrics", "deployment")
ONE_CLASS = {"id2label": {0: "yes"}, "label2id": {"yes": 0}}
CLIENTS = {"langchain_openai"}
"""Packages of others, whose blocks run where they are installed."""


@pytest.fixture
def models(checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "Qwen/Qwen3-0.6B": checkpoint("qwen3", head_dim=16, max_position_embeddings=8192),
        "BAAI/bge-small-en-v1.5": checkpoint("bert", head=""),
        "BAAI/bge-reranker-base": checkpoint("qwen2", head="ForSequenceClassification", **ONE_CLASS),
    }
    redirects = tmp_path / "redirects"
    redirects.write_text("".join(f"{name} {folder}\n" for name, folder in made.items()))
    monkeypatch.setenv("VLLM_MODEL_REDIRECT_PATH", str(redirects))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("models")
def test_its_code_runs_beside_its_server(
    page: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", environment["PATH"])
    write_files(page, tmp_path)
    shell = [block for block in blocks(page, "sh") if not starts_server(block) and not runs_elsewhere(block)]
    (words,) = commands(next(filter(starts_server, blocks(page, "sh"))))
    with starting(*words[2:]) as running:
        running.read_until("ready in")
        for block in shell:
            script = block.replace(URL, running.url)
            done = subprocess.run(["bash", "-ec", script], stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: PLW1510
            assert done.returncode == 0 and '"error":' not in done.stdout, f"{block}\n{done.stdout}\n{done.stderr}"
        for block in blocks(page, "python"):
            code = ast.parse(block)
            if all(map(importlib.util.find_spec, CLIENTS & set(_imported(code)))):
                exec(block.replace(URL, running.url), {})


def _imported(code: ast.Module) -> list[str]:
    return [node.module.split(".")[0] for node in ast.walk(code) if isinstance(node, ast.ImportFrom) and node.module]


@pytest.mark.parametrize("page", [*PAGES, "pooling", "gpus"])
@pytest.mark.usefixtures("models")
def test_what_it_cannot_run_can_be_read(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    for block in blocks(page, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for words in commands(block):
            if words[:2] == ["vllm", "serve"]:
                check_options(words[2:])
            elif words[:2] == ["docker", "run"]:
                image = next(number for number, word in enumerate(words) if word.startswith("vllm:"))
                check_options(words[image + 1 :])
    for block in blocks(page, "nginx"):
        assert block.count("{") == block.count("}") and re.findall(r"^.*[^;{}\n]$", block, re.M) == []
    known = {"sh", "python", "yaml", "nginx", "text"}
    assert set(re.findall(r"^```(\w*)\n.*?^```$", _text(page), re.M | re.S)) <= known


def test_every_metric_is_in_the_table_as_the_server_has_it() -> None:
    rows = []
    for family in Metrics().registry.collect():
        if family.name.startswith("vllm:"):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    assert len(rows) > 20
    assert re.findall(r"^\| `vllm:\w+` \| (?:gauge|counter|histogram|info) \|.*", _text("metrics"), re.M) == rows


def _text(page: str) -> str:
    return (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text("utf-8")
