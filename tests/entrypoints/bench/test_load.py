"""Requests go out as planned, and the clock is read right."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

import pytest

from tests.entrypoints.fake_openai import FakeOpenAI
from vllm.entrypoints.bench.connections import Pool
from vllm.entrypoints.bench.load import Plan, Timing, arrivals, send_all
from vllm.entrypoints.bench.measures import figures, percentile, series
from vllm.entrypoints.bench.samples import Sample


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "endpoint": "/v1/completions",
        "model": "first",
        "rate": float("inf"),
        "burstiness": 1.0,
        "max_concurrency": None,
        "seed": 0,
        "body": {},
    }
    return Plan(**{**settings, **changes})


def send(server: FakeOpenAI, samples: list[Sample], plan: Plan) -> list[Timing]:
    async def main() -> list[Timing]:
        pool = Pool(server.url, {}, 5)
        try:
            return await send_all(pool, samples, plan, lambda: None)
        finally:
            pool.close()

    return asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("chunked", [True, False])
def test_every_token_is_timed(endpoint: str, chunked: bool) -> None:
    with FakeOpenAI() as server:
        server.delay, server.chunked = 0.01, chunked
        (timing,) = send(server, [Sample("Hi", 1, 5)], plan(endpoint=endpoint, body={"ignore_eos": True}))
        (asked,) = server.bodies
    assert timing.error is None
    assert (timing.num_prompt, timing.num_output, len(timing.stamps)) == (7, 3, 3)  # as the server counts
    assert timing.start < timing.stamps[0] < timing.stamps[1] < timing.stamps[2] <= timing.end
    assert asked["max_tokens"] == 5 and asked["ignore_eos"] and asked["stream"]
    assert asked.get("prompt") == "Hi" or asked["messages"] == [{"role": "user", "content": "Hi"}]


def test_no_more_are_under_way_than_wanted() -> None:
    with FakeOpenAI() as server:
        server.delay = 0.005
        timings = send(server, [Sample("Hi")] * 12, plan(max_concurrency=3))
        assert server.most_at_once == 3
        assert server.num_connections <= 3
        send(server, [Sample("Hi")] * 12, plan())
        assert server.most_at_once > 3
    assert all(timing.error is None for timing in timings)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"refuse": lambda body: (400, "no such field", {})}, "400: no such field"),
        ({"broken": True}, "the connection ended in the middle of an answer"),
        ({"broken": True, "chunked": False}, "the answer ended without [DONE]"),
        ({"key": "secret"}, "401: a key is needed"),
    ],
)
def test_a_failure_is_counted_and_says_why(fault: dict[str, Any], message: str) -> None:
    with FakeOpenAI() as server:
        for name, value in fault.items():
            setattr(server, name, value)
        (timing,) = send(server, [Sample("Hi")], plan())
    assert timing.error == message
    found = figures([timing])
    assert (found["completed"], found["failed"], found["mean_ttft_ms"], found["request_throughput"]) == (
        0,
        1,
        None,
        0.0,
    )


def test_a_server_that_is_not_there_is_a_failure() -> None:
    with FakeOpenAI() as server:
        pass
    (timing,) = send(server, [Sample("Hi")], plan())
    assert timing.error is not None and "Connect call failed" in timing.error


def test_requests_come_at_the_rate_that_is_wanted() -> None:
    assert list(arrivals(3, plan())) == [0.0, 0.0, 0.0]
    moments = list(arrivals(4000, plan(rate=10.0)))
    gaps = [b - a for a, b in zip(moments, moments[1:], strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.1)
    assert statistics.pstdev(gaps) == pytest.approx(0.1, rel=0.15)  # as a Poisson process has it
    even = list(arrivals(4000, plan(rate=10.0, burstiness=100.0)))
    assert statistics.pstdev([b - a for a, b in zip(even, even[1:], strict=False)]) < 0.02
    assert list(arrivals(9, plan(rate=10.0))) == list(arrivals(9, plan(rate=10.0)))


def test_figures_are_what_the_clock_says() -> None:
    good = Timing(start=1.0, stamps=[1.1, 1.2, 1.4], end=1.4, num_prompt=10, num_output=4)
    late = Timing(start=1.0, stamps=[1.5], end=3.0, num_prompt=20, num_output=1)
    lost = Timing(start=0.0, end=0.5, num_prompt=5, error="gone")
    found = figures([good, late, lost], [50.0, 99.0])
    assert found["duration"] == 3.0
    assert (found["completed"], found["failed"]) == (2, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 5)
    assert found["output_throughput"] == pytest.approx(5 / 3)
    assert found["total_token_throughput"] == pytest.approx(35 / 3)
    assert found["mean_ttft_ms"] == pytest.approx(300)
    assert found["mean_tpot_ms"] == pytest.approx(100)  # three tokens after the first; an answer of one token has none
    assert series([good])["itl"] == pytest.approx([100, 200])
    assert found["p50_e2el_ms"] == pytest.approx(1200)
    assert found["p99_e2el_ms"] == pytest.approx(percentile([400, 2000], 99))
