"""The Messages API: blocks, streams, counts, errors in its own shape, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types.shared import ErrorResponse
from hypothesis import given
from hypothesis import strategies as st

from tests.entrypoints.serve.events import check_types, named_events
from tests.entrypoints.serve.fakes import Answer, Client, FakeEngine, tokenizer
from tests.entrypoints.serve.test_server import TEXT, Running, server
from vllm.errors import EngineDeadError, OverloadedError, RequestError

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HELLO: Any = [{"role": "user", "content": "Hello"}]
OPENING = ["message_start", "content_block_start", "ping"]
CLOSING = ["content_block_stop", "message_delta", "message_stop"]


def post(client: Client | None = None, **body: Any) -> Answer:
    return (client or Client()).post(PATH, {"messages": HELLO, "max_tokens": 50, **body})


def ask(client: Client | None = None, **body: Any) -> Any:
    answer = post(client, **body)
    assert answer.status == 200, answer.body
    return answer.json


def stream(client: Client | None = None, **body: Any) -> list[dict[str, Any]]:
    return named_events(post(client, stream=True, **body))


def error(answer: Answer) -> tuple[int, str, str]:
    """Return status, type and message of an error, whose shape is Anthropic's."""
    body = answer.json
    assert set(body) == {"type", "error"} and body["type"] == "error" and set(body["error"]) == {"type", "message"}
    return answer.status, body["error"]["type"], body["error"]["message"]


def test_a_message_has_the_shape_that_clients_know() -> None:
    client = Client()
    message = ask(client, system="Be brief.", temperature=0.5, top_p=0.9, top_k=7, metadata={"user_id": "a"})
    assert message.pop("id").startswith("msg_")
    request = client.engine.seen[0]
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "acme/tiny",
        "content": [{"type": "text", "text": " and so on", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(request.token_ids) - 3,
            "output_tokens": len(tokenizer().encode(" and so on", False)) + 1,  # an end token
            "cache_read_input_tokens": 3,
            "cache_creation_input_tokens": 0,
        },
    }
    assert request.prompt == "<system>Be brief.<user>Hello<assistant>"
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 7, 50)


@given(script=st.text(st.characters(codec="utf-8"), max_size=30), size=st.integers(1, 6), together=st.integers(1, 3))
def test_a_stream_joined_equals_the_whole(script: str, size: int, together: int) -> None:
    engine = FakeEngine(script)
    engine.sizes, engine.together = [size], together
    client = Client(engine)
    whole, events = ask(client, max_tokens=200), stream(client, max_tokens=200)
    start, _, _, *deltas, _, end, _ = events
    kinds = [event["type"] for event in events]
    assert kinds == [*OPENING, *["content_block_delta"] * len(deltas), *CLOSING]
    assert "".join(event["delta"]["text"] for event in deltas) == whole["content"][0]["text"] == script
    first = start["message"]
    assert (first["content"], first["stop_reason"], first["usage"]["output_tokens"]) == ([], None, 0)
    assert end["usage"] == whole["usage"] and end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


@pytest.mark.parametrize(
    ("options", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 2}, "max_tokens", None),
        ({"stop_sequences": ["on", "so"]}, "stop_sequence", "so"),
    ],
)
def test_the_reason_to_stop_is_told(options: dict[str, Any], reason: str, sequence: str | None) -> None:
    message, end = ask(**options), stream(**options)[-2]["delta"]
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert end == {"stop_reason": reason, "stop_sequence": sequence}
    if sequence:
        assert message["content"][0]["text"] == " and "


def test_a_full_context_is_a_reason_of_its_own() -> None:
    class Full(FakeEngine):
        async def stream(self, request: Any) -> Any:
            async for outputs in super().stream(request):
                outputs[-1].outputs[0].finish_reason = outputs[-1].outputs[0].finish_reason and "length"
                yield outputs

    assert ask(Client(Full()))["stop_reason"] == "model_context_window_exceeded"


def test_blocks_become_messages_and_turns_of_one_role_are_joined() -> None:
    client = Client()
    block = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [block]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
        {"role": "user", "content": "d"},
    ]
    ask(client, messages=messages, system=[{"type": "text", "text": "S"}, {"type": "text", "text": "T"}])
    assert client.engine.seen[-1].prompt == "<system>S\nT<user>a\nb<assistant>c<user>d<assistant>"


