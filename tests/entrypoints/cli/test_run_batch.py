"""`vllm run-batch`: every line has an answer, and a wrong line harms no other."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.entrypoints.fake_openai import FakeOpenAI
from tests.entrypoints.pooled import EMBEDS, RERANKS
from tests.entrypoints.serve.fakes import FakeEngine
from tests.entrypoints.serve.serving import POISON, ROOT
from vllm.config import EngineArgs
from vllm.entrypoints.batch import local
from vllm.entrypoints.batch.lines import read_lines
from vllm.entrypoints.batch.remote import answer_remotely
from vllm.entrypoints.cli import main
from vllm.errors import EngineDeadError
from vllm.pooling_params import Pooling

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "temperature": 0}


def line(custom_id: Any, url: str, body: Any, **more: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more})


@pytest.fixture
def batch(tmp_path: Path) -> Any:
    """`batch([line, …], "--option")` → exit status and answers by custom_id."""

    def run(lines: list[str], *options: str) -> tuple[int, dict[str | None, Any]]:
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text("\n".join(lines) + "\n")
        status = main(["run-batch", "-i", str(source), "-o", str(target), *options])
        answers = [json.loads(answer) for answer in target.read_text().splitlines()]
        assert len(answers) == len([one for one in lines if one.strip()])
        return status, {answer["custom_id"]: answer for answer in answers}

    return run


def body(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["response"]["status_code"] == 200 and answer["error"] is None, answer
    return answer["response"]["body"]


def test_chats_and_completions_are_answered(batch: Any) -> None:
    status, answers = batch(
        [
            line("chat", CHAT, HI | {"logprobs": True, "top_logprobs": 2, "n": 1, "user": "me"}),
            "",
            line("text", COMPLETIONS, {"prompt": "The", "max_tokens": 3, "temperature": 0, "logprobs": 1}),
            line("ids", COMPLETIONS, {"prompt": [5, 6, 7], "max_completion_tokens": None, "max_tokens": 2}),
        ]
    )
    assert status == 0
    chat, text = body(answers["chat"]), body(answers["text"])
    assert chat["object"] == "chat.completion" and chat["choices"][0]["message"]["role"] == "assistant"
    assert chat["usage"]["completion_tokens"] == 4
    tokens = chat["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == chat["choices"][0]["message"]["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * 4
    assert tokens[0]["top_logprobs"][0]["token"] == tokens[0]["token"]  # greedy: the chosen one is the likeliest
    assert (
        text["object"] == "text_completion"
        and "".join(text["choices"][0]["logprobs"]["tokens"]) == text["choices"][0]["text"]
    )
    assert body(answers["ids"])["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


WRONG = [
    ("not json", "it is not JSON"),
    ("[]", "it must be a JSON object"),
    (line(5, CHAT, HI), "custom_id must be a text"),
    (line("a", "/v1/nothing", {}), "url must be one of /v1/chat/completions, /v1/completions"),
    (line("a", CHAT, "text"), "body must be an object"),
    (line("a", CHAT, HI, method="GET"), "method must be 'POST', got 'GET'"),
    (line("a", CHAT, HI | {"stream": True}), "stream must be false"),
]
REFUSED = [
    (CHAT, {"max_tokens": 1}, "messages", "required, but missing"),
    (CHAT, HI | {"tempertature": 1}, "tempertature", "no such field. Did you mean 'temperature'?"),
    (CHAT, HI | {"top_p": 2}, "top_p", "must be in (0, 1], got 2"),
    (CHAT, HI | {"top_p": float("nan")}, None, "not JSON"),
    (CHAT, HI | {"top_logprobs": 2}, "top_logprobs", "only for logprobs=true"),
    (CHAT, HI | {"logprobs": 2}, "logprobs", "expected bool"),
    (CHAT, HI | {"tools": [{"type": "function"}]}, "tools", "not supported"),
    (CHAT, HI | {"chat_template": "{% if %}"}, "chat_template", "syntax error"),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "suffix", "suffix"),
    (COMPLETIONS, {"prompt": "x " * 9000}, "prompt", "leaves room for 511"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": "many"}, "max_tokens", "expected int"),
    (COMPLETIONS, {"prompt": "x", "model": 3}, "model", "expected str"),
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine that follows a script, in the place of the one that would be loaded."""
    engine = FakeEngine()
    engine.state = "loading"
    monkeypatch.setattr(local, "make_engine", lambda args: engine)
    return engine


