"""The Responses API: items, streams, what is kept and gone on from, the background, and what is refused."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.entrypoints.serve.events import check_types, named_events
from tests.entrypoints.serve.fakes import Client, FakeEngine, tokenizer
from tests.entrypoints.serve.test_server import TEXT, Running, server
from vllm.entrypoints.serve.conversation import as_chat
from vllm.entrypoints.serve.responses.store import Store
from vllm.errors import EngineDeadError, OverloadedError, RequestError

PATH = "/v1/responses"
LOGPROBS = ["message.output_text.logprobs"]
OPENING = ["created", "in_progress", "output_item.added", "content_part.added"]
CLOSING = ["output_text.done", "content_part.done", "output_item.done"]


def ask(client: Client | None = None, **body: Any) -> Any:
    answer = (client or Client()).post(PATH, {"input": "Hello", **body})
    assert answer.status == 200, answer.body
    return answer.json


def stream(client: Client | None = None, **body: Any) -> list[dict[str, Any]]:
    return named_events((client or Client()).post(PATH, {"input": "Hello", "stream": True, **body}))


def error(client: Client | None = None, **body: Any) -> dict[str, Any]:
    return (client or Client()).post(PATH, {"input": "Hello", **body}).error


def text_of(response: dict[str, Any]) -> str:
    return response["output"][0]["content"][0]["text"]


def short(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def slow(pause: float = 0.01) -> FakeEngine:
    engine = FakeEngine("one two three four five six seven eight")
    engine.pause = pause
    return engine


# ── whole answers ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_response_has_the_shape_that_clients_know() -> None:
    client = Client()
    response = ask(client, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=99)
    assert response["id"].startswith("resp_") and response["output"][0].pop("id").startswith("msg_")
    assert response["completed_at"] >= response["created_at"]
    request = client.engine.seen[0]
    prompt, output = len(request.token_ids), len(tokenizer().encode(" and so on", False)) + 1  # an end token
    assert response == response | {
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief.",
        "max_output_tokens": 99,
        "metadata": {"a": "b"},
        "model": "acme/tiny",
        "output": [
            {
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": " and so on", "annotations": [], "logprobs": []}],
            }
        ],
        "previous_response_id": None,
        "store": True,
        "temperature": 0.5,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + output,
        },
    }
    assert request.prompt == "<system>Be brief.<user>Hello<assistant>"
    assert (request.params.temperature, request.params.max_tokens) == (0.5, 99)


def test_items_become_messages_under_the_instructions() -> None:
    client = Client()
    items = [
        {"role": "developer", "content": "In rhyme."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": "c"},
    ]
    ask(client, input=items, instructions="Be brief.")
    assert client.engine.seen[-1].prompt == (
        "<system>Be brief.\nIn rhyme.<user>a<assistant>b<assistant>no<user>c<assistant>"
    )
    ask(client, input=items[1:2], reasoning={"effort": "low"}, text={"format": {"type": "text"}, "verbosity": "low"})
    assert client.engine.seen[-1].prompt == "<user>a<assistant>"


def test_sampling_fields_beyond_the_api_are_taken() -> None:
    client = Client()
    ask(client, top_k=7, min_p=0.1, seed=3, stop=["so"], repetition_penalty=1.5, priority=2, cache_salt="s")
    request = client.engine.seen[0]
    params = request.params
    assert (params.top_k, params.min_p, params.seed, params.stop, params.repetition_penalty) == (7, 0.1, 3, ["so"], 1.5)
    assert (request.priority, request.cache_salt) == (2, "s")


def test_an_answer_that_was_cut_is_incomplete() -> None:
    response = ask(max_output_tokens=2)
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"} and response["completed_at"] is None
    *_, last = stream(max_output_tokens=2)
    assert last["type"] == "response.incomplete" and last["response"]["usage"] == response["usage"]


@pytest.mark.parametrize("streams", [False, True])
def test_log_probabilities_come_when_they_are_included(streams: bool) -> None:
    options = {"include": LOGPROBS, "top_logprobs": 2, "max_output_tokens": 2}
    events = stream(**options) if streams else []
    response = events[-1]["response"] if streams else ask(**options)
    tokens = [tokenizer().token_text(token) for token in tokenizer().encode(" and so on", False)[:2]]
    entries = response["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in entries] == tokens
    assert entries[0]["bytes"] == list(tokens[0].encode()) and entries[0]["logprob"] == -1.5
    assert [top["token"] for top in entries[0]["top_logprobs"]] == [tokenizer().token_text(5), tokens[0]]
    deltas = [entry for event in events if event["type"].endswith("text.delta") for entry in event["logprobs"]]
    assert deltas == (entries if streams else [])
    assert ask(include=LOGPROBS)["output"][0]["content"][0]["logprobs"][0]["top_logprobs"] == []


def test_the_end_of_an_engine_is_no_end_of_an_answer() -> None:
    class Aborting(FakeEngine):
        async def stream(self, request: Any) -> Any:
            async for outputs in super().stream(request):
                outputs[-1].outputs[0].finish_reason = "abort"
                yield outputs

    assert error(Client(Aborting()))["code"] == 503


# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(script=st.text(st.characters(codec="utf-8"), max_size=30), size=st.integers(1, 6), together=st.integers(1, 3))
def test_a_stream_joined_equals_the_whole(script: str, size: int, together: int) -> None:
    engine = FakeEngine(script)
    engine.sizes, engine.together = [size], together
    client = Client(engine)
    whole, events = ask(client), stream(client)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert short(events) == [*OPENING, *["output_text.delta"] * len(deltas), *CLOSING, "completed"]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert "".join(delta["delta"] for delta in deltas) == text_of(whole) == script
    done, part, item, completed = (event for event in events[-4:])
    assert done["text"] == part["part"]["text"] == item["item"]["content"][0]["text"] == script
    first, last = events[0]["response"], completed["response"]
    assert (first["status"], first["output"], first["usage"], first["completed_at"]) == ("in_progress", [], None, None)
    assert last["output"] == [item["item"]] and last["usage"] == whole["usage"] and last["id"] == first["id"]
    assert {event["item_id"] for event in events if "item_id" in event} == {item["item"]["id"]}


@pytest.mark.parametrize(
    ("raised", "status"),
    [(RequestError("no", "prompt"), 400), (OverloadedError("full"), 503), (EngineDeadError("x"), 500)],
)
def test_what_goes_wrong_before_the_first_token_is_a_status(raised: Exception, status: int) -> None:
    engine = FakeEngine()
    engine.error, engine.error_first = raised, True
    for streams in (False, True):
        assert error(Client(engine), stream=streams)["code"] == status


def test_what_goes_wrong_in_a_stream_fails_the_response_with_what_there_is() -> None:
    engine = FakeEngine()
    engine.error = EngineDeadError("killed by signal 9")
    client = Client(engine)
    events = stream(client)
    assert short(events) == [*OPENING, "output_text.delta", "failed"] and events[-1]["sequence_number"] == 5
    response = events[-1]["response"]
    assert response["error"] == {"code": "server_error", "message": "killed by signal 9"}
    assert response["status"] == "failed" and response["output"][0]["status"] == "incomplete"
    assert text_of(response) == events[4]["delta"]
    assert client.get(f"{PATH}/{response['id']}").json == response
    assert error(client, previous_response_id=response["id"])["param"] == "previous_response_id"


def test_a_stream_whose_client_leaves_is_cancelled() -> None:
    client = Client(slow())
    answer = client.post(PATH, {"input": "a", "stream": True}, gone_after_chunks=2)
    name = named_events(answer)[0]["response"]["id"]
    kept = client.get(f"{PATH}/{name}").json
    assert kept["status"] == "cancelled" and kept["output"][0]["status"] == "incomplete"
    assert len(client.engine.aborted) == 1 and client.server.num_running == 0


def test_a_stream_that_takes_too_long_fails() -> None:
    client = Client(slow(0.03), request_timeout=0.1)
    *_, last = stream(client)
    assert last["type"] == "response.failed" and "request_timeout" in last["response"]["error"]["message"]


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_response_is_kept_and_gone_on_from_without_its_instructions() -> None:
    client = Client()
    first = ask(client, instructions="Be brief.")
    second = stream(client, input="More", previous_response_id=first["id"], instructions="Be long.")[-1]["response"]
    assert client.engine.seen[-1].prompt == "<system>Be long.<user>Hello<assistant> and so on<user>More<assistant>"
    assert second["previous_response_id"] == first["id"]
    cut = ask(client, input="Still", previous_response_id=second["id"], max_output_tokens=1)
    ask(client, input="?", previous_response_id=cut["id"])
    assert client.engine.seen[-1].prompt == (
        "<user>Hello<assistant> and so on<user>More<assistant> and so on"
        f"<user>Still<assistant>{text_of(cut)}<user>?<assistant>"
    )
    for response in (first, second, cut):
        assert client.get(f"{PATH}/{response['id']}").json == response
    client.engine.state = "dead"
    assert client.get(f"{PATH}/{first['id']}").status == 200


def test_log_probabilities_are_kept_too_but_once() -> None:
    client = Client()
    store = client.app.router.find("POST", PATH)[0].handler.__self__.store  # type: ignore[attr-defined]
    whole, streamed = ask(client, include=LOGPROBS), stream(client, include=LOGPROBS)[-1]["response"]
    for response in (whole, streamed):
        assert response["output"][0]["content"][0]["logprobs"]
        assert client.get(f"{PATH}/{response['id']}").json == response
        assert store.get(response["id"]).item.content[0].logprobs == []  # the JSON has them


def test_nothing_is_kept_that_is_not_to_be() -> None:
    for client, options in ((Client(), {"store": False}), (Client(max_stored_responses=0), {})):
        for response in (ask(client, **options), stream(client, **options)[-1]["response"]):
            assert response["store"] is False
            assert client.get(f"{PATH}/{response['id']}").status == 404
            assert error(client, previous_response_id=response["id"])["param"] == "previous_response_id"
        assert error(client, background=True, **options)["param"] == "background"


def test_a_server_keeps_the_newest_for_a_while() -> None:
    client = Client(max_stored_responses=2)
    names = [ask(client)["id"] for _ in range(3)]
    assert [client.get(f"{PATH}/{name}").status for name in names] == [404, 200, 200]
    client = Client(stored_response_lifetime=0.05)
    name = ask(client)["id"]
    time.sleep(0.06)
    assert client.get(f"{PATH}/{name}").status == 404


def test_what_is_kept_is_limited_in_bytes_and_what_runs_stays() -> None:
    client = Client()
    store = Store(most=10, lifetime=60.0, most_bytes=6000)
    client.app.router.find("POST", PATH)[0].handler.__self__.store = store  # type: ignore[attr-defined]
    names = [ask(client, input="tide " * 200)["id"] for _ in range(4)]
    kept = [record for name in names if (record := store.get(name)) is not None]
    assert [record.id for record in kept] == names[-len(kept) :] and 2 <= len(kept) < 4
    assert sum(record.size + len(record.body) for record in kept) == store.num_bytes <= 6000
    assert all(record.size > 1000 for record in kept)
    ask(client, input="more", previous_response_id=names[-1])
    assert store.get(names[-2]) is None  # a conversation counts with all that it holds
    first = store.get(names[-1])
    assert first is not None
    first.body = b""  # as if it had not ended
    store.most = 0
    store.put(first)
    assert len(store) == 1 and store.get(names[-1]) is first


def test_a_conversation_that_is_too_long_loses_its_oldest_messages_if_it_may() -> None:
    client = Client(FakeEngine(max_model_len=64))
    items = [{"role": "system", "content": "S"}]
    for number in range(12):
        items += [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "answer"}]
    items.append({"role": "user", "content": "last"})
    refused = error(client, input=items)
    assert (refused["code"], refused["param"]) == (400, "input") and "max_model_len=64" in refused["message"]
    response = ask(client, input=items, truncation="auto", instructions="I")
    prompt = client.engine.seen[-1].prompt or ""
    assert response["truncation"] == "auto"
    assert prompt.startswith("<system>I\nS<user>question") and prompt.endswith("<user>last<assistant>")
    count = len(client.engine.seen[-1].token_ids)
    dropped = int(prompt.split("question ")[1].split("<")[0])
    longer = prompt.replace("<user>", f"<user>question {dropped - 1}<assistant>answer<user>", 1)
    assert count <= 63 < len(tokenizer().encode(longer, False))
    ask(client, input=items, truncation="auto", instructions="I", max_output_tokens=30)
    assert len(client.engine.seen[-1].token_ids) <= 34
    assert error(client, input="long " * 99, truncation="auto")["param"] == "input"
    ask(client, input=items[:3], truncation="auto")
    assert client.engine.seen[-1].prompt == "<system>S<user>question 0<assistant>answer<assistant>"


def test_a_response_belongs_to_the_key_that_it_was_made_with() -> None:
    async def scene() -> None:
        client = Client(slow(), keys=["one", "two"])
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        mine = (await client.request("POST", PATH, {"input": "a"}, headers=one)).json
        later = (await client.request("POST", PATH, BACKGROUND | {"stream": False}, headers=one)).json
        for name in (mine["id"], later["id"]):
            for method, path in (("GET", name), ("GET", f"{name}?stream=true"), ("POST", f"{name}/cancel")):
                strange = await client.request(method, f"{PATH}/{path}", headers=two)
                unknown = await client.request(method, f"{PATH}/{path.replace(name, 'resp_none')}", headers=two)
                assert strange.status == unknown.status == 404
                assert strange.error["message"].replace(name, "resp_none") == unknown.error["message"]
            follow = {"input": "b", "previous_response_id": name}
            assert (await client.request("POST", PATH, follow, headers=two)).error["param"] == "previous_response_id"
        assert (await client.request("POST", f"{PATH}/{later['id']}/cancel", headers=one)).json["status"] == "cancelled"
        assert (await client.request("GET", f"{PATH}/{mine['id']}", headers={"x-api-key": "one"})).json == mine
        follow = {"input": "b", "previous_response_id": mine["id"]}
        assert (await client.request("POST", PATH, follow, headers=one)).json["status"] == "completed"

    asyncio.run(scene())


# ── the background ──────────────────────────────────────────────────────────────────────────────────────────────────


async def wait_for(client: Client, name: str, *statuses: str) -> Any:
    for _ in range(500):
        response = (await client.request("GET", f"{PATH}/{name}")).json
        if response["status"] in statuses:
            return response
        await asyncio.sleep(0.005)
    raise AssertionError(response)


def test_a_response_in_the_background_is_there_later() -> None:
    async def scene() -> None:
        client = Client(slow(), enable_log_requests=True)
        queued = (await client.request("POST", PATH, {"input": "a", "background": True})).json
        assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
        assert client.server.num_running == 1
        early = await client.request("POST", PATH, {"input": "b", "previous_response_id": queued["id"]})
        assert "nothing to go on from" in early.error["message"]
        running = await wait_for(client, queued["id"], "in_progress", "completed")
        assert running["status"] == "in_progress" and running["usage"] is None
        done = await wait_for(client, queued["id"], "completed")
        assert text_of(done) == TEXT and client.server.num_running == 0
        same = await client.request("POST", f"{PATH}/{queued['id']}/cancel")
        assert same.json == done

    asyncio.run(scene())


def test_a_response_in_the_background_can_be_cancelled() -> None:
    async def scene(pause: float) -> None:
        client = Client(slow(5.0), max_concurrent_requests=1)
        queued = (await client.request("POST", PATH, {"input": "a", "background": True})).json
        full = await client.request("POST", PATH, {"input": "b"})
        assert full.status == 503 and "max_concurrent_requests" in full.error["message"]
        await asyncio.sleep(pause)
        cancelled = await client.request("POST", f"{PATH}/{queued['id']}/cancel")
        assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
        assert client.server.num_running == 0 and client.engine.finished == []
        again = await client.request("POST", f"{PATH}/{queued['id']}/cancel")
        assert again.json == cancelled.json

    for pause in (0.0, 0.02):
        asyncio.run(scene(pause))


@pytest.mark.parametrize(
    ("raised", "timeout", "code", "message"),
    [
        (EngineDeadError("killed by signal 9"), None, "server_error", "killed by signal 9"),
        (RequestError("too long"), None, "invalid_prompt", "too long"),
        (KeyError("a secret"), None, "server_error", "internal error"),
        (None, 0.02, "server_error", "request_timeout=0.02"),
    ],
)
def test_a_response_in_the_background_can_fail(
    raised: Exception | None, timeout: float | None, code: str, message: str
) -> None:
    async def scene() -> None:
        engine = slow()
        engine.error, engine.error_first = raised, True
        client = Client(engine, request_timeout=timeout)
        queued = (await client.request("POST", PATH, {"input": "a", "background": True})).json
        failed = await wait_for(client, queued["id"], "failed")
        assert failed["error"]["code"] == code and message in failed["error"]["message"]
        assert "secret" not in failed["error"]["message"] and client.server.num_running == 0

    asyncio.run(scene())


def streamed(answer: Any) -> list[dict[str, Any]]:
    events = named_events(answer)
    assert [event["sequence_number"] for event in events] == [
        *range(events[0]["sequence_number"], events[-1]["sequence_number"] + 1)
    ]
    return events


BACKGROUND: Any = {"input": "a", "background": True, "stream": True}


def test_a_stream_in_the_background_goes_on_without_its_client_and_can_be_read_again() -> None:
    async def scene() -> None:
        client = Client(slow())
        begun = await client.request("POST", PATH, BACKGROUND, gone_after_chunks=2)
        first = streamed(begun)
        assert short(first)[:2] == ["created", "queued"] and "completed" not in short(first)
        name = first[0]["response"]["id"]
        assert first[0]["response"]["status"] == "queued" and client.server.num_running == 1
        whole, rest = await asyncio.gather(
            client.request("GET", f"{PATH}/{name}?stream=true"),
            client.request("GET", f"{PATH}/{name}?stream=true&starting_after=3"),
        )
        events = streamed(whole)
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert short(events) == [
            "created",
            "queued",
            *OPENING[1:],
            *["output_text.delta"] * len(deltas),
            *CLOSING,
            "completed",
        ]
        assert "".join(deltas) == text_of(events[-1]["response"]) == TEXT
        assert streamed(rest) == events[4:] and events[: len(first)] == first
        again = await client.request("GET", f"{PATH}/{name}?stream=true&starting_after={len(events) - 2}")
        assert streamed(again) == events[-1:]
        beyond = await client.request("GET", f"{PATH}/{name}?stream=true&starting_after=999")
        assert (beyond.status, beyond.body) == (200, b"")
        assert (await client.request("GET", f"{PATH}/{name}")).json == events[-1]["response"]
        assert client.server.num_running == 0 and client.engine.aborted == []
        store = client.app.router.find("POST", PATH)[0].handler.__self__.store  # type: ignore[attr-defined]
        assert store.num_bytes == store.get(name).num_bytes > len(whole.body)
        for odd in ("x", "-2", "1.5", "9" * 20, ""):
            refused = await client.request("GET", f"{PATH}/{name}?stream=true&starting_after={odd}")
            assert odd == "" or refused.error["param"] == "starting_after"

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("raised", "timeout", "message"),
    [
        (EngineDeadError("killed by signal 9"), None, "killed by signal 9"),
        (KeyError("a secret"), None, "internal error"),
        (None, 0.03, "request_timeout=0.03"),
    ],
)
def test_a_stream_in_the_background_that_fails_says_so_to_whoever_reads(
    raised: Exception | None, timeout: float | None, message: str
) -> None:
    async def scene() -> None:
        engine = slow()
        engine.error = raised
        client = Client(engine, request_timeout=timeout)
        begun = await client.request("POST", PATH, BACKGROUND, gone_after_chunks=1)
        name = streamed(begun)[0]["response"]["id"]
        failed = await wait_for(client, name, "failed")
        assert message in failed["error"]["message"] and "secret" not in failed["error"]["message"]
        *_, last = streamed(await client.request("GET", f"{PATH}/{name}?stream=true"))
        assert (last["type"], last["response"]) == ("response.failed", failed)

    asyncio.run(scene())


def test_a_stream_in_the_background_ends_when_it_is_cancelled_or_the_server_stops() -> None:
    async def scene() -> None:
        client = Client(slow(0.05))
        reading = asyncio.create_task(client.request("POST", PATH, BACKGROUND))
        while client.server.num_running < 2:
            await asyncio.sleep(0.001)
        (name,) = client.app.router.find("POST", PATH)[0].handler.__self__.store._records  # type: ignore[attr-defined]
        await asyncio.sleep(0.07)
        assert (await client.request("POST", f"{PATH}/{name}/cancel")).json["status"] == "cancelled"
        *_, last = streamed(await reading)
        assert (last["type"], last["code"]) == ("error", "cancelled")
        assert client.server.num_running == 0 and len(client.engine.aborted) == 1
        reading = asyncio.create_task(client.request("POST", PATH, BACKGROUND))
        await asyncio.sleep(0.07)
        client.app.interrupt()
        *_, last = streamed(await reading)
        assert last["type"] == "error" and "interrupted" in last["message"]

    asyncio.run(scene())


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "critic", "content": "a"}]}, "input[0].role"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "mcp", "server_label": "a"}], "tool_choice": "auto"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}, "text.format"),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, "reasoning.summary"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["everything"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": LOGPROBS}, "top_logprobs"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {str(i): "b" for i in range(17)}}, "metadata"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"stream_options": {}}, "stream_options"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_what_is_not_there_or_wrong_is_named(body: dict[str, Any], param: str) -> None:
    told = error(**body)
    assert told["code"] == 400 and told["param"].split("[...]")[0] == param, told


def test_what_is_not_used_may_be_sent() -> None:
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    response = ask(tools=[tool], tool_choice="none", prompt_cache_key="a", include=["reasoning.encrypted_content"], n=1)
    assert (response["tools"], response["tool_choice"]) == ([tool], "none")


def test_a_response_that_is_not_kept_is_not_found() -> None:
    client = Client()
    for answer in (client.get(f"{PATH}/resp_none"), client.post(f"{PATH}/resp_none/cancel")):
        assert answer.status == 404 and answer.error["param"] == "response_id"
    name = ask(client)["id"]
    assert "in the background" in client.post(f"{PATH}/{name}/cancel").error["message"]
    assert client.get(f"{PATH}/{name}?stream=true").error["param"] == "stream"
    assert client.get(f"{PATH}/{name}?starting_after=3").error["param"] == "starting_after"
    assert client.get(f"{PATH}/{name}?stream=false").status == 200
    assert client.post(PATH, {"input": "a", "model": "other"}).error["code"] == 404


def test_an_id_is_the_servers_choice_but_a_request_may_have_one() -> None:
    client = Client()
    answer = client.post(PATH, {"input": "a"}, headers={"X-Request-Id": "xyz"})
    assert answer.headers["x-request-id"] == "xyz" and "xyz" not in answer.json["id"]
    assert client.post(PATH, {"input": "a", "request_id": "mine"}).headers["x-request-id"] == "mine"


# ── the client people use ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with server(api_key=["secret"]) as running:
        yield running


OURS = {"store", "bytes"}  # the API sends them, though its client's types don't say so everywhere


def test_the_openai_client_gets_its_responses(shared: Running) -> None:
    with shared.openai() as client:
        response = client.responses.create(
            model="acme/tiny", input="Hello", instructions="Be brief.", include=["message.output_text.logprobs"]
        )
        assert check_types(response) <= OURS and response.output_text == TEXT
        assert client.responses.retrieve(response.id) == response
        events = list(
            client.responses.create(
                model="acme/tiny",
                input=[{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
                stream=True,
                include=["message.output_text.logprobs"],
                top_logprobs=2,
            )
        )
        assert set().union(*map(check_types, events)) <= OURS
        kinds = {event.type.removeprefix("response.") for event in events}
        assert kinds == {*OPENING, "output_text.delta", *CLOSING, "completed"}
        with client.responses.stream(
            model="acme/tiny", input="More", previous_response_id=response.id, max_output_tokens=2
        ) as cut:
            last = [*cut][-1]
        assert last.type == "response.incomplete" and check_types(last) <= OURS
        with client.responses.stream(model="acme/tiny", input="Hello") as whole:
            assert "".join(event.delta for event in whole if event.type == "response.output_text.delta") == TEXT
            assert whole.get_final_response().output_text == TEXT
        later = client.responses.create(model="acme/tiny", input="Hello", background=True)
        for _ in range(500):
            if (later := client.responses.retrieve(later.id)).status == "completed":
                break
            time.sleep(0.01)
        assert later.output_text == TEXT and client.responses.cancel(later.id) == later
        stream = client.responses.create(model="acme/tiny", input="Hello", background=True, stream=True)
        first = next(iter(stream))
        stream.close()  # the response goes on
        assert first.type == "response.created" and first.response.status == "queued"
        rest = list(client.responses.retrieve(first.response.id, stream=True, starting_after=0))
        assert check_types(first) <= OURS and set().union(*map(check_types, rest)) <= OURS
        assert [first.sequence_number, *(event.sequence_number for event in rest)] == [*range(len(rest) + 1)]
        assert rest[0].type == "response.queued" and rest[-1].type == "response.completed"
        assert rest[-1].response == client.responses.retrieve(first.response.id)
        assert "".join(event.delta for event in rest if event.type == "response.output_text.delta") == TEXT
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="acme/tiny", input="Hello", tools=[{"type": "web_search"}])
        assert caught.value.param == "tools"
        with pytest.raises(openai.BadRequestError, match="in the background"):
            client.responses.cancel(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_none")
        with pytest.raises(openai.BadRequestError, match="can be streamed"):
            client.responses.retrieve(response.id, stream=True)


def test_the_asynchronous_client_gets_its_responses(shared: Running) -> None:
    async def scene() -> None:
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="secret", max_retries=0) as client:

            async def one(streams: bool) -> str:
                if not streams:
                    return (await client.responses.create(model="acme/tiny", input="Hello")).output_text
                async with client.responses.stream(model="acme/tiny", input="Hello") as events:
                    assert [check_types(event) <= OURS async for event in events]
                    return (await events.get_final_response()).output_text

            assert await asyncio.gather(*(one(i % 2 == 0) for i in range(16))) == [TEXT] * 16
            response = await client.responses.create(model="acme/tiny", input="Hello")
            assert await client.responses.retrieve(response.id) == response

    asyncio.run(scene())


def test_the_clients_cancel_and_are_told_of_failures() -> None:
    with server({"pause": 5.0}) as running, running.openai() as client:
        later = client.responses.create(model="acme/tiny", input="Hello", background=True)
        assert check_types(later) <= OURS and later.status == "queued"
        cancelled = client.responses.cancel(later.id)
        assert check_types(cancelled) <= OURS and cancelled.status == "cancelled"

        async def scene() -> None:
            async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
                later = await client.responses.create(model="acme/tiny", input="Hello", background=True)
                assert (await client.responses.cancel(later.id)).status == "cancelled"

        asyncio.run(scene())
        client.responses.create(model="acme/tiny", input="Hello", background=True)
        assert running.end(signal.SIGTERM) == {"aborted": 2, "finished": 0}  # which says that there was no traceback
    with server({"pause": 0.05}, request_timeout=0.2) as running, running.openai() as client:
        *_, last = client.responses.create(model="acme/tiny", input="Hello", stream=True)
        assert check_types(last) <= OURS
        assert last.type == "response.failed" and last.response.error is not None
        assert "request_timeout" in last.response.error.message


def test_a_call_seen_as_a_chat_leaves_the_call_as_it_was() -> None:
    from vllm.entrypoints.serve.context import Call
    from vllm.entrypoints.serve.protocol import ChatRequest

    call = Call(Client().server, "id", {b"a": b"b"}, {})
    call.raw, call.body = b"{}", "body"
    chat = as_chat(call, ChatRequest(messages=[]))
    assert (call.body, chat.header(b"a"), chat.raw) == ("body", "b", b"{}")
