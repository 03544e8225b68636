"""A server on a socket: clients as people use them, clients that misbehave, signals, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from vllm.entrypoints.serve.listen import bind
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import ConfigError

ROOT = Path(__file__).parents[3]
LOCAL = "127.0.0.1"
HELLO: Any = [{"role": "user", "content": "Hello"}]
TEXT = "one two three four five six seven eight"
STREAM = {"prompt": "a", "stream": True, "max_tokens": 50}


class Running:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://{LOCAL}:{port}"

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="secret", max_retries=0, **options)

    def end(self, number: signal.Signals) -> dict[str, int]:
        """Send a signal; return what the engine counted, if there was one.  The status must be 0, without a traceback."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, err
        assert "Traceback" not in err, err
        return json.loads(out.split("stopped ", 1)[1]) if out else {}

    def wait_ready(self) -> None:
        for _ in range(400):
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.02)
        raise AssertionError("the server did not get ready")


@contextmanager
def server(engine: dict[str, Any] | None = None, ready: bool = True, **settings: Any) -> Iterator[Running]:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        port = probe.getsockname()[1]
    arguments = [json.dumps({"host": LOCAL, "port": port} | settings), json.dumps(engine or {})]
    command = [sys.executable, "-m", "tests.entrypoints.serve.fake_server", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        running = Running(process, port)
        if ready and "uds" not in settings and "ssl_certfile" not in settings:
            running.wait_ready()
        yield running
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with server(
        api_key=["secret"],
        header_timeout=0.4,
        body_timeout=0.4,
        max_body_bytes=100_000,
        allowed_origins=["https://page.example"],
    ) as running:
        yield running


# ── clients as people use them ──────────────────────────────────────────────────────────────────────────────────────


def test_the_openai_client_gets_its_answers(shared: Running) -> None:
    with shared.openai() as client:
        assert [model.id for model in client.models.list()] == ["acme/tiny"]
        assert client.models.retrieve("acme/tiny").id == "acme/tiny"
        completion = client.completions.create(model="acme/tiny", prompt="a", max_tokens=50, logprobs=1)
        assert completion.choices[0].text == TEXT and completion.choices[0].logprobs is not None
        chunks = list(client.completions.create(model="acme/tiny", prompt="a", max_tokens=50, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
        answer = client.chat.completions.create(model="acme/tiny", messages=HELLO, logprobs=True, top_logprobs=2)
        assert answer.choices[0].message.content == TEXT and answer.usage is not None
        stream = client.chat.completions.create(
            model="acme/tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
        assert last.usage == answer.usage
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="other", messages=HELLO)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="acme/tiny", messages=HELLO, temperature=-1)
        assert caught.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{shared.url}/v1", api_key="x") as client:
        client.models.list()


def test_the_asynchronous_client_gets_many_answers_at_once(shared: Running) -> None:
    async def scene() -> None:
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="secret") as client:

            async def one(stream: bool) -> str:
                if not stream:
                    reply = await client.chat.completions.create(model="acme/tiny", messages=HELLO)
                    return reply.choices[0].message.content or ""
                chunks = await client.chat.completions.create(model="acme/tiny", messages=HELLO, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            assert await asyncio.gather(*(one(i % 2 == 0) for i in range(64))) == [TEXT] * 64

    asyncio.run(scene())


def test_a_stream_that_fails_raises_in_the_client() -> None:
    with server({"pause": 0.02}, request_timeout=0.1) as running, running.openai() as client:
        stream = client.completions.create(model="acme/tiny", prompt="a", max_tokens=50, stream=True)
        with pytest.raises(openai.APIError, match="request_timeout"):
            list(stream)


# ── life and death ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_while_the_model_loads_the_server_says_so() -> None:
    with server({"load_seconds": 0.5}, ready=False) as running:
        seen = []
        for _ in range(500):
            with suppress(httpx.TransportError):
                seen.append(httpx.get(f"{running.url}/health").status_code)
            if seen[-1:] == [200]:
                break
            time.sleep(0.01)
        assert seen[0] == 503 and seen[-1] == 200
        assert running.end(signal.SIGTERM) == {"aborted": 0, "finished": 0}
    with server({"load_seconds": 60}, ready=False) as running:
        for _ in range(500):
            try:
                answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "a"})
                break
            except httpx.TransportError:
                time.sleep(0.01)
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert "loading" in answer.json()["error"]["message"]
        running.end(signal.SIGTERM)


