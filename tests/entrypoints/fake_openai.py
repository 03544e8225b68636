"""A server that speaks OpenAI's endpoints as far as clients are tested: scripted, in a thread, over real sockets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeOpenAI(ThreadingHTTPServer):
    """Answers every prompt with `words`; what it was asked is in `bodies`.

    `refuse` may return a status, a message and headers for a request instead.  `broken` ends streams in the middle.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, words: list[str] | None = None, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.words = ["Hello", " there", "!"] if words is None else words
        self.key = key
        self.root: str | None = None
        self.refuse: Callable[[dict[str, Any]], tuple[int, str, dict[str, str]] | None] = lambda body: None
        self.broken = False
        self.delay = 0.0
        self.chunked = True
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self.num_at_once = self.num_connections = 0
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> FakeOpenAI:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeOpenAI

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.num_connections += 1

    def do_GET(self) -> None:
        if self.is_refused():
            return
        cards = [{"id": name, "root": self.server.root, "max_model_len": 2048} for name in ("first", "second")]
        self.answer(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.is_refused():
            return
        server = self.server
        with server.lock:
            server.bodies.append(body | {"path": self.path})
            server.num_at_once += 1
            server.most_at_once = max(server.most_at_once, server.num_at_once)
        try:
            refusal = server.refuse(body)
            if refusal is not None:
                status, message, headers = refusal
                self.answer(status, _error(status, message), headers)
            elif body.get("stream"):
                self.stream(body)
            else:
                self.answer(200, self.whole(body))
        finally:
            with server.lock:
                server.num_at_once -= 1

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        text, count = "".join(self.server.words), len(self.server.words)
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        return {"id": "x", "model": body["model"], "choices": [choice], "usage": usage}

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()
        if self.is_chat:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for word in self.server.words:
            time.sleep(self.server.delay)
            choice = {"index": 0, "delta": {"content": word}} if self.is_chat else {"index": 0, "text": word}
            self.event({"choices": [choice]})
            if self.server.broken:
                self.close_connection = True
                return
        if body.get("stream_options", {}).get("include_usage"):
            self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(self.server.words)}})
        self.piece(b"data: [DONE]\n\n")
        if self.server.chunked:
            self.wfile.write(b"0\r\n\r\n")

    @property
    def is_chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    def is_refused(self) -> bool:
        if self.server.key is None or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return False
        self.answer(401, _error(401, "a key is needed"))
        return True

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def event(self, body: Any) -> None:
        self.piece(b"data: " + json.dumps(body).encode() + b"\n\n")

    def piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if self.server.chunked else data)
        self.wfile.flush()


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Error", "param": None, "code": status}}