def test_a_last_message_of_the_assistant_is_gone_on_with() -> None:
    client = Client()
    message = ask(client, messages=[*HELLO, {"role": "assistant", "content": "Well"}])
    assert client.engine.seen[-1].prompt == "<user>Hello<assistant>Well"
    assert message["content"][0]["text"] == " and so on"


def test_tokens_are_counted_as_they_are_read() -> None:
    client = Client()
    body = {"messages": HELLO, "system": "Be brief.", "model": "acme/tiny"}
    count = client.post(COUNT, body).json
    ask(client, **body)
    assert count == {"input_tokens": len(client.engine.seen[0].token_ids)}
    client.engine.tokenizer = None
    assert "without a tokenizer" in error(client.post(COUNT, body))[2]


def test_what_is_not_used_may_be_sent() -> None:
    client = Client()
    tool = {"name": "f", "input_schema": {"type": "object"}}
    ask(
        client,
        tools=[tool],
        tool_choice={"type": "none"},
        thinking={"type": "disabled"},
        output_config={"effort": "low"},
        service_tier="auto",
        context_management={"edits": []},
    )
    assert client.engine.seen[-1].prompt == "<user>Hello<assistant>"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "critic", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "long " * 999}]}, "messages: prompt 0"),
        ({"system": [{"type": "document"}]}, "system[0].type"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config.format"),
        ({"stop_sequences": ["x" * 2000]}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"stop": ["a"]}, "stop"),
    ],
)
def test_what_is_not_there_or_wrong_is_named(body: dict[str, Any], name: str) -> None:
    status, kind, message = error(post(**body))
    assert (status, kind) == (400, "invalid_request_error") and message.startswith(name), message


def test_every_error_has_the_shape_of_the_api() -> None:
    client = Client(keys=["secret"], max_body_bytes=1000)
    key = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
    body = {"messages": HELLO, "max_tokens": 5}
    for path in (PATH, COUNT):
        assert error(client.post(path, body))[:2] == (401, "authentication_error")
        assert error(client.get(path, headers=key))[:2] == (405, "invalid_request_error")
        assert error(client.post(path, body | {"model": "other"}, headers=key))[:2] == (404, "not_found_error")
        assert error(client.post(path, {"messages": "x" * 2000}, headers=key))[:2] == (413, "request_too_large")
        assert error(client.post(path, b"{", headers=key))[:2] == (400, "invalid_request_error")
        assert error(client.post(path, body, headers=key | {"x": "y" * 70_000}))[:2] == (431, "request_too_large")
    assert client.post(PATH, body, headers=key).status == 200
    client.engine.state = "loading"
    loading = client.post(PATH, body, headers=key)
    assert error(loading)[:2] == (503, "overloaded_error") and loading.headers["retry-after"]
    assert client.post("/v1/nothing", body).error["type"] == "AuthenticationError"


def test_the_description_has_each_api_with_its_own_errors() -> None:
    document = Client().get("/openapi.json").json

    def error_type(path: str) -> str:
        content = document["paths"][path]["post"]["responses"]["400"]["content"]
        return content["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]

    assert error_type(PATH) == error_type(COUNT) == "MessageErrorReply"
    assert error_type("/v1/responses") == error_type("/v1/completions") == "ErrorReply"


def test_a_full_queue_is_told_in_the_shape_of_the_api() -> None:
    async def scene() -> list[Answer]:
        engine = FakeEngine()
        engine.pause = 0.01
        client = Client(engine, max_num_seqs=1, max_num_queued_reqs=0)
        body = {"messages": HELLO, "max_tokens": 5}
        return await asyncio.gather(*(client.request("POST", PATH, body) for _ in range(3)))

    answers = asyncio.run(scene())
    assert sorted(answer.status for answer in answers) == [200, 429, 429]
    assert {error(answer)[1] for answer in answers if answer.status != 200} == {"rate_limit_error"}


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (RequestError("no", "prompt"), 400, "invalid_request_error"),
        (OverloadedError("full"), 503, "overloaded_error"),
        (EngineDeadError("killed"), 500, "api_error"),
    ],
)
def test_what_the_engine_raises_is_a_status_or_the_last_event(raised: Exception, status: int, kind: str) -> None:
    engine = FakeEngine()
    engine.error, engine.error_first = raised, True
    for streams in (False, True):
        assert error(post(Client(engine), stream=streams))[:2] == (status, kind)
    engine.error_first = False
    last = stream(Client(engine))[-1]
    assert (last["type"], last["error"]) == ("error", {"type": kind, "message": str(raised)})