def collect(running: Running, body: dict[str, Any], begun: threading.Event, lines: list[str]) -> None:
    with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=20) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            begun.set()


@pytest.mark.parametrize(
    ("number", "last"), [(signal.SIGTERM, '"finish_reason":"stop"'), (signal.SIGINT, '"code":503')]
)
def test_sigterm_lets_streams_finish_and_sigint_tells_them_why_they_end(number: signal.Signals, last: str) -> None:
    with server({"pause": 0.05}) as running:
        begun, lines = [threading.Event() for _ in range(4)], [[] for _ in range(4)]  # type: ignore[var-annotated]
        threads = [
            threading.Thread(target=collect, args=(running, STREAM, *each)) for each in zip(begun, lines, strict=True)
        ]
        for thread in threads:
            thread.start()
        assert all(event.wait(10) for event in begun)
        counts = running.end(number)
        for thread in threads:
            thread.join(10)
        for found in lines:
            events = [line for line in found if line]
            assert events[-1] == "data: [DONE]" and last in events[-2], events
        assert counts == ({"aborted": 0, "finished": 4} if number == signal.SIGTERM else {"aborted": 4, "finished": 0})


def test_a_second_signal_ends_what_the_first_one_let_finish() -> None:
    with server({"pause": 0.2}) as running:
        begun, lines = threading.Event(), []  # type: ignore[var-annotated]
        thread = threading.Thread(target=collect, args=(running, STREAM, begun, lines))
        thread.start()
        assert begun.wait(10)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert running.process.poll() is None
        assert running.end(signal.SIGTERM) == {"aborted": 1, "finished": 0}
        thread.join(10)
        assert "interrupted" in [line for line in lines if line][-2]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"cannot_load": "model.safetensors: the file is cut off"}, "model.safetensors: the file is cut off"),
        ({"template": "{% if %}", "load_seconds": 60}, "the chat template has a syntax error in line 1"),
    ],
)
def test_a_model_that_cannot_be_served_ends_the_server_with_one_line(engine: dict[str, Any], message: str) -> None:
    with server(engine, ready=False) as running:
        _, err = running.process.communicate(timeout=20)
        assert running.process.returncode == 1 and "Traceback" not in err
        assert err.splitlines()[-1].startswith(message)


def test_what_does_not_finish_within_the_shutdown_timeout_is_told_so() -> None:
    with server({"pause": 5.0}, shutdown_timeout=0.2) as running:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{running.url}/v1/completions", json={"prompt": "a"}, timeout=20))

        thread = threading.Thread(target=ask)
        thread.start()
        while httpx.get(f"{running.url}/load").json()["server_load"] == 0:
            time.sleep(0.01)
        assert running.end(signal.SIGTERM) == {"aborted": 1, "finished": 0}
        thread.join(10)
        assert answers[0].status_code == 503 and "interrupted" in answers[0].json()["error"]["message"]


