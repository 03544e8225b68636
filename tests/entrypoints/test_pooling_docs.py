"""docs/pooling.md and the interface's page: their code runs as it stands, on tiny models behind the names they use."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vllm
from tests.entrypoints.serve.serving import starting
from tests.entrypoints.test_seed import PAGE
from tests.pages import URL, blocks, commands

EMBEDS = "intfloat/e5-mistral-7b-instruct"
BLOCKS = blocks("pooling", "python")
OFFLINE = [block for block in BLOCKS if "127.0.0.1" not in block]
ONLINE = [block for block in BLOCKS if "127.0.0.1" in block]


@pytest.fixture
def models(checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    one, two = {"id2label": {0: "yes"}, "label2id": {"yes": 0}}, {"id2label": {0: "a", 1: "b"}}
    made = {
        EMBEDS: checkpoint("mistral", head="", sliding_window=None),
        "BAAI/bge-reranker-v2-m3": checkpoint("qwen2", head="ForSequenceClassification", **one),
        "jason9693/Qwen2.5-1.5B-apeach": checkpoint("qwen2", head="ForSequenceClassification", **two),
        "Qwen/Qwen2.5-Math-RM-72B": checkpoint("qwen2"),
    }
    redirects = tmp_path / "redirects"
    redirects.write_text("".join(f"{name} {folder}\n" for name, folder in made.items()))
    monkeypatch.setenv("VLLM_MODEL_REDIRECT_PATH", str(redirects))
    return made


def test_the_blocks_for_python_run(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(OFFLINE) == 7
    names: dict[str, Any] = {}
    for block in OFFLINE:
        before = names.get("llm")
        exec(block, names)
        if before is not None and before is not names["llm"]:
            before.close()
        assert "template" in block or capsys.readouterr().out.strip()
    names["llm"].close()


def test_long_prompts_come_out_as_the_page_says(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    shown = []
    for block in OFFLINE[:3]:
        exec(block, names)
        shown.append(capsys.readouterr().out.split())
    assert shown[1] == ["512"] and 512 < int(shown[2][0]) < 100_000
    names["llm"].close()


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("encode", r"Data: tensor\("),
        ("embed", r"Embeddings: \[-?\d.* \(size=48\)"),
        ("classify", r"Class Probabilities: \[0\.\d+, 0\.\d+\] \(size=2\)"),
        ("score", r"Score: 0\.\d+"),
    ],
)
def test_the_blocks_of_the_interfaces_page_run(
    method: str, shown: str, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    block = text[re.search(rf"^LLM\.{method}::\n", text, re.MULTILINE).end() :]  # type: ignore[union-attr]
    block = re.match(r"((?:[ \t]*\n|[ ]{4}.*\n)+)", block)[0]  # type: ignore[index]
    names: dict[str, Any] = {"LLM": vllm.LLM}
    exec(re.sub(r"^ {4}", "", block, flags=re.MULTILINE), names)
    assert re.search(shown, capsys.readouterr().out)
    names["llm"].close()


def test_the_blocks_for_clients_run_and_a_server_gives_what_python_does(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(ONLINE) == 2
    (words,) = commands(blocks("pooling", "sh")[0])
    with starting(*words[2:], "--dtype", "float32") as running:
        running.read_until("ready in")
        for block in ONLINE:
            names: dict[str, Any] = {}
            exec(block.replace(URL, running.url), names)
            shown = capsys.readouterr().out.splitlines()
            if "reply" in names:
                assert shown[0].startswith("2 48 ")
            else:
                assert re.fullmatch(r"[01] -?[01]\.\d+ (Brasilia\.|Paris is its capital\.)", shown[0])
                assert shown[1] == "48 6"
        texts = [f"The tide comes in {number} times" for number in range(40)]
        reply = running.openai().embeddings.create(model=EMBEDS, input=texts, encoding_format="float")
        assert running.figure("prompt_tokens_total") > 0
    with vllm.LLM(models[EMBEDS], runner="pooling", dtype="float32", max_model_len=512) as llm:
        outputs = llm.embed(texts, use_tqdm=False)
    assert [entry.embedding for entry in reply.data] == [output.outputs.embedding for output in outputs]
    assert reply.usage.prompt_tokens == sum(len(output.prompt_token_ids) for output in outputs)
