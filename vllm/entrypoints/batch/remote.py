"""The lines of a batch, answered by a server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from vllm import env
from vllm.entrypoints.batch.lines import Answer, Line
from vllm.entrypoints.client import Client, ServerError

_TRIES = 8
_LONGEST_PAUSE = 30.0  # seconds
_BUSY = (429, 503)


def answer_remotely(url: str, api_key: str | None, lines: list[Line], max_concurrency: int) -> Iterator[Answer]:
    """Give each line's answer as it comes.  Raises ServerError if there is no server at all.

    Closing the iterator sends nothing more; what is under way is not waited for.
    """
    client = Client(url, api_key or env.client_api_key())
    default = client.models()[0]["id"]
    waiting, answers = deque(lines), SimpleQueue[Answer]()

    def work() -> None:
        with suppress(IndexError):  # nothing is left
            while True:
                line = waiting.popleft()
                answers.put(_answer(client, line, default))

    for _ in range(min(max_concurrency, len(lines))):
        Thread(target=work, daemon=True).start()  # a daemon: Ctrl-C is not to wait for a server
    try:
        for _ in lines:
            yield answers.get()
    finally:
        waiting.clear()


def _answer(client: Client, line: Line, default: str) -> Answer:
    if line.error is not None:
        return line.refused(line.error)
    try:
        return _ask(client, line, {"model": default, **line.body})
    except Exception as error:  # a fault of ours: the thread must go on, and the line have its answer
        return line.refused(f"{type(error).__name__}: {error}", 500)


def _ask(client: Client, line: Line, body: dict[str, Any]) -> Answer:
    for tries in range(1, _TRIES + 1):
        try:
            return Answer(line.custom_id, 200, client.post(line.url, body))
        except ServerError as error:
            if error.status in _BUSY and tries < _TRIES:
                time.sleep(min(error.retry_after or 2.0**tries / 4, _LONGEST_PAUSE))
                continue
            if isinstance(error.body, dict):
                return Answer(line.custom_id, error.status, error.body)
            return line.refused(str(error), error.status or 503)
    raise AssertionError("the last try returns")