def test_of_many_streams_those_that_are_cut_off_are_aborted_and_the_others_are_whole() -> None:
    async def one(running: Running, cut: bool) -> str | None:
        reader, writer = await asyncio.open_connection(LOCAL, running.port)
        writer.write(request(b"POST /v1/completions HTTP/1.1", json.dumps(STREAM).encode()))
        try:
            if cut:
                await reader.readuntil(b"\n\n")
                writer.transport.abort()
                return None
            return (await reader.read()).decode()
        finally:
            writer.close()

    async def scene(running: Running) -> list[str | None]:
        return await asyncio.gather(*(one(running, number % 4 == 0) for number in range(256)))

    with server({"pause": 0.05}) as running:
        answers = [answer for answer in asyncio.run(scene(running)) if answer is not None]
        texts = {
            "".join(
                json.loads(line[6:])["choices"][0]["text"] for line in answer.splitlines() if line.startswith("data: {")
            )
            for answer in answers
        }
        assert len(answers) == 192 and texts == {TEXT}
        assert all("data: [DONE]" in answer for answer in answers)
        assert running.end(signal.SIGTERM) == {"aborted": 64, "finished": 192}


def test_a_client_that_leaves_a_stream_aborts_it() -> None:
    with server({"pause": 0.05}) as running:
        with httpx.stream("POST", f"{running.url}/v1/completions", json=STREAM) as answer:
            next(answer.iter_lines())
        for _ in range(200):
            if httpx.get(f"{running.url}/load").json()["server_load"] == 0:
                break
            time.sleep(0.01)
        assert running.end(signal.SIGTERM) == {"aborted": 1, "finished": 0}


# ── clients that misbehave ──────────────────────────────────────────────────────────────────────────────────────────


