"""A small client of OpenAI's endpoints, for the commands that take --url: blocking, one connection per call."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from vllm.entrypoints.sse import DONE, EventReader
from vllm.errors import ConfigError, VllmError
from vllm.version import __version__

_PIECE = 65536


class ServerError(VllmError):
    """A server that cannot be reached, or that answered with an error.  `status` is 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0, body: Any = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after
        """Seconds after which the server wants to be asked again."""


class Client:
    """Calls one server.  Every method raises ServerError, with the server's own message where there is one."""

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        """`url` is the server's address with or without /v1; `timeout` is seconds without a byte."""
        self.url = base_url(url)
        self._parts = urlsplit(self.url)
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json", "User-Agent": f"vllm/{__version__}"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[dict[str, Any]]:
        """Return the cards of the models that are served."""
        cards = self.get("/v1/models")
        if not isinstance(cards, dict) or not cards.get("data"):
            raise ServerError(f"{self.url}/v1/models names no model")
        return cards["data"]

    def get(self, path: str) -> Any:
        """Return the decoded JSON that a path answers with."""
        return self._whole("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """Send JSON; return the decoded answer."""
        return self._whole("POST", path, body)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send JSON; give the decoded data of each event as it comes.  Closing the iterator closes the connection."""
        connection = self._connect()
        try:
            answer = self._ask(connection, "POST", path, body)
            reader = EventReader()
            while piece := self._read(answer):
                for data in reader.feed(piece):
                    if data == DONE:
                        return
                    yield self._event(data)
            raise ServerError(f"{self.url}{path}: the connection ended in the middle of an answer")
        finally:
            connection.close()

    def _whole(self, method: str, path: str, body: Any) -> Any:
        connection = self._connect()
        try:
            answer = self._ask(connection, method, path, body)
            return self._json(answer.read(), path)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._parts.path + path, content, self._headers)
            answer = connection.getresponse()
            if answer.status == 200:
                return answer
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        raise _refusal(f"{self.url}{path}", answer, text)

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.read1(_PIECE)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _event(self, data: bytes) -> dict[str, Any]:
        event = self._json(data, "")
        if error := event.get("error"):
            raise ServerError(
                _message(error) or str(error), int(error.get("code") or 500) if isinstance(error, dict) else 500
            )
        return event

    def _json(self, data: bytes, path: str) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise ServerError(f"{self.url}{path} answered with something that is not JSON: {data[:80]!r}") from None

    def _unreachable(self, error: Exception) -> ServerError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ServerError(f"{self.url} cannot be reached: {reason}; is the server running?")


def base_url(url: str) -> str:
    """Return a server's address without /v1 and the last slash.  Raises ConfigError if it is none."""
    url = url if "://" in url else f"http://{url}"
    parts = urlsplit(url)
    try:
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, or too great
        known = False
    if not known:
        raise ConfigError(f"{url!r} is no address of a server; give one as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _refusal(where: str, answer: http.client.HTTPResponse, text: bytes) -> ServerError:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    message = _message(error) or f"{where} answered {answer.status} {answer.reason}"
    after = answer.headers.get("Retry-After", "")
    return ServerError(message, answer.status, body, float(after) if after.isdigit() else None)


def _message(error: Any) -> str | None:
    """The message of an error in OpenAI's form, or in the flat one of older servers."""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
