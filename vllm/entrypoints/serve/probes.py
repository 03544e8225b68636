"""What those who watch a server ask: is it well, which version is it, how busy."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import RETRY_AFTER, HttpError
from vllm.entrypoints.serve.http import Reply, json_reply
from vllm.entrypoints.serve.route import Answer, Route
from vllm.entrypoints.serve.served import ServedModel
from vllm.version import __version__


async def health(call: Call) -> Answer:
    """Answer 200 while requests to every model can be served, else 503 with the reasons.

    Nobody needs a key for it, so it names no model.
    """
    try:
        models = call.models()
    except HttpError:
        raise HttpError(404, "there is no such model; /v1/models lists those there are", "model") from None
    return _well(dict.fromkeys(reason for _, reason in _wrong(models)))


async def ping(call: Call) -> Answer:
    """Answer as /health does, and say which models the reasons are about."""
    models = call.models()
    return _well(reason if len(models) == 1 else f"{name}: {reason}" for name, reason in _wrong(models))


def _wrong(models: Iterable[ServedModel]) -> list[tuple[str, str]]:
    """Return the name of each model that is not well, and why."""
    return [(model.names[0], reason) for model in models if (reason := model.health()) is not None]


def _well(reasons: Iterable[str]) -> Answer:
    """Return the answer where nothing is wrong.  Raises HttpError: 503 where there are `reasons`."""
    if why := "; ".join(reasons):
        raise HttpError(503, why, retry_after=RETRY_AFTER)
    return Reply(b"", content_type=b"text/plain; charset=utf-8")


async def version(call: Call) -> Answer:
    """Answer with the version."""
    return json_reply({"version": __version__})


async def load(call: Call) -> Answer:
    """Answer with the number of requests that are worked on."""
    return json_reply({"server_load": sum(model.num_running for model in call.models())})


_PING = "The same as /health, with the names of the models that are not well."
ROUTES = [
    Route(
        "GET",
        "/health",
        health,
        "Whether requests to all models, or to the one of ?model=NAME, can be served.",
        needs_model=False,
        is_open=True,
    ),
    Route("GET", "/ping", ping, _PING, needs_model=False),
    Route("POST", "/ping", ping, _PING, needs_model=False),
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