def test_a_client_that_leaves_aborts_its_message() -> None:
    engine = FakeEngine(TEXT)
    engine.pause = 0.02
    client = Client(engine)
    client.post(PATH, {"messages": HELLO, "max_tokens": 50, "stream": True}, gone_after_chunks=2)
    assert len(engine.aborted) == 1 and client.server.num_running == 0


# ── the client people use ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with server(api_key=["secret"], max_body_bytes=10_000) as running:
        yield running


def test_the_anthropic_client_gets_its_messages(shared: Running) -> None:
    with anthropic.Anthropic(base_url=shared.url, api_key="secret", max_retries=0) as client:
        ask: Any = {"model": "acme/tiny", "max_tokens": 50, "messages": HELLO}
        message = client.messages.create(**ask, system=[{"type": "text", "text": "Be brief."}])
        assert check_types(message) == set() and message.content[0].text == TEXT  # type: ignore[union-attr]
        events = list(client.messages.create(**ask, stream=True))
        assert set().union(*map(check_types, events)) == set()
        assert {event.type for event in events} == {*OPENING, "content_block_delta", *CLOSING} - {"ping"}
        with client.messages.stream(**ask, stop_sequences=["three"]) as stream:
            assert "".join(stream.text_stream) == "one two "
            final = stream.get_final_message()
        assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "three")
        assert final.usage.input_tokens > 0 and final.usage.output_tokens > 0
        counted = client.messages.count_tokens(model="acme/tiny", messages=HELLO)
        assert check_types(counted) == set()
        usage = client.messages.create(**ask).usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(**ask | {"model": "other"})
        ErrorResponse.model_validate(missing.value.body)
        with pytest.raises(anthropic.BadRequestError, match="tools"):
            client.messages.create(**ask, tools=[{"name": "f", "input_schema": {"type": "object"}}])
        with pytest.raises(anthropic.APIStatusError) as large:
            client.messages.create(**ask | {"messages": [{"role": "user", "content": "x" * 20_000}]})
        assert large.value.status_code == 413
    with anthropic.Anthropic(base_url=shared.url, api_key="x", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError, match="API key") as caught:
            client.messages.create(**ask)
        ErrorResponse.model_validate(caught.value.body)
    with anthropic.Anthropic(base_url=shared.url, auth_token="secret", api_key=None, max_retries=0) as client:
        assert client.messages.create(**ask).type == "message"


def test_a_ping_is_on_the_wire(shared: Running) -> None:
    body = {"messages": HELLO, "max_tokens": 5, "stream": True}
    answer = httpx.post(f"{shared.url}{PATH}", json=body, headers={"x-api-key": "secret"})
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in answer.text and "[DONE]" not in answer.text


def test_the_asynchronous_client_gets_its_messages(shared: Running) -> None:
    async def scene() -> None:
        async with anthropic.AsyncAnthropic(base_url=shared.url, api_key="secret", max_retries=0) as client:
            ask: Any = {"model": "acme/tiny", "max_tokens": 50, "messages": HELLO}

            async def one(streams: bool) -> str:
                if not streams:
                    return (await client.messages.create(**ask)).content[0].text  # type: ignore[union-attr]
                async with client.messages.stream(**ask) as stream:
                    return "".join([text async for text in stream.text_stream])

            assert await asyncio.gather(*(one(i % 2 == 0) for i in range(16))) == [TEXT] * 16
            events = [event async for event in await client.messages.create(**ask, stream=True)]
            assert set().union(*map(check_types, events)) == set()
            assert (await client.messages.count_tokens(model="acme/tiny", messages=HELLO)).input_tokens > 0

    asyncio.run(scene())


def test_a_stream_that_fails_raises_in_the_client() -> None:
    with (
        server({"pause": 0.05}, request_timeout=0.2) as running,
        anthropic.Anthropic(base_url=running.url, api_key="x", max_retries=0) as client,
        client.messages.stream(model="acme/tiny", max_tokens=50, messages=HELLO) as stream,
        pytest.raises(anthropic.APIStatusError, match="request_timeout"),
    ):
        list(stream)
