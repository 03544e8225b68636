"""`vllm run-batch -i FILE -o FILE`: a file of requests in OpenAI's batch format, answered into another.

    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], "max_tokens": 50}}
    {"id": "batch_req_…", "custom_id": "1", "response": {"status_code": 200, "request_id": "…", "body": {...}}, "error": null}

Answers are written as they are there, not in the order of the requests, so that nothing that is done is ever lost.  A
line that fails has its error in its own answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vllm.config import EngineArgs
from vllm.entrypoints.batch.lines import Answer, Line, read_lines
from vllm.entrypoints.cli.options import add_engine_options, add_model, engine_options, refuse_engine_options
from vllm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    files = parser.add_argument_group("files")
    files.add_argument("-i", "--input-file", required=True, metavar="FILE", help="requests, one JSON object per line")
    files.add_argument("-o", "--output-file", required=True, metavar="FILE", help="where the answers go; - is stdout")
    server = parser.add_argument_group("server")
    server.add_argument("--url", help="ask this server instead of loading a model, as http://127.0.0.1:8000")
    server.add_argument("--api-key", help="the server's key (default: VLLM_API_KEY, else OPENAI_API_KEY)")
    server.add_argument(
        "--max-concurrency", type=int, default=32, help="requests sent to the server at a time (default: %(default)s)"
    )
    add_engine_options(parser)


def run(options: argparse.Namespace) -> int:
    """Return 0 if every line was answered, 1 if one or more have an error."""
    args = EngineArgs(**engine_options(options))
    if options.url is None and options.api_key is not None:
        raise ConfigError("--api-key is for a server; give its address with --url")
    if options.url is not None:
        refuse_engine_options(options)
    if options.max_concurrency < 1:
        raise ConfigError(f"--max-concurrency must be at least 1, got {options.max_concurrency}")
    lines = read_lines(Path(options.input_file))
    with _opened(options.output_file) as output:
        return _write(_answers(options, args, lines), output, len(lines))


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdout
        return
    try:
        output = Path(path).open("w", encoding="utf-8")  # noqa: SIM115  # an error inside `with` is another matter
    except OSError as error:
        raise ConfigError(f"--output-file: {path} cannot be written: {error.strerror}") from None
    with output:
        yield output


def _answers(options: argparse.Namespace, args: EngineArgs, lines: list[Line]) -> Iterator[Answer]:
    if options.url is not None:
        from vllm.entrypoints.batch.remote import answer_remotely

        yield from answer_remotely(options.url, options.api_key, lines, options.max_concurrency)
        return
    from vllm.entrypoints.batch.local import answer_locally

    yield from answer_locally(args, lines)


def _write(answers: Iterator[Answer], output: TextIO, total: int) -> int:
    from tqdm import tqdm

    failed = 0
    for answer in tqdm(answers, total=total, desc="Answered requests", dynamic_ncols=True):
        failed += answer.status != 200
        output.write(json.dumps(_written(answer), ensure_ascii=False) + "\n")
        output.flush()
    if failed:
        print(f"vllm run-batch: {failed} of {total} requests failed; their lines say why", file=sys.stderr)
    return 1 if failed else 0


def _written(answer: Answer) -> dict[str, Any]:
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
    error = answer.body.get("error") if answer.status != 200 and isinstance(answer.body, dict) else None
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": answer.custom_id, "response": response, "error": error}
