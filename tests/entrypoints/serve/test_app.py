"""The application: who gets in, what is refused before a handler sees it, and how requests end early."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest

from tests.entrypoints.serve.fakes import Answer, Client, FakeEngine
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.guard import with_cors
from vllm.entrypoints.serve.http import Reply
from vllm.entrypoints.serve.route import Route, Router
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import ConfigError, EngineDeadError, OverloadedError, RequestError
from vllm.messages import NO_TOKEN_LEFT

COMPLETE = "/v1/completions"
BODY = {"prompt": "The tide", "max_tokens": 4}
KEY = {"Authorization": "Bearer secret"}


def test_importing_the_front_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "tokenizers", "jinja2", "huggingface_hub"]
    code = (
        "import sys, vllm.entrypoints.serve.server, vllm.entrypoints.serve.routes\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "path", ["/v1/models", "/tokenize", "/nothing", "//health", "/health/", "/health/../version", "/ping"]
)
def test_a_key_is_asked_for_on_every_path_but_health(path: str) -> None:
    client = Client(keys=["other", "secret"])
    assert client.get("/health").status == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"x-api-key": "secretx"}):
        answer = client.get(path, headers=headers)
        assert answer.status == 401 and answer.error["type"] == "AuthenticationError"
    assert client.get(path, headers=KEY).status != 401
    assert client.get(path, headers={"x-api-key": "secret"}).status != 401


def test_unknown_paths_and_methods_are_answered_in_our_shape() -> None:
    client = Client()
    missing = client.get("/v1/completion")
    assert missing.status == 404 and "'/v1/completions'" in missing.error["message"]
    wrong = client.get(COMPLETE)
    assert wrong.status == 405 and wrong.headers["allow"] == "OPTIONS, POST" and wrong.error
    options = asyncio.run(client.request("OPTIONS", "/v1/models"))
    assert options.status == 200 and options.headers["allow"] == "GET, HEAD, OPTIONS"
    head = asyncio.run(client.request("HEAD", "/v1/models"))
    assert head.status == 200
    assert client.get("/" + "x" * 5000).status == 404


def test_a_proxy_may_keep_or_take_off_its_path() -> None:
    client = Client(root_path="llm/")
    assert client.get("/llm/version").status == client.get("/version").status == 200
    assert client.get("/llmversion").status == 404


def test_paths_have_parameters() -> None:
    async def nothing(call: Any) -> Reply:
        return Reply(b"")

    paths = ["/r/{id}", "/r/{id}/cancel", "/m/{name...}"]
    router = Router([Route("GET", path, nothing, "") for path in paths])
    assert router.find("GET", "/r/7")[1] == {"id": "7"}
    assert router.find("HEAD", "/r/7/cancel")[0].path == "/r/{id}/cancel"
    assert router.find("GET", "/m/a/b")[1] == {"name": "a/b"}
    for path in ("/r/", "/r", "/m/", "/r/7/x", "/"):
        with pytest.raises(HttpError):
            router.find("GET", path)
    with pytest.raises(ValueError, match="two routes"):
        Router([Route("GET", "/a", nothing, "")] * 2)


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        ({"content-type": "text/plain"}, BODY, 400, "application/json, got text/plain"),
        ({"content-type": ""}, BODY, 400, "got none"),
        ({"content-length": str(2**40)}, BODY, 413, "max_body_bytes=1,000"),
        ({}, {"prompt": "x" * 1000}, 413, "max_body_bytes=1,000"),
        ({}, b"", 400, "empty"),
        ({}, b"{", 400, "not JSON"),
        ({}, b"[1]", 400, "expected object"),
        ({}, b"null", 400, "expected object"),
        ({}, b'{"prompt": NaN}', 400, "not JSON"),
        ({}, b'{"prompt": "\xff"}', 400, "JSON"),
        ({}, b'{"prompt": "a", "x": ' + b"[" * 900, 400, "JSON"),
        ({}, b'{"prompt": "a", "x": ' + b"[" * 400 + b"]" * 400 + b"}", 200, ""),
        ({"x": "y" * 70000}, BODY, 431, "max_header_bytes"),
        ({f"x{i}": "y" for i in range(101)}, BODY, 431, "max_headers"),
        ({"content-type": "application/vnd.x+json; charset=utf-8"}, BODY, 200, ""),
    ],
)
def test_what_is_no_request_is_refused(headers: dict[str, str], body: Any, status: int, message: str) -> None:
    answer = Client(max_body_bytes=1000).post(COMPLETE, body, headers=headers)
    assert answer.status == status, answer.body
    if status != 200:
        assert message in answer.error["message"], answer.error


def test_until_the_model_is_ready_there_is_503_with_a_time_to_come_back() -> None:
    client = Client()
    for state, reason in (("loading", "loading"), ("dead", "started again"), ("stopping", "shutting down")):
        client.engine.state = state
        answer = client.post(COMPLETE, BODY)
        assert answer.status == 503 and reason in answer.error["message"] and int(answer.headers["retry-after"]) >= 1
        assert client.get("/health").status == client.get("/ping").status == 503
        assert client.get("/version").status == 200
    client.model.engine = None
    assert client.post(COMPLETE, BODY).status == client.get("/health").status == client.get("/v1/models").status == 503


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("no", "prompt"), 400),
        (OverloadedError("full", 3.0), 503),
        (EngineDeadError("killed by signal 9"), 500),
        (KeyError("a secret"), 500),
    ],
)
def test_what_the_engine_raises_before_the_first_token_is_a_status(error: Exception, status: int, stream: bool) -> None:
    engine = FakeEngine()
    engine.error, engine.error_first = error, True
    answer = Client(engine).post(COMPLETE, BODY | {"stream": stream})
    assert answer.status == status and "secret" not in answer.error["message"]
    assert status != 503 or answer.headers["retry-after"] == "3"


def last_error(answer: Answer) -> Any:
    assert answer.status == 200
    return answer.events[-1]["error"]


def test_what_goes_wrong_in_a_stream_is_its_last_event() -> None:
    engine = FakeEngine()
    engine.error = EngineDeadError("killed by signal 9")
    error = last_error(Client(engine).post(COMPLETE, BODY | {"stream": True}))
    assert error == {
        "message": "killed by signal 9",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }


def test_a_row_that_failed_alone_is_an_error_of_its_request() -> None:
    engine = FakeEngine()
    engine.fails_alone = "NaN in the logits"
    answer = Client(engine).post(COMPLETE, BODY)
    assert answer.status == 500 and "NaN in the logits" in answer.error["message"]
    assert "NaN" in last_error(Client(engine).post(COMPLETE, BODY | {"stream": True}))["message"]
    engine.fails_alone = NO_TOKEN_LEFT
    answer = Client(engine).post(COMPLETE, BODY)
    assert answer.status == 400 and answer.error["message"] == NO_TOKEN_LEFT
    assert last_error(Client(engine).post(COMPLETE, BODY | {"stream": True}))["code"] == 400


@pytest.mark.parametrize("body", [BODY, BODY | {"prompt": ["a", "b", "c"]}, BODY | {"n": 3}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_its_request(body: dict[str, Any], stream: bool) -> None:
    engine = FakeEngine("one two three four five six")
    engine.pause = 0.02
    client = Client(engine)
    client.post(COMPLETE, body | {"stream": stream, "max_tokens": 50}, gone_after=0.03)
    assert engine.finished == [] and len(engine.aborted) == len(engine.seen) > 0
    assert client.server.num_running == 0


def test_a_client_that_leaves_in_the_middle_of_a_stream_aborts_its_request() -> None:
    engine = FakeEngine("one two three four five six seven eight")
    engine.pause = 0.01
    client = Client(engine)
    answer = client.post(COMPLETE, BODY | {"stream": True, "max_tokens": 50}, gone_after_chunks=2)
    assert answer.status == 200 and b"DONE" not in answer.body
    assert engine.finished == [] and len(engine.aborted) == 1


def test_a_request_that_takes_too_long_is_given_up() -> None:
    engine = FakeEngine("one two three four five six")
    engine.pause = 0.02
    client = Client(engine, request_timeout=0.03)
    answer = client.post(COMPLETE, BODY | {"max_tokens": 50})
    assert answer.status == 503 and "request_timeout=0.03" in answer.error["message"]
    error = last_error(client.post(COMPLETE, BODY | {"max_tokens": 50, "stream": True}))
    assert "request_timeout" in error["message"] and len(engine.aborted) == 2


def test_an_interrupted_server_tells_everybody() -> None:
    async def scene(client: Client) -> list[Answer]:
        asks = [client.request("POST", COMPLETE, BODY | {"stream": stream}) for stream in (False, True, True)]
        tasks = [asyncio.create_task(ask) for ask in asks]
        await asyncio.sleep(0.03)
        client.app.interrupt()
        return await asyncio.wait_for(asyncio.gather(*tasks), 1)

    engine = FakeEngine("one two three four five six")
    engine.pause = 0.02
    whole, *streams = asyncio.run(scene(Client(engine)))
    assert whole.status == 503 and "interrupted" in whole.error["message"]
    assert [last_error(stream)["code"] for stream in streams] == [503, 503]
    assert len(engine.aborted) == 3


def test_a_full_queue_says_when_to_come_back() -> None:
    async def scene(client: Client, count: int) -> list[Answer]:
        return await asyncio.gather(*(client.request("POST", COMPLETE, BODY) for _ in range(count)))

    def statuses(**settings: Any) -> list[int]:
        engine = FakeEngine()
        engine.pause = 0.01
        client = Client(engine, max_num_seqs=2, **settings)
        answers = asyncio.run(scene(client, 12))
        assert client.server.num_running == 0
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status != 200)
        return sorted(answer.status for answer in answers)

    assert statuses() == [200] * 10 + [429] * 2
    assert statuses(max_num_queued_reqs=0) == [200] * 2 + [429] * 10
    assert statuses(max_concurrent_requests=3) == [200] * 3 + [503] * 9
    many = Client(max_num_seqs=1, max_num_queued_reqs=0).post(COMPLETE, BODY | {"prompt": ["a"] * 50})
    assert many.status == 200 and len(many.json["choices"]) == 50


@pytest.mark.parametrize(
    ("setting", "body", "message"),
    [
        ({"max_prompts": 2}, {"prompt": ["a"] * 3}, "max_prompts=2"),
        ({"max_n": 2}, {"n": 3}, "max_n=2"),
        ({"max_stop_strings": 1}, {"stop": ["a", "b"]}, "max_stop_strings=1"),
        ({"max_stop_length": 3}, {"stop": "abcd"}, "max_stop_length=3"),
        ({"max_body_bytes": 20}, {}, "max_body_bytes=20"),
        ({"max_header_bytes": 30}, {}, "max_header_bytes=30"),
        ({"max_headers": 1}, {}, "max_headers=1"),
    ],
)
def test_each_limit_can_be_set(setting: dict[str, int], body: dict[str, Any], message: str) -> None:
    assert Client().post(COMPLETE, BODY | {"temperature": 1} | body).status == 200
    assert message in Client(**setting).post(COMPLETE, BODY | body).error["message"]


def test_pages_of_other_sites_may_do_what_is_set() -> None:
    def preflight(method: str, header: str, **settings: Any) -> Answer:
        client = Client(allowed_origins=["*"], **settings)
        client.app = with_cors(client.app, client.server.settings)
        headers = {"Origin": "https://a.example", "Access-Control-Request-Method": method}
        asks = client.request("OPTIONS", COMPLETE, headers=headers | {"Access-Control-Request-Headers": header})
        return asyncio.run(asks)

    assert preflight("PUT", "x-one").status == 200
    assert preflight("PUT", "x-one", allowed_methods=["POST"]).status == 400
    assert preflight("POST", "x-one", allowed_headers=["x-two"]).status == 400
    assert "access-control-allow-credentials" not in preflight("POST", "x-one").headers
    assert preflight("POST", "x-one", allow_credentials=True).headers["access-control-allow-credentials"] == "true"
    plain = Client()
    assert with_cors(plain.app, plain.server.settings) is plain.app


def test_memory_stays_flat_over_many_requests() -> None:
    async def many(client: Client, count: int) -> None:
        for number in range(count):
            body = BODY | {"stream": number % 2 == 0, "user": str(number), f"field{number}": 1}
            assert (await client.request("POST", COMPLETE, body)).status == 200
            assert (await client.request("POST", COMPLETE, {"prompt": number})).status == 400
        client.engine.seen.clear()
        client.engine.finished.clear()

    async def scene() -> int:
        client = Client()
        await many(client, 100)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await many(client, 500)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        assert asyncio.run(scene()) < 50_000  # 50 bytes per request
    finally:
        tracemalloc.stop()


def test_a_request_has_the_id_that_it_brings() -> None:
    client = Client()
    answer = client.post(COMPLETE, BODY, headers={"X-Request-Id": "abc"})
    assert answer.headers["x-request-id"] == "abc" and answer.json["id"] == "cmpl-abc"
    answer = client.post(COMPLETE, BODY | {"stream": True, "request_id": "mine"}, headers={"X-Request-Id": "abc"})
    assert answer.headers["x-request-id"] == "mine" and answer.events[0]["id"] == "cmpl-mine"
    for odd in ('a"b', "a b", "x" * 129, ""):
        answer = client.post(COMPLETE, BODY, headers={"X-Request-Id": odd})
        assert answer.status == 200 and answer.json["id"] == f"cmpl-{answer.headers['x-request-id']}"
        assert len(answer.headers["x-request-id"]) == 24
    assert len({client.get("/version").headers["x-request-id"] for _ in range(9)}) == 9


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("HEAD", "/v1/models", None, 200),
        ("OPTIONS", COMPLETE, None, 200),
        ("GET", "/docs", None, 200),
        ("GET", "/metrics", None, 200),
        ("POST", COMPLETE, BODY, 200),
        ("POST", COMPLETE, BODY | {"stream": True}, 200),
        ("POST", "/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}, 200),
        ("POST", "/v1/responses", {"input": "a", "stream": True}, 200),
        ("POST", COMPLETE, {"prompt": 3}, 400),
        ("POST", COMPLETE, b"{", 400),
        ("POST", "/v1/messages", {}, 400),
        ("GET", "/nothing", None, 404),
        ("GET", COMPLETE, None, 405),
    ],
)
def test_every_answer_has_an_id(method: str, path: str, body: Any, status: int) -> None:
    headers = {"X-Request-Id": "its-own"}
    answer = asyncio.run(Client().request(method, path, body, headers=headers))
    assert (answer.status, answer.headers["x-request-id"]) == (status, "its-own")
    stranger = asyncio.run(Client(keys=["secret"]).request(method, path, body, headers=headers))
    assert stranger.headers["x-request-id"] == "its-own"


def test_a_fault_of_ours_is_found_in_the_log_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.error, engine.error_first = KeyError("a secret"), True
    caplog.set_level("ERROR", "vllm")
    for stream in (False, True):
        client = Client(engine, enable_log_requests=True)
        answer = client.post(COMPLETE, BODY | {"stream": stream, "request_id": f"mine-{stream}"})
        assert answer.status == 500 and answer.headers["x-request-id"] == f"mine-{stream}"
        assert caplog.text.count(f"POST {COMPLETE} (request mine-{stream}) failed") == 1


def test_requests_are_logged_when_asked_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("vllm.entrypoints.serve.app.logger.info", lambda form, *args: lines.append(form % args))
    Client().post(COMPLETE, BODY)
    assert lines == []
    Client(enable_log_requests=True).post(COMPLETE, BODY)
    Client(enable_log_requests=True, max_log_len=3).post(COMPLETE, BODY)
    assert "request_id=" in lines[0] and "completion_tokens=" in lines[0] and "prompt='" not in lines[0]
    assert "prompt='The'" in lines[1]
    Client(enable_log_requests=True).post(COMPLETE, BODY | {"temperature": -1})
    assert lines[2].endswith("temperature must be at least 0, got -1.0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": -1}, "port=-1"),
        ({"port": 70000}, "at most 65535"),
        ({"max_n": 129}, "at most 128"),
        ({"max_body_bytes": 0}, "at least 1"),
        ({"log_format": "xml"}, "is not one of"),
        ({"ssl_keyfile": "a"}, "ssl_certfile"),
        ({"api_key": [""]}, "empty key"),
        ({"request_timeout": "x"}, "a number"),
        ({"enable_auto_tool_choice": True}, "not supported"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerArgs(**options)


def test_options_of_the_interface_without_effect_are_taken_and_unknown_ones_are_not() -> None:
    assert ServerArgs(disable_log_requests=True, served_model_name="a", host=None).served_model_name == ["a"]
    with pytest.raises(TypeError, match="Did you mean 'served_model_name'"):
        ServerArgs(served_model_nam="a")