def raw(running: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes, and return all that comes back until the server hangs up; it must do so within seconds."""
    with socket.create_connection((LOCAL, running.port), timeout=3) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while data := connection.recv(1 << 16):
                received += data
        except ConnectionError:
            pass
        return received


def request(head: bytes, body: bytes = b"") -> bytes:
    return (
        head + b"\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([b"\x16\x03\x01 what\r\n\r\n"], 400, "not HTTP/1.1"),
        ([b"GET /health HTTP/1.1\r\nx: ", b"y" * 200_000], 431, "max_header_bytes"),
        ([b"GET /" + b"y" * 200_000], 431, "max_header_bytes"),
        ([b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 20_000], 431, "max_header"),
        ([b"GET /health HTTP/1.1\r\nHost: "], 400, "header_timeout=0.4"),
        ([request(b"POST /v1/completions HTTP/1.1", b"{}")[:-1]], 400, "body_timeout=0.4"),
        ([request(b"POST /v1/completions HTTP/1.1", b"x" * 200_000)], 413, "max_body_bytes=100,000"),
        ([request(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked", b"0\r\n\r\nGET /")], 400, "HTTP/1.1"),
    ],
)
def test_what_is_not_a_request_is_answered_once_and_hung_up_on(
    shared: Running, parts: list[bytes], status: int, message: str
) -> None:
    answer = raw(shared, *parts)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert answer.count(b"HTTP/1.1") == 1 + message.count("HTTP/1.1"), answer
    error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert message in error["message"] and error["code"] == status
    assert httpx.get(f"{shared.url}/health").status_code == 200


def test_an_idle_connection_is_closed_in_time() -> None:
    with server(keep_alive_timeout=0.2) as running:
        assert raw(running, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_a_key_may_come_from_the_environment_and_lines_may_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hidden")
    with server(api_key=["secret"], log_format="json", enable_log_requests=True) as running:
        for key, status in (("hidden", 200), ("secret", 200), ("other", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == status
        running.process.terminate()
        _, err = running.process.communicate(timeout=20)
        lines = [json.loads(line) for line in err.splitlines()]
        assert all(set(line) == {"time", "level", "logger", "message"} for line in lines)
        assert any(line["message"].startswith("GET /v1/models") for line in lines)
        assert "hidden" not in err and "secret" not in err


def test_a_connection_that_says_nothing_is_closed(shared: Running) -> None:
    assert raw(shared) == b""


def test_a_body_may_come_in_chunks_and_requests_one_after_the_other(shared: Running) -> None:
    head = request(b"POST /tokenize HTTP/1.1").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    answer = raw(shared, head, b'd\r\n{"prompt": "a\r\n', b'3\r\nb"}\r\n0\r\n\r\n', pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"count":' in answer
    two = b"GET /version HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n\r\n" * 2
    assert raw(shared, two + request(b"HEAD /version HTTP/1.1")).count(b"HTTP/1.1 200 OK") == 3


def test_a_page_of_another_site_may_call_only_if_it_is_allowed(shared: Running) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    url = f"{shared.url}/v1/completions"
    allowed = httpx.options(url, headers=ask | {"Origin": "https://page.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert httpx.options(url, headers=ask | {"Origin": "https://evil.example"}).status_code == 400
    answer = httpx.get(f"{shared.url}/health", headers={"Origin": "https://page.example"})
    assert answer.headers["access-control-allow-origin"] == "https://page.example"


def test_a_browser_may_bring_the_key_as_a_password(shared: Running) -> None:
    page = httpx.get(f"{shared.url}/docs", headers={"Accept": "text/html,*/*"})
    assert page.status_code == 401 and page.headers["www-authenticate"].startswith("Basic ")
    assert httpx.get(f"{shared.url}/docs").headers["www-authenticate"] == "Bearer"
    page = httpx.get(f"{shared.url}/docs", auth=("anybody", "secret"))
    assert page.status_code == 200 and "<h1>Endpoints</h1>" in page.text
    assert httpx.get(f"{shared.url}/docs", auth=("secret", "x")).status_code == 401


# ── sockets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_port_that_is_taken_is_named_with_its_taker_before_anything_is_loaded() -> None:
    with bind(ServerArgs(host=LOCAL, port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is taken by pid \d+ \(.+\); choose another with --port"):
            bind(ServerArgs(host=LOCAL, port=port))
        with server(ready=False, port=port) as running:
            _, err = running.process.communicate(timeout=20)
            assert running.process.returncode == 1 and len(err.splitlines()) == 1
    with pytest.raises(ConfigError, match="no address"):
        bind(ServerArgs(host="no such host"))


def test_a_unix_socket_is_made_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with server(uds=str(path)) as running:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://server") as client:
            for _ in range(300):
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.02)
            assert client.post("/tokenize", json={"prompt": "a"}).json()["count"] >= 1
        with pytest.raises(ConfigError, match="another server"):
            bind(ServerArgs(uds=str(path)))
        running.end(signal.SIGTERM)
    assert not path.exists()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    bind(ServerArgs(uds=str(path))).close()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no socket"):
        bind(ServerArgs(uds=str(tmp_path / "file")))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_is_spoken_with_a_certificate(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost", "-days", "2"]
        + ["-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    own = ssl.create_default_context(cafile=str(certificate))
    own.load_cert_chain(certificate, key)
    stranger = ssl.create_default_context(cafile=str(certificate))
    locked = tmp_path / "locked.pem"
    lock = ["openssl", "pkcs8", "-topk8", "-in", str(key), "-out", str(locked), "-passout", "pass:open"]
    subprocess.run(lock, check=True, capture_output=True)
    tls = {"ssl_keyfile": str(locked), "ssl_keyfile_password": "open", "ssl_certfile": str(certificate)}
    with server(**tls, ssl_ca_certs=str(certificate), ssl_cert_reqs=2, ssl_ciphers="ECDHE+AESGCM") as running:
        url = f"https://{LOCAL}:{running.port}/version"
        for _ in range(300):
            try:
                assert httpx.get(url, verify=own).status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.02)
        else:
            raise AssertionError("nobody spoke TLS")
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=stranger)
        own.maximum_version = ssl.TLSVersion.TLSv1_2
        own.set_ciphers("ECDHE+CHACHA20")
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, verify=own)
    with server(ready=False, ssl_certfile=str(tmp_path / "missing.pem")) as running:
        _, err = running.process.communicate(timeout=20)
        assert running.process.returncode == 1 and "missing.pem" in err and len(err.splitlines()) == 1
