"""The page that defines the interface: its code runs as it stands, on tiny models of the architectures it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vllm

PAGE = Path(__file__).parents[1] / "seed" / "models.rst"
MODELS = {"facebook/opt-125m": "opt", "meta-llama/Meta-Llama-3-8B-Instruct": "llama"}


def blocks(section: str) -> list[str]:
    """The code blocks under a heading of the page, as they stand."""
    text = PAGE.read_text(encoding="utf-8")
    body = text[re.search(rf"^{re.escape(section)}\n[-^]+$", text, re.MULTILINE).end() :]  # type: ignore[union-attr]
    body = re.split(r"^.+\n(?:\^{3,}|-{3,}|={3,})$", body, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:::|code-block::\s*python)\n((?:[ \t]*\n|[ ]{4}.*\n)+)", body)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip("\n") for block in found]


@pytest.fixture
def namespace(checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's blocks take for granted: the names of the package, and models behind the names it uses."""
    redirects = tmp_path / "redirects"
    redirects.write_text("".join(f"{name} {checkpoint(kind)}\n" for name, kind in MODELS.items()))
    monkeypatch.setenv("VLLM_MODEL_REDIRECT_PATH", str(redirects))
    (tmp_path / "<path_to_template>").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    monkeypatch.chdir(tmp_path)
    return {name: getattr(vllm, name) for name in ("LLM", "SamplingParams", "BeamSearchParams")}


@pytest.mark.parametrize(("section", "count"), [("LLM.generate", 2), ("LLM.beam_search", 1)])
def test_the_blocks_for_prompts_run(
    section: str, count: int, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = blocks(section)
    assert len(found) == count
    for block in found:
        exec(block, namespace)
        assert "Prompt: 'Hello, my name is', Generated text: '" in capsys.readouterr().out
        namespace["llm"].close()


def test_greedy_is_greedy_and_beams_are_as_many_as_asked_for(namespace: dict[str, Any]) -> None:
    exec(blocks("LLM.generate")[1], namespace)
    first = namespace["generated_text"]
    namespace["llm"].close()
    exec(blocks("LLM.generate")[1], namespace)
    assert namespace["generated_text"] == first
    namespace["llm"].close()
    exec(blocks("LLM.beam_search")[0], namespace)
    (output,) = namespace["outputs"]
    assert len(output.outputs) == 5
    assert all(1 <= len(beam.token_ids) <= 50 for beam in output.outputs)
    namespace["llm"].close()


def test_the_blocks_for_chat_run(namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    conversation, own_template = blocks("LLM.chat")
    exec(conversation, namespace)
    out = capsys.readouterr().out
    assert "<|im_start|>system\\nYou are a helpful assistant<|im_end|>" in out
    assert "importance of higher education" in out
    exec(own_template, namespace)
    assert "Loaded chat template: {% for m in messages %}" in capsys.readouterr().out
    assert namespace["outputs"][0].prompt.startswith("[system] You are a helpful assistant\n[user] Hello\n")
    namespace["llm"].close()
