"""What those who watch a server ask: is it well, which version is it, how busy."""

from __future__ import annotations

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import RETRY_AFTER, HttpError
from vllm.entrypoints.serve.http import Reply, json_reply
from vllm.entrypoints.serve.route import Answer, Route
from vllm.version import __version__


async def health(call: Call) -> Answer:
    """Answer 200 while requests to every model can be served, else 503 with the reasons."""
    models = call.models()
    wrong = [(model.names[0], reason) for model in models if (reason := model.health()) is not None]
    if wrong:
        shown = [reason if len(models) == 1 else f"{name}: {reason}" for name, reason in wrong]
        raise HttpError(503, "; ".join(shown), retry_after=RETRY_AFTER)
    return Reply(b"", content_type=b"text/plain; charset=utf-8")


async def version(call: Call) -> Answer:
    """Answer with the version."""
    return json_reply({"version": __version__})


async def load(call: Call) -> Answer:
    """Answer with the number of requests that are worked on."""
    return json_reply({"server_load": sum(model.num_running for model in call.models())})


ROUTES = [
    Route(
        "GET",
        "/health",
        health,
        "Whether requests to all models, or to the one of ?model=NAME, can be served.",
        needs_model=False,
        is_open=True,
    ),
    Route("GET", "/ping", health, "The same as /health.", needs_model=False),
    Route("POST", "/ping", health, "The same as /health.", needs_model=False),
    Route("GET", "/version", version, "The server's version.", reply=dict[str, str], needs_model=False),
    Route(
        "GET",
        "/load",
        load,
        "How many requests are worked on, of all models or of the one of ?model=NAME.",
        reply=dict[str, int],
        needs_model=False,
    ),
]
