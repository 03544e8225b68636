"""The lines of a batch, answered by a server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from vllm import env
from vllm.entrypoints.batch.lines import Answer, Line
from vllm.entrypoints.client import Client, ServerError

_TRIES = 8
_LONGEST_PAUSE = 30.0  # seconds
_BUSY = (429, 503)


def answer_remotely(url: str, api_key: str | None, lines: list[Line], max_concurrency: int) -> Iterator[Answer]:
    """Give each line's answer as it comes.  Raises ServerError if there is no server at all."""
    client = Client(url, api_key or env.client_api_key())
    default = client.models()[0]["id"]
    with ThreadPoolExecutor(max_concurrency) as threads:
        pending = [threads.submit(_answer, client, line, default) for line in lines]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _answer(client: Client, line: Line, default: str) -> Answer:
    if line.error is not None:
        return line.refused(line.error)
    body = {"model": default, **line.body}
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
