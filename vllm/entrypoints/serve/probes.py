"""What those who watch a server ask: is it well, which version is it, how busy."""

from __future__ import annotations

from vllm.entrypoints.serve.context import RETRY_AFTER, Call
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.http import Reply, json_reply
from vllm.entrypoints.serve.route import Answer, Route
from vllm.version import __version__


async def health(call: Call) -> Answer:
    """Answer 200 while requests can be served, else 503 with the reason."""
    engine = call.server.engine
    wrong = "loading" if engine is None else engine.health()
    if wrong is not None:
        raise HttpError(503, wrong, retry_after=RETRY_AFTER)
    return Reply(b"", content_type=b"text/plain; charset=utf-8")


async def version(call: Call) -> Answer:
    """Answer with the version."""
    return json_reply({"version": __version__})


async def load(call: Call) -> Answer:
    """Answer with the number of requests that are worked on."""
    return json_reply({"server_load": call.server.num_running})


ROUTES = [
    Route("GET", "/health", health, "Whether requests can be served.", needs_engine=False, is_open=True),
    Route("GET", "/ping", health, "The same as /health.", needs_engine=False),
    Route("POST", "/ping", health, "The same as /health.", needs_engine=False),
    Route("GET", "/version", version, "The server's version.", reply=dict[str, str], needs_engine=False),
    Route("GET", "/load", load, "How many requests are worked on.", reply=dict[str, int], needs_engine=False),
]
