"""A route is data: a method, a path, a handler, and what the documentation says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from vllm.entrypoints.serve.errors import ErrorReply, HttpError
from vllm.entrypoints.serve.http import EventStream, Refused, Reply
from vllm.entrypoints.serve.protocol import refusal
from vllm.errors import did_you_mean

if TYPE_CHECKING:
    from vllm.entrypoints.serve.context import Call

Answer = Reply | EventStream
Handler = Callable[["Call"], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint.  A path may have parameters: `{name}` is a segment, `{name...}` all that is left, slashes too."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[msgspec.Struct] | dict[str, type[msgspec.Struct]] | None = None
    """What a request's body is; where there are several kinds, by the field that tells them apart."""
    form: Callable[[bytes, bytes], msgspec.Struct] | None = None
    """Where a body is a form and no JSON: what makes the struct, of the bytes and their content type"""
    reply: Any = None
    """The type of what a successful answer holds, or a tuple of types; None: no JSON, or none that is described."""
    needs_model: bool = True
    """Whether it is answered with 503 until the model has been loaded."""
    purpose: Literal["generate", "pool"] | None = None
    """What the model must be loaded for; None: that doesn't matter, or the handler sees to it."""
    computes: bool = False
    """Whether it takes one of the places that the queue has."""
    is_open: bool = False
    """Whether it is answered without an API key."""
    error: Callable[[HttpError], bytes] = HttpError.body
    """How this API writes an error."""
    error_reply: type[msgspec.Struct] = ErrorReply
    """The type of that."""
    refused: Refused = refusal
    """What this API says of a body's other fields."""

    @property
    def bodies(self) -> list[type[msgspec.Struct]]:
        """The kinds of body that a request may have."""
        if self.body is None:
            return []
        return list(dict.fromkeys(self.body.values())) if isinstance(self.body, dict) else [self.body]

    @property
    def replies(self) -> list[Any]:
        """The kinds of answer that a request may get."""
        if self.reply is None:
            return []
        return list(self.reply) if isinstance(self.reply, tuple) else [self.reply]


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = list(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in self.routes:
            if "{" in route.path:
                methods = self._patterns.setdefault(tuple(route.path.split("/")), {})
            else:
                methods = self._exact.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.path}")
            methods[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Return a route and its path's parameters.  Raises HttpError: 404, 405."""
        parameters: dict[str, str] = {}
        methods = self._exact.get(path)
        if methods is None:
            methods, parameters = self._match(path)
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if route is None:
            allowed = self.allowed(methods)
            raise HttpError(
                405,
                f"{path} takes {allowed}, not {method[:20]}",
                headers=((b"allow", allowed.encode()),),
            )
        return route, parameters

    def error(self, path: str) -> Callable[[HttpError], bytes]:
        """Return how the API that a path belongs to writes an error, also one about who asks or with what method."""
        return next((route.error for route in self._exact.get(path, {}).values()), HttpError.body)

    def methods(self, path: str) -> dict[str, Route]:
        """Return the routes of a path by method.  Raises HttpError: 404."""
        return self._exact.get(path) or self._match(path)[0]

    @staticmethod
    def allowed(methods: dict[str, Route]) -> str:
        """Return the methods as the header Allow lists them."""
        names = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        return ", ".join(sorted(names))

    def _match(self, path: str) -> tuple[dict[str, Route], dict[str, str]]:
        segments = path.split("/")
        for pattern, methods in self._patterns.items():
            parameters = _fit(pattern, segments)
            if parameters is not None:
                return methods, parameters
        known = [*self._exact, *("/".join(pattern) for pattern in self._patterns)]
        shown = path if len(path) <= 100 else path[:97] + "..."
        raise HttpError(404, f"there is no {shown!r} here.{did_you_mean(shown, known)}")


def _fit(pattern: tuple[str, ...], segments: list[str]) -> dict[str, str] | None:
    """Return the parameters with which a pattern becomes the path; None if there are none."""
    parameters: dict[str, str] = {}
    for position, part in enumerate(pattern):
        if part.endswith("...}"):
            rest = "/".join(segments[position:])
            return {**parameters, part[1:-4]: rest} if rest else None
        if position >= len(segments):
            return None
        if part.startswith("{"):
            if not segments[position]:
                return None
            parameters[part[1:-1]] = segments[position]
        elif part != segments[position]:
            return None
    return parameters if len(pattern) == len(segments) else None
