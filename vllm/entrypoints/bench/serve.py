"""`vllm bench serve`: ask a server as its users will, and read the clock."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from vllm import env
from vllm.entrypoints.bench.report import add_report_options, check_writable, latency_table, write_json
from vllm.entrypoints.bench.samples import Wanted, add_sample_options, make_samples, wanted_samples
from vllm.entrypoints.cli.options import json_object
from vllm.errors import ConfigError, ModelError

EPILOG = """examples:
  vllm bench serve --port 8000 --num-prompts 200 --request-rate 4
  vllm bench serve --url https://host --endpoint /v1/chat/completions --dataset-name jsonl --dataset-path prompts.jsonl
"""

_ENDPOINTS = {"vllm": "/v1/completions", "openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
_OUTPUT_LEN = 128
_INSIDE = Path(__file__).parents[2] / "assets" / "default_model"
_NAMES_INSIDE = ("", "default")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--url", "--base-url", help="its address, instead of --host and --port")
    server.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    server.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    server.add_argument("--backend", choices=list(_ENDPOINTS), default="vllm", help="which --endpoint is the default")
    server.add_argument("--endpoint", help="/v1/completions, or one that ends in /chat/completions")
    server.add_argument("--api-key", help="the server's key (default: VLLM_API_KEY, else OPENAI_API_KEY)")
    server.add_argument("--model", help="name of a model that the server has (default: its first)")
    server.add_argument("--tokenizer", help="folder or Hub name of the tokenizer that counts (default: the model's)")
    server.add_argument(
        "--timeout", type=float, default=600.0, help="seconds without a byte at most (default: %(default)g)"
    )
    add_sample_options(parser, count=1000, input_len=1024, output_len=_OUTPUT_LEN)
    load = parser.add_argument_group("load")
    load.add_argument(
        "--request-rate", type=float, default=float("inf"), help="requests per second (default: all at once)"
    )
    load.add_argument(
        "--burstiness", type=float, default=1.0, help="1: at random moments; more: more evenly (default: %(default)g)"
    )
    load.add_argument(
        "--max-concurrency", type=int, default=None, help="requests under way at most (default: no limit)"
    )
    load.add_argument(
        "--num-warmups", type=int, default=1, help="requests before the clock runs (default: %(default)s)"
    )
    load.add_argument("--ignore-eos", action="store_true", help="have every answer go on to its full length")
    load.add_argument("--temperature", type=float, default=None, help="of every request (default: the server's)")
    load.add_argument("--extra-body", type=json_object, default={}, metavar="JSON", help="fields of every request")
    add_report_options(parser)
    parser.add_argument("--save-detailed", action="store_true", help="write every request's timings into the JSON too")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, as figure.png (needs the extra `bench`)")


def run(options: argparse.Namespace) -> int:
    """Return 0 if every request was answered."""
    _check(options)
    wanted = wanted_samples(options)
    if options.plot:
        from vllm.entrypoints.bench.plot import check_matplotlib

        check_matplotlib()
    check_writable(options.result_json, options.plot)
    from vllm.entrypoints.client import Client, base_url

    url = base_url(options.url or f"http://{_bracketed(options.host)}:{options.port}")
    key = options.api_key or env.client_api_key()
    cards = Client(url, key).models()
    card = next((card for card in cards if options.model in (None, card["id"])), None)
    if card is None:
        raise ConfigError(f"{url} has no model {options.model!r}; it has {', '.join(card['id'] for card in cards)}")
    timings, found = _measure(options, wanted, url, key, card)
    print(_described(options, found, url, card["id"]))
    for error, count in _errors(timings).items():
        print(f"failed: {count} × {error}", file=sys.stderr)
    write_json(options.result_json, found)
    if options.plot:
        from vllm.entrypoints.bench.plot import draw

        draw(options.plot, timings, f"{card['id']}: {_load(options)}")
    return 1 if found["failed"] else 0


def _check(options: argparse.Namespace) -> None:
    options.endpoint = options.endpoint or _ENDPOINTS[options.backend]
    if not options.endpoint.startswith("/") or not options.endpoint.endswith("completions"):
        raise ConfigError(f"--endpoint {options.endpoint}: use /v1/completions or /v1/chat/completions")
    for flag, value in (
        ("--request-rate", options.request_rate),
        ("--burstiness", options.burstiness),
        ("--timeout", options.timeout),
    ):
        if not value > 0:
            raise ConfigError(f"{flag} must be above 0, got {value:g}")
    if options.max_concurrency is not None and options.max_concurrency < 1:
        raise ConfigError(f"--max-concurrency must be at least 1, got {options.max_concurrency}")
    if options.num_warmups < 0:
        raise ConfigError(f"--num-warmups must be at least 0, got {options.num_warmups}")
    if options.save_detailed and not options.result_json:
        raise ConfigError("--save-detailed writes into the JSON; name its file with --result-json")


def _measure(
    options: argparse.Namespace, wanted: Wanted, url: str, key: str | None, card: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    from vllm.entrypoints.bench.load import Plan
    from vllm.entrypoints.bench.measures import figures

    tokenizer = _tokenizer(options.tokenizer, card, wanted)
    samples = make_samples(wanted, tokenizer, _OUTPUT_LEN)
    given = {"ignore_eos": True} if options.ignore_eos else {}
    if options.temperature is not None:
        given["temperature"] = options.temperature
    plan = Plan(
        endpoint=options.endpoint,
        model=card["id"],
        rate=options.request_rate,
        burstiness=options.burstiness,
        max_concurrency=options.max_concurrency,
        seed=options.seed,
        body=given | options.extra_body,
    )
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timings = _run_loop(options, samples, plan, url, headers)
    found = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "url": url,
        "endpoint": options.endpoint,
        "model_id": card["id"],
        "num_prompts": len(samples),
        "request_rate": "inf" if plan.rate == float("inf") else plan.rate,
        "burstiness": plan.burstiness,
        "max_concurrency": plan.max_concurrency,
        **figures(timings, options.percentiles),
    }
    if options.save_detailed:
        found |= _details(timings)
    return timings, found


def _run_loop(
    options: argparse.Namespace, samples: list[Any], plan: Any, url: str, headers: dict[str, str]
) -> list[Any]:
    from tqdm import tqdm

    from vllm.entrypoints.bench.connections import Pool
    from vllm.entrypoints.bench.load import encode, send_all, send_one
    from vllm.garbage import no_collections

    async def main() -> list[Any]:
        pool = Pool(url, headers, options.timeout)
        try:
            for number in range(options.num_warmups):
                sample = samples[number % len(samples)]
                timing = await send_one(pool, plan.endpoint, sample, encode(sample, plan))
                if timing.error is not None:
                    raise ConfigError(f"the first request to {url}{plan.endpoint} failed: {timing.error}")
            with tqdm(total=len(samples), desc="Requests", disable=options.disable_tqdm, dynamic_ncols=True) as bar:
                return await send_all(pool, samples, plan, bar.update)
        finally:
            pool.close()

    with no_collections(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Any:
    """uvloop where it is installed: a client that takes less of the machine leaves more to the server beside it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _tokenizer(name: str | None, card: dict[str, Any], wanted: Wanted) -> Any:
    """Load the tokenizer that counts.  A file of requests that carry their own lengths can do without."""
    from vllm.inputs.tokenizer import load_tokenizer
    from vllm.loader.find import find_model

    reasons = []
    for candidate in dict.fromkeys([name] if name is not None else [card.get("root"), card["id"]]):
        if candidate is None:
            continue
        try:
            folder = _INSIDE if candidate in _NAMES_INSIDE else find_model(candidate, load_format="dummy")
            return load_tokenizer(folder)
        except ModelError as error:
            reasons.append(str(error))
    if wanted.name == "jsonl" and name is None:
        return None
    raise ConfigError(f"no tokenizer to count with; name one with --tokenizer. {reasons[-1] if reasons else ''}")


