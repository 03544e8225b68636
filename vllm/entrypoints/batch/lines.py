"""The lines of a batch file, and their answers.  A line that is wrong is kept, with what is wrong about it."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.errors import ConfigError

ENDPOINTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    *("/v1/embeddings", "/v1/score", "/v1/rerank"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a line: a response's body, or an error's."""

    custom_id: str | None
    status: int
    body: Any
    request_id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")


@dataclass(frozen=True, slots=True)
class Line:
    """One request.  `error` says what is wrong with it, where something is."""

    number: int
    """In its file, from 1."""
    custom_id: str | None
    url: str
    body: dict[str, Any]
    error: str | None = None

    def refused(self, message: str, status: int = 400, param: str | None = None) -> Answer:
        """Return the error as the line's answer, in the shape of the server's errors."""
        kind = "BadRequestError" if status < 500 else "InternalServerError"
        error = {"message": f"line {self.number}: {message}", "type": kind, "param": param, "code": status}
        return Answer(self.custom_id, status, {"error": error})


def read_lines(path: Path) -> list[Line]:
    """Return the requests of a file; empty lines are passed over.

    Raises ConfigError if the file cannot be read, or if two lines have one `custom_id`: nobody could tell their answers
    apart.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--input-file: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--input-file: {path} is not UTF-8 text: {error}") from None
    lines = [_line(number, content) for number, content in enumerate(text.split("\n"), 1) if content.strip()]
    seen: dict[str, int] = {}
    for line in lines:
        if line.custom_id is None:
            continue
        if line.custom_id in seen:
            first = seen[line.custom_id]
            raise ConfigError(
                f"{path}: lines {first} and {line.number} both have custom_id {line.custom_id!r}; give each its own"
            )
        seen[line.custom_id] = line.number
    return lines


def _line(number: int, text: str) -> Line:
    try:
        content = json.loads(text)
    except ValueError as error:
        return Line(number, None, "", {}, f"it is not JSON: {error}")
    if not isinstance(content, dict):
        return Line(number, None, "", {}, f"it must be a JSON object, not {text.strip()[:40]}")
    custom_id, url, body = content.get("custom_id"), content.get("url"), content.get("body")
    known = custom_id if isinstance(custom_id, str) else None
    return Line(
        number,
        known,
        url if isinstance(url, str) else "",
        body if isinstance(body, dict) else {},
        _wrong(content, known, url, body),
    )


def _wrong(content: dict[str, Any], custom_id: str | None, url: Any, body: Any) -> str | None:
    if custom_id is None:
        return "custom_id must be a text, by which the answer is found"
    if content.get("method", "POST") != "POST":
        return f"method must be 'POST', got {content['method']!r}"
    if url not in ENDPOINTS:
        return f"url must be one of {', '.join(ENDPOINTS)}, got {url!r}"
    if not isinstance(body, dict):
        return "body must be an object with the request's fields"
    if body.get("stream"):
        return "stream must be false: an answer is one line"
    return None
