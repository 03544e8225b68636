"""The one family of errors.  Each message names the thing, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VllmError(Exception):
    """The root of every error that this package raises on purpose."""


class ConfigError(VllmError, ValueError):
    """An option, or a combination of options, that cannot work."""


class ModelError(VllmError, ValueError):
    """A checkpoint, tokenizer or template that is missing, damaged or not supported."""


class RequestError(VllmError, ValueError):
    """A request that its sender can mend (HTTP 400).  `param` names the offending field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class OverloadedError(VllmError):
    """There is no room for a request just now (HTTP 429 or 503); it may be tried again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineDeadError(VllmError):
    """The engine stopped because of a fault of ours (HTTP 500)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" when a known name is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
