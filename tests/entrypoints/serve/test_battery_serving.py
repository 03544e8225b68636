"""The battery against `vllm serve`: what only a real engine can show.  Odd values, a crowd, processes that die."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import httpx
import psutil
import pytest

from tests.entrypoints.serve.battery import refusal
from tests.entrypoints.serve.fakes import Answer
from tests.entrypoints.serve.serving import Serving, starting

PLAIN: dict[str, Any] = {"prompt": "Hello, my name is", "max_tokens": 24, "temperature": 0, "ignore_eos": True}

EDGES: list[dict[str, Any]] = [
    {"temperature": 1e308},
    {"temperature": 1e-300},
    {"top_p": 1e-300, "temperature": 1},
    {"min_p": 1, "temperature": 1},
    {"top_k": 2**63 - 1, "temperature": 1},
    {"repetition_penalty": 1e308},
    {"presence_penalty": 2, "frequency_penalty": -2},
    {"logit_bias": {"5": 1e308, "6": -1e308}},
    {"logit_bias": {str(token): -100 for token in range(3072)}},
    {"allowed_token_ids": [5], "logit_bias": {"5": -100}},
    {"seed": -(2**63), "temperature": 1},
    {"seed": 2**63 - 1, "temperature": 1},
    {"n": 128, "temperature": 1, "max_tokens": 2},
    {"best_of": 128, "temperature": 1, "max_tokens": 2},
    {"logprobs": 20, "prompt_logprobs": 20},
    {"use_beam_search": True, "n": 8, "length_penalty": -32},
    {"stop": ["x" * 1024] * 64},
    {"bad_words": [f"w{number}" for number in range(3072)]},
    {"stop_token_ids": list(range(3072)), "ignore_eos": False},
    {"prompt": [5] * 1023, "max_tokens": None},
    {"prompt": "".join(map(chr, range(1, 32))) + "\uffff\U0010ffff"},
    {"prompt": "<|im_start|><|im_end|>"},
    {"truncate_prompt_tokens": 1},
    {"max_tokens": 2**63 - 1, "prompt": [5] * 1000},
    {"min_tokens": 24, "ignore_eos": False},
    {"cache_salt": "\N{PILE OF POO}" * 1000},
]
REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"repetition_penalty": 1e-300}, None),  # what it does to logits leaves no token to choose
    ({"prompt": [5] * 1024}, "prompt"),
    ({"prompt": [3072]}, "prompt"),
    ({"priority": 1}, "priority"),
    ({"logprobs": 21}, "logprobs"),
    ({"allowed_token_ids": [3072]}, "allowed_token_ids"),
]


def test_values_at_the_edge_are_answered_and_change_nothing_for_those_beside_them(real: Serving) -> None:
    async def all_of_them() -> tuple[str, list[httpx.Response]]:
        async with httpx.AsyncClient(base_url=real.url, timeout=60) as client:

            async def ask(body: dict[str, Any]) -> httpx.Response:
                return await client.post("/v1/completions", json=PLAIN | body)

            alone = (await ask({})).json()["choices"][0]["text"]
            odd = [*EDGES, *(body for body, _ in REFUSED)]
            mixed = [each for body in odd for each in (body, {})]
            return alone, await asyncio.gather(*map(ask, mixed))

    alone, answers = asyncio.run(all_of_them())
    assert [answer.json()["choices"][0]["text"] for answer in answers[1::2]] == [alone] * (len(EDGES) + len(REFUSED))
    odd = answers[::2]
    for body, answer in zip(EDGES, odd, strict=False):
        assert answer.status_code == 200, (str(body)[:80], answer.text)
        assert all(choice["finish_reason"] in ("stop", "length") for choice in answer.json()["choices"]), str(body)[:80]
    for (_, param), answer in zip(REFUSED, odd[len(EDGES) :], strict=True):
        assert answer.status_code == 400
        assert refusal(Answer(answer.status_code, {}, answer.content))["param"] == param
    real.until("num_requests_running", 0, 2.0)
    assert real.figure("kv_cache_usage_perc") == 0


def test_a_thousand_at_once_are_all_answered_alike(real: Serving) -> None:
    body = json.dumps(PLAIN | {"max_tokens": 2}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    host, port = real.url.removeprefix("http://").split(":")

    async def one() -> tuple[bytes, str]:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.read()
        writer.close()
        first, _, rest = answer.partition(b"\r\n\r\n")
        return first[:12], json.loads(rest)["choices"][0]["text"]

    async def all_of_them() -> list[tuple[bytes, str]]:
        return await asyncio.gather(*(one() for _ in range(1000)))

    answers = asyncio.run(all_of_them())
    assert {status for status, _ in answers} == {b"HTTP/1.1 200"} and len({text for _, text in answers}) == 1
    real.until("num_requests_running", 0, 2.0)
    assert real.figure("kv_cache_usage_perc") == 0


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frozen_engine_is_told_of_and_goes_on_where_it_was(real: Serving) -> None:
    real.wait()
    body = PLAIN | {"max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{real.url}/v1/completions", json=body, timeout=20) as answer:
        lines = answer.iter_lines()
        next(lines)
        real.engine.send_signal(signal.SIGSTOP)
        try:
            health = httpx.get(f"{real.url}/health")
            assert health.status_code == 503
            assert refusal(Answer(503, {}, health.content))["message"] == "the engine process is stopped"
        finally:
            real.engine.send_signal(signal.SIGCONT)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
    assert httpx.get(f"{real.url}/health").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_of_a_terminal_do_not_reach_the_engine(real: Serving, number: signal.Signals) -> None:
    real.wait()
    engine = real.engine
    engine.send_signal(number)
    assert httpx.post(f"{real.url}/v1/completions", json=PLAIN, timeout=20).status_code == 200
    assert real.engine == engine


def loading(running: Serving) -> psutil.Process:
    """Wait until the engine's process is there, which then has seconds to go, and return it."""
    running.read_until("listening at")
    while not (children := psutil.Process(running.process.pid).children()):
        assert running.process.poll() is None
    return children[0]


def test_an_engine_that_is_killed_while_it_loads_ends_the_server_with_one_line() -> None:
    with starting() as running:
        loading(running).kill()
        assert running.process.wait(10) == 1
    assert "Traceback" not in "".join(running.lines)
    assert running.lines[-1].startswith("vllm: the engine process was ended by SIGKILL")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_nothing_is_left_of_a_server_that_is_ended_while_it_loads(number: signal.Signals, status: int) -> None:
    with starting() as running:
        engine = loading(running)
        running.process.send_signal(number)
        assert running.process.wait(5) == status
        engine.wait(20)  # if it has not got beyond its imports, it only notices after them
    assert "Traceback" not in "".join(running.lines)
