"""The form of the log's lines: text, or an object of JSON each."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec


class JsonFormatter(logging.Formatter):
    """A line of JSON per record: time, level, logger, message, and the stack of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def use_format(name: str) -> None:
    """Have this process log in a form: "text" leaves it as it is, "json"."""
    if name == "json":
        for handler in logging.getLogger("vllm").handlers:
            handler.setFormatter(JsonFormatter())
