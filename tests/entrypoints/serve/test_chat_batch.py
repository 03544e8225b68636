"""POST /v1/chat/completions/batch: several conversations, answered in order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.entrypoints.serve.fakes import Client, FakeEngine
from tests.entrypoints.serve.test_server import TEXT, server

PATH = "/v1/chat/completions/batch"
ONE = [{"role": "user", "content": "one"}]
TWO = [{"role": "system", "content": "S"}, {"role": "user", "content": "two"}]


def ask(client: Client, **body: Any) -> Any:
    answer = client.post(PATH, {"messages": [ONE, TWO], **body})
    assert answer.status == 200, answer.body
    return answer.json


def test_answers_come_in_the_order_of_the_conversations_however_they_end() -> None:
    engine = FakeEngine(
        lambda request, index: f" {request.prompt} {index}" + " more" * (9 if "one" in request.prompt else 0)
    )
    engine.pause = 0.001
    client = Client(engine)
    reply = ask(client, n=2, seed=1)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert texts[:2] == [f" <user>one<assistant> {index}" + " more" * 9 for index in range(2)]
    assert texts[2:] == [f" <system>S<user>two<assistant> {index}" for index in range(2)]
    assert reply["usage"]["prompt_tokens"] == sum(len(request.token_ids) for request in engine.seen)
    assert client.server.num_running == 0


def test_each_answer_equals_that_of_its_conversation_alone() -> None:
    client = Client()
    options = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "max_tokens": 3, "prompt_logprobs": 0}
    both = ask(client, **options)["choices"]
    for choice, messages in zip(both, (ONE, TWO), strict=True):
        alone = client.post("/v1/chat/completions", {"messages": messages, **options}).json
        own = {name: choice.pop(name) for name in ("prompt_token_ids", "prompt_logprobs")}
        assert choice | {"index": 0} == alone["choices"][0]
        assert own == {name: alone[name] for name in own}


def test_each_conversation_may_go_on_from_its_own_last_message() -> None:
    messages = [[*ONE, {"role": "assistant", "content": word}] for word in ("Well", "Now")]
    reply = ask(Client(), messages=messages, continue_final_message=True, echo=True)
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["Well and so on", "Now and so on"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": []}, "messages", "empty"),
        ({"messages": ONE}, "messages[0]", "expected array"),
        ({"messages": [ONE, []]}, "messages[1]", "empty"),
        ({"messages": [ONE, [{"role": "user"}]]}, "messages[1]", "messages[1]: message 0"),
        ({"messages": [ONE, [{"role": "user", "content": "long " * 999}]]}, "messages", "prompt 1"),
        ({"messages": [ONE] * 1025}, "messages", "max_prompts=1024"),
        ({"stream": True}, "stream", "can't be streamed"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"temperature": -1}, "temperature", "at least 0"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_runs(body: dict[str, Any], param: str, message: str) -> None:
    client = Client()
    error = client.post(PATH, {"messages": [ONE, TWO], **body}).error
    assert (error["code"], error["param"]) == (400, param) and message in error["message"], error
    assert client.engine.seen == []


def test_a_client_that_leaves_aborts_all_of_them() -> None:
    engine = FakeEngine("one two three four five six")
    engine.pause = 0.02
    Client(engine).post(PATH, {"messages": [ONE, TWO]}, gone_after=0.03)
    assert engine.finished == [] and len(engine.aborted) == 2


def test_the_openai_client_can_ask_for_it() -> None:
    with server() as running, running.openai() as client:
        reply: Any = client.post(
            "/chat/completions/batch", body={"model": "acme/tiny", "messages": [ONE, TWO]}, cast_to=object
        )
    assert [choice["message"]["content"] for choice in reply["choices"]] == [TEXT, TEXT]
