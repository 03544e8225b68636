"""`vllm serve` as it is run: the front, the engine in its process, the model inside the package, clients as people use them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests.entrypoints.serve.serving import POISON, ROOT, Serving, serving
from vllm import LLM, SamplingParams

PROMPT = "Hello, my name is"
HELLO: Any = [{"role": "user", "content": "Hello"}]
LONG = {"prompt": PROMPT, "max_tokens": 800, "temperature": 0, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """What the engine says in this process: greedy continuations."""
    with LLM(max_model_len=1024) as llm:
        params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
        prompts = [f"{PROMPT} {number}" for number in range(16)]
        return {output.prompt: output.outputs[0].text for output in llm.generate(prompts, params, use_tqdm=False)}


def test_the_openai_client_gets_what_the_engine_says_whole_and_streamed(real: Serving, alone: dict[str, str]) -> None:
    client = real.openai()
    (card,) = client.models.list().data
    for prompt, text in list(alone.items())[:3]:
        options: Any = {"model": card.id, "prompt": prompt, "max_tokens": 64, "temperature": 0}
        whole = client.completions.create(**options, extra_body={"ignore_eos": True})
        stream = client.completions.create(**options, stream=True, extra_body={"ignore_eos": True})
        assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in stream) == text
    chat = client.chat.completions.create(model=card.id, messages=HELLO, temperature=0, logprobs=True, top_logprobs=2)
    pieces = client.chat.completions.create(model=card.id, messages=HELLO, temperature=0, stream=True)
    answer = chat.choices[0].message.content
    assert answer and answer == "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert client.responses.create(model=card.id, input="Hello", temperature=0).output_text == answer
    claude = anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0)
    greedy = {"temperature": 0}
    message = claude.messages.create(model=card.id, max_tokens=64, messages=HELLO, extra_body=greedy)
    assert message.content[0].text == answer  # type: ignore[union-attr]


def test_a_crowd_is_answered_whole_while_some_of_it_leave(real: Serving, alone: dict[str, str]) -> None:
    prompts = list(alone)

    async def one(client: httpx.AsyncClient, number: int) -> str | None:
        prompt = prompts[number % len(prompts)]
        body = {"prompt": prompt, "max_tokens": 64, "temperature": 0, "ignore_eos": True, "stream": True}
        text = ""
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    break
                if line:
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    if number % 4 == 3:
                        return None
        return text if text == alone[prompt] else f"{prompt!r} became {text!r}"

    async def all_of_them() -> list[str | None]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=real.url, limits=limits, timeout=60) as client:
            return await asyncio.gather(*(one(client, number) for number in range(256)))

    results = asyncio.run(all_of_them())
    assert [result for number, result in enumerate(results) if number % 4 != 3] == [
        alone[prompts[number % len(prompts)]] for number in range(256) if number % 4 != 3
    ]
    real.until("num_requests_running", 0, 1.0)
    assert real.figure("kv_cache_usage_perc") == 0


def test_an_engine_that_is_killed_tells_each_request_and_comes_back(real: Serving) -> None:
    async def one(client: httpx.AsyncClient) -> tuple[float, str]:
        body = ""
        async with client.stream("POST", "/v1/completions", json=LONG) as answer:
            async for line in answer.aiter_lines():
                body += line
        return time.monotonic(), body

    async def all_of_them() -> tuple[float, list[tuple[float, str]]]:
        async with httpx.AsyncClient(
            base_url=real.url, limits=httpx.Limits(max_connections=None), timeout=60
        ) as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(32)]
            while await asyncio.to_thread(real.figure, "num_requests_running") < 32:
                await asyncio.sleep(0.01)
            killed = time.monotonic()
            real.engine.kill()
            return killed, await asyncio.gather(*tasks)

    real.wait()
    killed, ends = asyncio.run(all_of_them())
    assert all(when - killed < 2.0 for when, _ in ends)
    assert all("SIGKILL" in body and body.endswith("data: [DONE]") for _, body in ends)
    assert httpx.get(f"{real.url}/health").status_code == 503
    real.wait()
    assert real.openai().completions.create(model="default", prompt=PROMPT).choices[0].text


def test_sigterm_lets_all_finish_and_nothing_is_left(alone: dict[str, str]) -> None:
    with serving() as running:
        engine = running.engine
        with httpx.stream("POST", f"{running.url}/v1/completions", json={**LONG, "max_tokens": 400}) as answer:
            lines = answer.iter_lines()
            next(lines)
            running.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
        assert running.process.wait(10) == 0
        engine.wait(2)


def test_no_engine_outlives_a_front_that_is_killed() -> None:
    with serving() as running:
        engine = running.engine
        running.process.kill()
        engine.wait(2)


def test_a_row_that_breaks_every_step_is_answered_500_and_the_others_as_ever(
    tmp_path: Path, alone: dict[str, str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    with serving(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}") as running:

        async def all_of_them() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
                bodies = [
                    {"prompt": prompt, "max_tokens": 64, "temperature": 0, "ignore_eos": True} for prompt in alone
                ]
                bodies[5]["top_k"] = 666
                return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

        answers = asyncio.run(all_of_them())
        running.until("num_requests_running", 0)
    guilty = answers.pop(5)
    assert guilty.status_code == 500 and "this row cannot be computed" in guilty.json()["error"]["message"]
    expected = [text for number, text in enumerate(alone.values()) if number != 5]
    assert [answer.json()["choices"][0]["text"] for answer in answers] == expected
