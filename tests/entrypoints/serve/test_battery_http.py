"""The battery, HTTP: what comes over a socket and is no good request, and clients that come and go as they like."""

from __future__ import annotations

import asyncio
import json
import select
import signal
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.entrypoints.serve.battery import refusal
from tests.entrypoints.serve.fakes import Answer, Client
from tests.entrypoints.serve.test_server import LOCAL, STREAM, Running, raw, request, server

BODY = json.dumps({"prompt": "a", "max_tokens": 3}).encode()
POST = b"POST /v1/completions HTTP/1.1"
KEY = b"Authorization: Bearer secret\r\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with server(api_key=["secret"], header_timeout=0.4, body_timeout=0.4, send_timeout=0.4) as running:
        yield running


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([POST, b"Host: x", KEY.strip(), b"Connection: close", *lines]) + b"\r\n\r\n"


JSON = b"Content-Type: application/json"
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (head(b"Content-Length: 2") + b"{}", 400, "application/json, got none"),
        (head(b"Content-Type: text/html", b"Content-Length: 2") + b"{}", 400, "got text/html"),
        (head(JSON, b"Content-Length: 0"), 400, "empty"),
        (head(JSON), 400, "empty"),
        (head(JSON, b"Content-Length: 1") + b"{", 400, "not JSON"),
        (head(JSON, b"Content-Length: 99") + b"{", 400, "body_timeout=0.4"),
        (head(JSON, CHUNKED) + b"5\r\n{\"pro", 400, "body_timeout=0.4"),
        # What two servers may read in two ways is read in none.
        (head(JSON, b"Content-Length: 2", b"Content-Length: 3") + b"{}x", 400, "HTTP/1.1"),
        (head(JSON, b"Content-Length: 2", CHUNKED) + b"0\r\n\r\n", 400, "HTTP/1.1"),
        (head(JSON, CHUNKED, b"Content-Length: 2") + b"0\r\n\r\n", 400, "HTTP/1.1"),
        (head(JSON, b"Content-Length: +2") + b"{}", 400, "HTTP/1.1"),
        (head(JSON, b"Content-Length: -2") + b"{}", 400, "HTTP/1.1"),
        (head(JSON, b"Content-Length: 0x2") + b"{}", 400, "HTTP/1.1"),
        (head(JSON, b"Content-Length: 2, 2") + b"{}", 400, "HTTP/1.1"),
        (head(JSON, b"Content-Length: 99999999999999999999999") + b"{}", 400, "HTTP/1.1"),
        (head(JSON, b"Transfer-Encoding: xchunked") + b"0\r\n\r\n", 400, "HTTP/1.1"),
        (head(JSON, b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n", 400, "HTTP/1.1"),
        (head(JSON, b"Transfer-Encoding : chunked") + b"0\r\n\r\n", 400, "HTTP/1.1"),
        (head(b"Folded: a", b" Transfer-Encoding: chunked", JSON), 400, "HTTP/1.1"),
        (head(JSON, b"X: a\x00b"), 400, "HTTP/1.1"),
        (head(JSON, b"X: a\nY: b"), 400, "HTTP/1.1"),
        (head(JSON, b"no colon"), 400, "HTTP/1.1"),
        (head(JSON, CHUNKED) + b"zz\r\n{}\r\n", 400, "HTTP/1.1"),
        (head(JSON, CHUNKED) + b"-1\r\n{}\r\n", 400, "HTTP/1.1"),
        (head(JSON, CHUNKED) + b"ffffffffffffffffff\r\n{}\r\n", 400, "HTTP/1.1"),
        # What speaks something else.
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP/1.1"),
            (b"GET /health HTTP/9.9\r\n\r\n", 400, "HTTP/1.1"),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HTTP/1.1"),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HTTP/1.1"),
        (b"\x00" * 100, 400, "HTTP/1.1"),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HTTP/1.1"),
        (b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HTTP/1.1"),
        (b"TRACE /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "takes GET"),
        # What is too large.
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n\r\n", 431, "max_header_bytes=65,536"),
        (b"GET /?" + b"y" * 100_000 + b" HTTP/1.1\r\n\r\n", 431, "max_header_bytes=65,536"),
        (b"GET /health HTTP/1.1\r\n" + b"x" * 100_000 + b": y\r\nConnection: close\r\n\r\n", 431, "max_header_bytes=65,536"),
        (b"GET /health HTTP/1.1\r\nConnection: close\r\n" + b"a: b\r\n" * 100 + b"\r\n", 431, "max_headers=100"),
        (head(JSON, b"Content-Length: 99999999999") + b"{}", 413, "max_body_bytes=33,554,432"),
        (head(JSON, CHUNKED) + b"3000000\r\n" + b" " * 0x3000000, 413, "max_body_bytes=33,554,432"),
    ],
    ids=lambda value: repr(value)[-60:],
)  # fmt: skip
def test_what_is_no_good_request_gets_one_answer_in_our_shape(
    shared: Running, sent: bytes, status: int, message: str
) -> None:
    answer = raw(shared, sent)
    first, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: " in first
    assert first.startswith(b"HTTP/1.1 %d " % status) and first.lower().count(b"\r\nconnection: close") == 1, answer
    assert body.count(b'"error"') == 1 and b"HTTP/1.1 " not in body.replace(b'HTTP/1.1"', b""), answer
    assert message in refusal(Answer(status, {}, body))["message"], answer
    assert httpx.get(f"{shared.url}/load", headers={"x-api-key": "secret"}).json() == {"server_load": 0}


def test_a_body_that_drips_is_given_up(shared: Running) -> None:
    drops = [b"1\r\n%c\r\n" % byte for byte in BODY]
    answer = raw(shared, head(JSON, CHUNKED), *drops[:16], pause=0.05)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"body_timeout=0.4" in answer
    quick = raw(shared, head(JSON, CHUNKED), *drops, b"0\r\n\r\n", pause=0.001)
    assert quick.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "starts"),
    [
        (b"GET /health\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET /version HTTP/1.0\r\n" + KEY + b"\r\n", b"HTTP/1.1 200 "),
        (b"GET http://other/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + KEY + b"\r\n", b"HTTP/1.1 200 "),
        (b"\r\n\r\nGET /version HTTP/1.1\r\nConnection: close\r\n" + KEY + b"\r\n", b"HTTP/1.1 200 "),
        (b"OPTIONS * HTTP/1.1\r\nConnection: close\r\n" + KEY + b"\r\n", b"HTTP/1.1 404 "),
        (
            b"GET /version HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n" + KEY + b"\r\n",
            b"HTTP/1.1 200 ",
        ),
        (head(JSON, b"Expect: 100-continue", b"Content-Length: %d" % len(BODY)) + BODY, b"HTTP/1.1 100 Continue\r\n"),
    ],
)
def test_what_is_unusual_and_allowed_is_answered(shared: Running, sent: bytes, starts: bytes) -> None:
    assert raw(shared, sent).startswith(starts)


