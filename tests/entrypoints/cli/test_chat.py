"""`vllm chat` and `vllm complete`, with models here and on a server."""

from __future__ import annotations

import io
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.entrypoints.fake_openai import FakeOpenAI
from vllm.config import EngineArgs
from vllm.entrypoints.cli import main
from vllm.entrypoints.cli.chat import Chat
from vllm.entrypoints.cli.source import LocalModel, Message
from vllm.errors import RequestError


class FakeSource:
    """Repeats what it hears."""

    name = "parrot"

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.fails: BaseException | None = None

    def chat(self, messages: list[Message], sampling: dict[str, Any]) -> Generator[str, None, None]:
        self.heard.append(([*messages], dict(sampling)))
        yield "you said: "
        if self.fails:
            raise self.fails
        yield messages[-1]["content"]

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Generator[str, None, None]:
        yield prompt

    def close(self) -> None:
        pass


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`talk(chat, "line", "line")`: what the user writes until the input ends."""

    def run(chat: Chat, *lines: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        chat.run()

    return run


def test_a_conversation_grows(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = FakeSource()
    chat = Chat(source, {}, "Be brief.")
    talk(chat, "one", "", "two")
    assert capsys.readouterr().out == "you said: one\nyou said: two\n"
    assert [message["content"] for message in source.heard[1][0]] == ["Be brief.", "one", "you said: one", "two"]


def test_several_lines_make_one_message(talk: Any) -> None:
    source = FakeSource()
    talk(Chat(source, {}), '"""first', "second", 'third"""', "next")
    assert source.heard[0][0][-1]["content"] == "first\nsecond\nthird"
    assert source.heard[1][0][-1]["content"] == "next"


def test_commands_change_the_conversation(talk: Any, tmp_path: Path) -> None:
    source = FakeSource()
    chat = Chat(source, {})
    talk(chat, "one", "/undo", "/system You are a pirate.", "/set temperature 0.5", "/set top-k 3", "two", "/retry")
    assert [message["content"] for message in source.heard[-1][0]] == ["You are a pirate.", "two"]
    assert source.heard[-1][1] == {"temperature": 0.5, "top_k": 3}
    assert len(chat.messages) == 2
    talk(chat, "/set temperature", f"/save {tmp_path / 'chat.json'}", "/reset", "/exit", "never")
    assert chat.messages == [] and chat.sampling == {"top_k": 3} and len(source.heard) == 3
    assert [message["role"] for message in json.loads((tmp_path / "chat.json").read_text())] == [
        "system",
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sytem x", "unknown command /sytem. Did you mean system?"),
        ("/set temprature 1", "Did you mean 'temperature'?"),
        ("/set temperature hot", "temperature must be a number, got 'hot'"),
        ("/set top_p 5", "top_p must be in (0, 1], got 5.0"),
        ("/retry", "nothing to answer yet"),
        ("/save", "name a file"),
        ("/save /no/such/folder/x", "cannot be written: No such file or directory"),
    ],
)
def test_a_mistake_does_not_end_the_conversation(
    talk: Any, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FakeSource()
    talk(Chat(source, {}), line, "and on")
    assert message in capsys.readouterr().err
    assert len(source.heard) == 1


@pytest.mark.parametrize("fault", [RequestError("too long"), KeyboardInterrupt()])
def test_a_message_that_fails_is_no_part_of_the_conversation(talk: Any, fault: BaseException) -> None:
    source = FakeSource()
    source.fails = fault
    chat = Chat(source, {})
    talk(chat, "one")
    assert chat.messages == []


def test_the_model_inside_answers_quickly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-q", "Hello!", "--temperature", "0", "--max-tokens", "8"]) == 0
    answer = capsys.readouterr().out
    assert main(["run", "Hello!", "--chat", "--temperature", "0", "--max-tokens", "8"]) == 0
    assert answer == capsys.readouterr().out
    assert main(["complete", "-q", "The", "--temperature", "0", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


def test_closing_an_answer_frees_what_it_held() -> None:
    model = LocalModel(EngineArgs())
    try:
        pieces = model.complete("The", {"temperature": 0})
        next(pieces)
        assert model.engine.has_work
        pieces.close()
        assert not model.engine.has_work
    finally:
        model.close()


def test_a_server_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from outside")
    with FakeOpenAI(key="from outside") as server:
        assert main(["chat", "--url", server.url, "-q", "Hi", "--system-prompt", "Be brief.", "--top-k", "4"]) == 0
        assert capsys.readouterr().out == "Hello there!\n"
        asked = server.bodies[0]
        assert (asked["path"], asked["model"], asked["top_k"]) == ("/v1/chat/completions", "first", 4)
        assert [message["role"] for message in asked["messages"]] == ["system", "user"]
        command = ["complete", "--url", f"{server.url}/v1/", "--model-name", "second", "-q", "Once"]
        assert main(command) == 0
        assert (server.bodies[1]["path"], server.bodies[1]["model"]) == ("/v1/completions", "second")
        assert main([*command, "--api-key", "wrong"]) == 1
        assert "vllm: a key is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached: Connection refused"),
        (["--url", "ftp://x"], "'ftp://x' is no address of a server"),
        (["--url", "http://x:99999"], "'http://x:99999' is no address of a server"),
        (["--url", "http://x", "a-model", "--dtype", "float32"], "leave out --dtype, the model"),
        (["--model-name", "x"], "--model-name is for a server; give its address with --url"),
        (["--top-p", "2"], "top_p must be in (0, 1], got 2.0"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-q", "Hi", *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
