"""Spans reach a collector, with what is known of their requests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.entrypoints.serve.fakes import Client, FakeEngine
from vllm.entrypoints.serve.tracing import Tracing
from vllm.errors import ConfigError, EngineDeadError

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"prompt": "The", "max_tokens": 3}


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An address that takes traces, and the bodies that came."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", bodies
        server.shutdown()


def spans(bodies: list[bytes]) -> list[Any]:
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    found = []
    for body in bodies:
        message = trace_service.ExportTraceServiceRequest()
        message.ParseFromString(_unpacked(body))
        found += [span for one in message.resource_spans for scope in one.scope_spans for span in scope.spans]
    return found


def _unpacked(body: bytes) -> bytes:
    import gzip

    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_is_a_span_of_its_callers_trace() -> None:
    with collector() as (url, bodies):
        client = Client()
        client.server.tracing = Tracing(url, "acme/tiny")
        client.post("/v1/completions", BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True})
        client.get("/version")
        client.server.close()
    first, second = spans(bodies)
    assert (first.name, first.trace_id.hex(), first.parent_span_id.hex()) == ("POST /v1/completions", TRACE, PARENT)
    known = attributes(first)
    assert known["gen_ai.usage.completion_tokens"] == 3 and known["gen_ai.usage.prompt_tokens"] > 0
    assert known["gen_ai.request.model"] == "acme/tiny" and known["gen_ai.request.max_tokens"] == 3
    assert 0 < first.end_time_unix_nano - first.start_time_unix_nano < 10e9
    assert second.name == "POST /v1/chat/completions" and second.trace_id.hex() != TRACE


def test_a_request_that_fails_says_why() -> None:
    engine = FakeEngine()
    engine.error, engine.error_first = EngineDeadError("it was killed"), True
    with collector() as (url, bodies):
        client = Client(engine)
        client.server.tracing = Tracing(url, "acme/tiny")
        assert client.post("/v1/completions", BODY).status == 500
        client.server.close()
    (span,) = spans(bodies)
    assert span.status.code == 2 and span.status.message == "it was killed"


def test_without_the_extra_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"vllm\[otel\]"):
        Tracing("http://127.0.0.1:1/v1/traces", "x")