def _described(options: argparse.Namespace, found: dict[str, Any], url: str, model: str) -> str:
    return "\n".join(
        [
            f"{url}{options.endpoint}, {model}: {_load(options)}",
            f"{found['completed']} requests answered, {found['failed']} failed, in {found['duration']:.2f} s; "
            f"{found['total_input_tokens']:,} tokens in, {found['total_output_tokens']:,} out",
            f"{found['request_throughput']:,.2f} requests/s, {found['output_throughput']:,.1f} output tokens/s, "
            f"{found['total_token_throughput']:,.1f} tokens/s in all",
            "",
            latency_table(found, options.percentiles),
        ]
    )


def _load(options: argparse.Namespace) -> str:
    rate = "all at once" if options.request_rate == float("inf") else f"{options.request_rate:g} requests/s"
    most = f", {options.max_concurrency} at a time" if options.max_concurrency else ""
    return f"{options.num_prompts} requests, {rate}{most}"


def _errors(timings: list[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for timing in timings:
        if timing.error is not None:
            counts[timing.error] = counts.get(timing.error, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1])[:5])


def _details(timings: list[Any]) -> dict[str, Any]:
    return {
        "input_lens": [one.num_prompt for one in timings],
        "output_lens": [one.num_output for one in timings],
        "start_times": [one.start - timings[0].start for one in timings],
        "ttfts": [one.first - one.start for one in timings],
        "itls": [[b - a for a, b in zip(one.stamps, one.stamps[1:], strict=False)] for one in timings],
        "errors": [one.error or "" for one in timings],
    }


def _bracketed(host: str) -> str:
    """An IPv6 address stands in brackets in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
