"""GET /openapi.json, made from the routes and their types, and the pages /docs and /."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import STATUSES
from vllm.entrypoints.serve.http import EVENTS, HTML, Reply, json_reply
from vllm.entrypoints.serve.route import Answer, Route
from vllm.version import __version__

_FOLDER = Path(__file__).parent
CHAT_PAGE = _FOLDER / "ui" / "index.html"
DOCS_PAGE = _FOLDER / "docs.html"


async def openapi(call: Call) -> Answer:
    """Return the description of every endpoint."""
    return json_reply(describe(call.server.routes))


async def docs(call: Call) -> Answer:
    """Return a page that shows the description."""
    return Reply(DOCS_PAGE.read_bytes(), content_type=HTML)


async def chat_page(call: Call) -> Answer:
    """Return a page to chat with the model."""
    return Reply(CHAT_PAGE.read_bytes(), content_type=HTML)


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI document of routes."""
    types = [kind for route in routes for kind in [*route.bodies, *route.replies, route.error_reply]]
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = iter(references)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        bodies = [next(schemas) for _ in route.bodies]
        replies = [next(schemas) for _ in route.replies]
        path = route.path.replace("...}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, bodies, replies, next(schemas))
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllm", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, bodies: list[Any], replies: list[Any], error: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _any_of(replies)}} if replies else {}
    if route.computes and route.purpose != "pool":
        content[EVENTS.decode().split(";", 1)[0]] = {"schema": {"type": "string"}}
    failed = {"description": "what is wrong", "content": {"application/json": {"schema": error}}}
    responses: dict[str, Any] = {str(status): failed for status in STATUSES}
    responses["200"] = {"description": "done", "content": content} if content else {"description": "done"}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub('[^a-z0-9]+', '_', route.path)}",
        "responses": responses,
        "security": [] if route.is_open else [{"key": []}],
    }
    names = re.findall(r"\{(\w+)", route.path)
    if names:
        operation["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]+$"},
            }
            for name in names
        ]
    if bodies:
        kind = "multipart/form-data" if route.form is not None else "application/json"
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": _any_of(bodies)}}}
    return operation


def _any_of(schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


ROUTES = [
    Route("GET", "/openapi.json", openapi, "This description.", reply=dict[str, Any], needs_model=False),
    Route("GET", "/docs", docs, "A page that shows it.", needs_model=False),
]
CHAT_ROUTES = [Route("GET", "/", chat_page, "A page to chat with the model.", needs_model=False)]