def test_a_wrong_line_has_its_error_and_harms_no_other(batch: Any, fake: FakeEngine) -> None:
    lines = [text.replace('"custom_id": "a"', f'"custom_id": "w{index}"') for index, (text, _) in enumerate(WRONG)]
    lines = [text for text in lines if '"custom_id": "w' in text]
    asked = [line(f"r{index}", url, body) for index, (url, body, _, _) in enumerate(REFUSED)]
    status, answers = batch([*lines, *asked, line("good", CHAT, HI)])
    assert status == 1 and len(fake.finished) == 1
    assert body(answers["good"])["choices"][0]["message"]["content"] == " and so on"
    for index, (_, message) in enumerate(WRONG):
        if f"w{index}" in answers:
            error = answers[f"w{index}"]["error"]
            assert error["message"].startswith("line ") and message in error["message"]
    for index, (_, _, param, message) in enumerate(REFUSED):
        answer = answers[f"r{index}"]
        assert answer["response"]["status_code"] == 400 and answer["error"] == answer["response"]["body"]["error"]
        assert answer["error"]["param"] == param and message in answer["error"]["message"], answer


def test_a_line_may_ask_for_whatever_the_server_answers(batch: Any, fake: FakeEngine) -> None:
    template = {"messages": HI["messages"], "chat_template": "{{ messages[0].content }}?"}
    status, answers = batch(
        [
            line("two", COMPLETIONS, {"prompt": ["x", "y"], "echo": True}),
            line("named", COMPLETIONS, {"prompt": "x", "model": "somebody's"}),
            line("response", "/v1/responses", {"input": "x"}),
            line("template", CHAT, template),
        ]
    )
    assert status == 0
    assert [choice["text"] for choice in body(answers["two"])["choices"]] == ["x and so on", "y and so on"]
    assert body(answers["two"])["id"] == f"cmpl-{answers['two']['response']['request_id']}"
    assert body(answers["two"])["model"] == "default" and body(answers["named"])["model"] == "somebody's"
    assert body(answers["response"])["output"][0]["content"][0]["text"] == " and so on"
    assert body(answers["template"]) and "Hello!?" in [request.prompt for request in fake.seen]


