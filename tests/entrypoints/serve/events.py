"""Streams of named events, and whether a client's own types agree with them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from tests.entrypoints.serve.fakes import Answer


def named_events(answer: Answer) -> list[dict[str, Any]]:
    """Return the data of a stream's events, whose names must be their types."""
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.body
    found = []
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def check_types(value: BaseModel) -> set[str]:
    """Validate what a client made of an answer, which it does not do itself; return the names of fields it doesn't know."""
    type(value).model_validate(value.model_dump(mode="json", exclude_unset=True, warnings=False))
    return unknown(value)


def unknown(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(unknown, value))
    if not isinstance(value, BaseModel):
        return set()
    own = set(value.model_extra or {})
    return own.union(*(unknown(getattr(value, name)) for name in type(value).model_fields))
