"""What every table of the battery asks of an answer that refuses."""

from __future__ import annotations

import re
from typing import Any

from tests.entrypoints.serve.fakes import Answer

_INSIDE = re.compile(r"Traceback|File \"|\.py\b|site-packages|/(home|root|tmp|usr|work)/")


def refusal(answer: Answer, path: str = "/v1/completions") -> dict[str, Any]:
    """Return the error of an answer, whose shape must be its API's and which must say nothing of the server's inside."""
    if path.startswith("/v1/messages"):
        told = answer.json
        assert set(told) == {"type", "error", "request_id"} or set(told) == {"type", "error"}, told
        error = told["error"]
    else:
        error = answer.error
    assert error["message"] and len(error["message"]) < 2000, error
    assert not _INSIDE.search(error["message"]), error
    return error


def names(error: dict[str, Any], field: str) -> bool:
    """Whether an error is about a field, or something inside it; Anthropic's API has the name in the message alone."""
    told = error["param"] if "param" in error else error["message"]
    return told is not None and re.match(rf"{re.escape(field)}\b", told) is not None