def test_texts_are_embedded_scored_and_ranked(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the tide", "came in"]

    def run(pooling: Pooling, *lines: str) -> dict[str | None, Any]:
        engine = FakeEngine(pooling=pooling)
        monkeypatch.setattr(local, "make_engine", lambda args: engine)
        return batch([*lines])[1]

    embed = line("embed", "/v1/embeddings", {"input": texts, "dimensions": 4, "model": "mine"})
    chat, wrong = line("chat", CHAT, HI), line("wrong", "/v1/embeddings", {"input": "a", "dimension": 4})
    answers = run(EMBEDS, embed, line("score", "/v1/score", {"text_1": "a", "text_2": texts}), chat, wrong)
    embedded = body(answers["embed"])
    assert embedded["model"] == "mine" and [len(entry["embedding"]) for entry in embedded["data"]] == [4, 4]
    assert [entry["index"] for entry in body(answers["score"])["data"]] == [0, 1]
    assert (
        answers["chat"]["response"]["status_code"] == 404
        and "is a pooling model" in answers["chat"]["error"]["message"]
    )
    assert "Did you mean 'dimensions'?" in answers["wrong"]["error"]["message"]

    answers = run(RERANKS, line("rank", "/v1/rerank", {"query": "a", "documents": texts, "top_n": 1}))
    (result,) = body(answers["rank"])["results"]
    assert result["document"]["text"] == texts[result["index"]]


def test_a_line_whose_engine_died_says_so_and_the_next_waits_for_another(batch: Any, fake: FakeEngine) -> None:
    def script(request: Any, index: int) -> str:
        if len(fake.seen) == 1:
            fake.state = "dead"
            asyncio.get_running_loop().call_later(0.05, setattr, fake, "state", "ready")
            raise EngineDeadError("the engine process was ended by SIGKILL")
        return "fine"

    fake.script = script
    status, answers = batch([line(name, CHAT, HI) for name in "abc"], "--max-num-seqs", "1")  # two at a time
    assert status == 1 and answers["a"]["response"]["status_code"] == 500
    assert "SIGKILL" in answers["a"]["error"]["message"]
    assert body(answers["c"])["choices"][0]["message"]["content"] == "fine"


def test_a_reader_who_leaves_ends_what_is_under_way(fake: FakeEngine, tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text("\n".join(line(str(index), COMPLETIONS, {"prompt": "x"}) for index in range(50)))
    fake.pause = 0.01
    answers = local.answer_locally(EngineArgs(max_num_seqs=2), read_lines(lines))
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert fake.state == "stopping" and fake.aborted and len(fake.seen) <= 8


@pytest.mark.parametrize(("text", "message"), WRONG[:3])
def test_a_line_without_a_name_is_answered_too(batch: Any, text: str, message: str) -> None:
    status, answers = batch([text])
    assert status == 1 and message in answers[None]["error"]["message"]


def test_a_step_that_fails_costs_its_guilty_line_only(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    long: Any = {"prompt": [5] * 30, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    good = [line(f"good {index}", COMPLETIONS, long) for index in range(3)]
    status, answers = batch([*good, line("bad", COMPLETIONS, long | {"top_k": 666})])
    assert status == 1 and answers["bad"]["response"]["status_code"] == 500
    assert "this row cannot be computed" in answers["bad"]["error"]["message"]
    assert all(body(answers[f"good {index}"]) for index in range(3))


def test_a_server_answers_and_is_asked_again_when_it_is_full(batch: Any) -> None:
    refused: list[str] = []

    def refuse(asked: dict[str, Any]) -> Any:
        prompt = asked.get("prompt")
        if prompt == "busy" and not refused:
            refused.append(prompt)
            return 429, "too many", {"Retry-After": "0"}
        return (400, "no such thing", {}) if prompt == "bad" else None

    with FakeOpenAI() as server:
        server.refuse = refuse
        lines = [line(name, COMPLETIONS, {"prompt": name}) for name in ("busy", "bad", "fine")]
        status, answers = batch([*lines, line("chat", CHAT, HI), "nonsense"], "--url", server.url)
    assert status == 1 and refused == ["busy"]
    assert answers["bad"]["error"]["message"] == "no such thing"
    assert body(answers["busy"])["choices"][0]["text"] == body(answers["fine"])["choices"][0]["text"] == "Hello there!"
    assert body(answers["chat"])["model"] == "first"
    assert "not JSON" in answers[None]["error"]["message"]


def test_leaving_early_sends_nothing_more(tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text("\n".join(line(str(index), COMPLETIONS, {"prompt": "x"}) for index in range(50)))
    with FakeOpenAI() as server:
        server.delay = 0.02
        answers = answer_remotely(server.url, None, read_lines(lines), 2)
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert len(server.bodies) < 10


def test_two_lines_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([line("a", CHAT, HI), line("b", CHAT, HI), line("a", CHAT, HI)]))
    assert main(["run-batch", "-i", str(source), "-o", str(tmp_path / "out")]) == 1
    assert "lines 1 and 3 both have custom_id 'a'" in capsys.readouterr().err


def test_files_are_looked_at_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run-batch", "-i", str(tmp_path / "none"), "-o", "x"]) == 1
    assert "--input-file" in capsys.readouterr().err
    (tmp_path / "in").write_text("")
    assert main(["run-batch", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "no" / "out")]) == 1
    assert "--output-file" in capsys.readouterr().err