@pytest.mark.parametrize(
    "path",
    ["/v1/../health", "/%2e%2e/health", "//health", "/health/", "/health%00", "/HEALTH", "/health;x", "/./health"]
    + ["/health%2f..%2fv1%2fmodels", "/%20/health", "/v1/%6dodels", "/\u0130/health".encode().decode("latin-1")],
)
def test_no_spelling_of_an_open_path_opens_another(path: str) -> None:
    client = Client(keys=["secret"])
    for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"):
        answer = asyncio.run(client.request(method, path))
        assert answer.status == 401, (method, path)


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/", "/v1/chat", "/v1/chat/completions/", "/%zz", "/v1/models/"]
)
def test_every_path_and_method_is_answered_in_our_shape(path: str) -> None:
    client = Client()
    for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
        answer = asyncio.run(client.request(method, path))
        assert answer.status == 404 and refusal(answer)["type"] == "NotFoundError"
    for route in client.server.routes:
        answer = asyncio.run(client.request("DELETE", route.path.replace("{", "").replace("}", "").replace("...", "")))
        assert answer.status == 405 and route.method in answer.headers["allow"]


# ── clients that come and go ────────────────────────────────────────────────────────────────────────────────────────


def is_hung_up_on(connection: socket.socket, seconds: float) -> bool:
    """Whether the other end resets a connection, without reading anything from it."""
    poll = select.poll()
    poll.register(connection, select.POLLERR | select.POLLHUP)
    return bool(poll.poll(1000 * seconds))


def test_a_client_that_never_reads_is_hung_up_on_and_holds_nobody_up(shared: Running) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((LOCAL, shared.port))
    with connection:
        connection.sendall((b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n") * 200)
        assert httpx.get(f"{shared.url}/health").status_code == 200
        assert is_hung_up_on(connection, 5.0)
    assert httpx.get(f"{shared.url}/health").status_code == 200


def test_a_stream_that_nobody_reads_is_aborted() -> None:
    with server({"script": "word " * 400, "pause": 0.001}, send_timeout=0.2) as running:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((LOCAL, running.port))
            body = {"prompt": "a", "stream": True, "n": 128, "max_tokens": 400, "logprobs": 5}
            connection.sendall(request(POST, json.dumps(body).encode()))
            assert is_hung_up_on(connection, 10.0)
            assert httpx.get(f"{running.url}/load").json() == {"server_load": 0}
        assert running.end(signal.SIGTERM)["aborted"] == 1


@pytest.fixture(scope="module")
def slow() -> Iterator[Running]:
    """A server whose answers take a while; it must end without a traceback."""
    with server({"pause": 0.02}) as running:
        yield running
        assert running.end(signal.SIGTERM)["aborted"] > 0


@pytest.mark.parametrize(
    ("sent", "awaited"),
    [
        (0, b""),
        (10, b""),
        (-30, b""),
        (-1, b""),
        (None, b""),
        (None, b"HTTP/1.1 200"),
        (None, b"data: "),
        (None, b"three"),
    ],
)
def test_a_client_may_leave_at_any_stage(slow: Running, sent: int | None, awaited: bytes) -> None:
    """`sent`: the bytes of its request that a client sends, `awaited`: what it has read when it leaves."""
    whole = request(POST, json.dumps(STREAM).encode())

    async def leave() -> None:
        reader, writer = await asyncio.open_connection(LOCAL, slow.port)
        writer.write(whole if sent is None else whole[:sent])
        await writer.drain()
        if awaited:
            await asyncio.wait_for(reader.readuntil(awaited), 5)
        writer.transport.abort()

    async def scene() -> None:
        await asyncio.gather(*(leave() for _ in range(20)))

    asyncio.run(scene())
    for _ in range(300):
        if httpx.get(f"{slow.url}/load").json() == {"server_load": 0}:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("a request outlives its client")
    answer = httpx.post(f"{slow.url}/v1/completions", json={**STREAM, "stream": False}, timeout=20)
    assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "stop"
