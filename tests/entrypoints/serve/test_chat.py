"""POST /v1/chat/completions: templates, roles, log-probabilities, streams, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.entrypoints.serve.fakes import Client, FakeEngine, tokenizer

PATH = "/v1/chat/completions"
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def ask(client: Client | None = None, **body: Any) -> Any:
    answer = (client or Client()).post(PATH, {"messages": HELLO, **body})
    assert answer.status == 200, answer.body
    return answer


def prompt_of(client: Client) -> str | None:
    return client.engine.seen[-1].prompt


def test_an_answer_has_the_shape_that_clients_know() -> None:
    client = Client()
    reply = ask(client).json
    assert reply["object"] == "chat.completion" and reply["id"].startswith("chatcmpl-")
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": " and so on", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert prompt_of(client) == "<system>Be brief.<user>Hello<assistant>"
    request = client.engine.seen[0]
    assert request.token_ids == tokenizer().encode(request.prompt or "", False)
    assert request.params.max_tokens is None


@given(
    script=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), size=st.integers(1, 6), n=st.integers(1, 3)
)
def test_a_stream_joined_equals_the_whole_and_begins_with_the_role(script: str, size: int, n: int) -> None:
    engine = FakeEngine(lambda request, index: script + "!" * index)
    engine.sizes, engine.together = [size], size
    client = Client(engine)
    whole = ask(client, n=n).json
    events = ask(client, n=n, stream=True, stream_options={"include_usage": True}).events
    for choice in whole["choices"]:
        parts = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        assert parts[-1]["finish_reason"] is not None
    assert events[-1]["usage"] == whole["usage"] and events[-1]["choices"] == []


def test_logprobs_have_the_shape_of_chats() -> None:
    token = tokenizer().encode(" and so on", False)[0]
    (entry,) = ask(logprobs=True, top_logprobs=2, max_tokens=1).json["choices"][0]["logprobs"]["content"]
    text = tokenizer().token_text(token)
    assert (entry["token"], entry["logprob"], entry["bytes"]) == (text, -1.5, list(text.encode()))
    assert [top["token"] for top in entry["top_logprobs"]] == [tokenizer().token_text(5), text]
    (entry,) = ask(logprobs=True, max_tokens=1).json["choices"][0]["logprobs"]["content"]
    assert entry["top_logprobs"] == []
    events = ask(logprobs=True, max_tokens=2, stream=True).events
    contents = [c["logprobs"]["content"] for event in events for c in event["choices"] if c["logprobs"]]
    assert [entry["token"] for content in contents for entry in content] == [
        tokenizer().token_text(token) for token in tokenizer().encode(" and so on", False)[:2]
    ]


def test_contents_may_be_parts() -> None:
    client = Client()
    ask(client, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
    assert prompt_of(client) == "<user>a\nb<assistant>"


def test_the_form_of_contents_may_be_the_servers_to_say() -> None:
    client = Client(chat_template_content_format="openai")
    ask(client)
    assert "[{'type': 'text', 'text': 'Hello'}]" in (prompt_of(client) or "")


def test_the_last_message_may_go_on_and_be_echoed() -> None:
    client = Client()
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    reply = ask(client, messages=messages, continue_final_message=True, echo=True).json
    assert prompt_of(client) == "<system>Be brief.<user>Hello<assistant>Well"
    assert reply["choices"][0]["message"]["content"] == "Well and so on"
    events = ask(client, messages=messages, continue_final_message=True, echo=True, stream=True).events
    assert events[0]["choices"][0]["delta"]["content"] == "Well"
    ask(client, add_generation_prompt=False)
    assert prompt_of(client) == "<system>Be brief.<user>Hello"


def test_a_template_from_a_request_needs_the_flag_but_a_name_of_the_models_does_not() -> None:
    client = Client()
    ask(client, chat_template="loud")
    assert prompt_of(client) == "Be brief.!"
    refused = client.post(PATH, {"messages": HELLO, "chat_template": "{{ 1 }}"})
    assert (refused.status, refused.error["param"]) == (400, "chat_template")
    trusting = Client(trust_request_chat_template=True)
    ask(trusting, chat_template="{{ messages[1].content }}{{ mood }}", chat_template_kwargs={"mood": "?"})
    assert prompt_of(trusting) == "Hello?"
    refused = trusting.post(PATH, {"messages": HELLO, "chat_template": "/etc/passwd"})
    assert refused.status == 400 and "not a path" in refused.error["message"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "took longer than"),
        ("{{ 'a' * 9999999999 }}", "the chat template"),
        ("{{ messages.__class__.__mro__ }}", "the chat template"),
        ("{% if %}", "syntax error"),
        ("{{ raise_exception('no such mood') }}", "no such mood"),
    ],
)
def test_a_hostile_template_harms_nobody(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.entrypoints.serve.sandbox.PATIENCE", 0.5)
    client = Client(trust_request_chat_template=True)
    error = client.post(PATH, {"messages": HELLO, "chat_template": template}).error
    assert error["code"] == 400 and message in error["message"], error
    ask(client)


def test_token_ids_role_and_limits_are_as_asked() -> None:
    client = Client(response_role="model", enable_per_request_metrics=True)
    reply = ask(client, return_token_ids=True, prompt_logprobs=0, max_completion_tokens=2, max_tokens=9).json
    assert reply["choices"][0]["message"]["role"] == "model"
    assert reply["choices"][0]["token_ids"] == tokenizer().encode(" and so on", False)[:2]
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["prompt_token_ids"] == client.engine.seen[0].token_ids
    assert len(reply["prompt_logprobs"]) == len(reply["prompt_token_ids"])
    assert reply["metrics"]["generation_time_ms"] >= 0


def test_tools_that_may_not_be_called_are_taken_and_not_shown() -> None:
    client = Client()
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    ask(client, tools=[tool], tool_choice="none", response_format={"type": "text"})
    assert prompt_of(client) == "<system>Be brief.<user>Hello<assistant>"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"functions": [{}]}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_what_is_not_there_or_wrong_is_named(body: dict[str, Any], param: str) -> None:
    error = Client().post(PATH, {"messages": HELLO, **body}).error
    assert (error["code"], error["param"]) == (400, param), error
