"""The engine in a process of its own: what is asked for comes, and nothing is lost when something goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from vllm import LLM, EngineArgs, SamplingParams
from vllm.engine.async_engine import AsyncEngine
from vllm.engine.wire import News
from vllm.errors import EngineDeadError, ModelError, OverloadedError, RequestError
from vllm.inputs.prompts import Prompt
from vllm.messages import EngineRequest, EngineStats, Event
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

PROMPT = Prompt("Hello, my name is")


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(EngineArgs(max_model_len=512, **options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def request(engine: AsyncEngine, name: str, max_tokens: int = 8, **params: Any) -> EngineRequest:
    sampling = SamplingParams(
        max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA, **{"temperature": 0.0, "ignore_eos": True, **params}
    )
    (made,) = engine.preparer.prepare([PROMPT], sampling, request_ids=[name])
    return made


async def outputs(engine: AsyncEngine, asked: EngineRequest) -> list[RequestOutput]:
    return [output async for output in engine.generate(asked)]


def text(parts: list[RequestOutput]) -> str:
    return "".join(output.outputs[0].text for output in parts)


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine, with a time limit."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        async def limited() -> None:
            await asyncio.wait_for(test(**fixtures), 60)

        asyncio.run(limited())

    return run


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


@in_loop
async def test_many_requests_get_what_the_engine_gives_in_the_callers_process() -> None:
    with LLM(max_model_len=512) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        (expected,) = llm.generate(PROMPT.text, params, use_tqdm=False)
    async with running() as engine:
        assert engine.health() is None
        found = await asyncio.gather(*(outputs(engine, request(engine, f"r{i}", 24)) for i in range(20)))
        assert all(text(parts) == expected.outputs[0].text for parts in found)
        assert all([o.finished for o in parts] == [False] * (len(parts) - 1) + [True] for parts in found)
        assert engine.num_requests == 0
        assert engine.stats().num_running == engine.stats().num_waiting == 0


@in_loop
async def test_leaving_the_iterator_aborts_the_request_and_frees_its_blocks() -> None:
    async with running() as engine:
        stream = engine.generate(request(engine, "a", 400))
        await anext(stream)
        assert engine.stats().num_running == 1
        await stream.aclose()
        await until(lambda: engine.stats().num_running == 0, 1.0)
        assert engine.stats().cache_usage == 0.0
        assert engine.num_requests == 0


@in_loop
async def test_a_stop_string_ends_the_request_on_both_sides() -> None:
    async with running() as engine:
        whole = text(await outputs(engine, request(engine, "a", 60)))
        stop = whole[20:24]
        parts = await outputs(engine, request(engine, "b", 60, stop=[stop], n=1))
        assert text(parts) == whole[: whole.index(stop)]
        assert parts[-1].outputs[0].stop_reason == stop
        await until(lambda: engine.stats().num_running == 0)


@in_loop
async def test_the_scheduler_refuses_by_name_and_an_id_is_used_once_at_a_time() -> None:
    async with running(num_gpu_blocks_override=34) as engine:
        with pytest.raises(RequestError, match="priority=3"):
            await outputs(engine, request_with_priority(engine))
        first = engine.generate(request(engine, "same", 100))
        await anext(first)
        with pytest.raises(RequestError, match="'same' is in use"):
            await outputs(engine, request(engine, "same"))
        await first.aclose()


def request_with_priority(engine: AsyncEngine) -> EngineRequest:
    made = request(engine, "p")
    made.priority = 3
    return made


@in_loop
async def test_a_killed_engine_tells_every_request_and_comes_back() -> None:
    async with running() as engine:
        tasks = [asyncio.create_task(outputs(engine, request(engine, f"r{i}", 400))) for i in range(32)]
        await until(lambda: engine.stats().num_running == 32)
        assert engine._process is not None
        began = time.monotonic()
        os.kill(engine._process.pid, signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - began < 2.0
        assert all(isinstance(result, EngineDeadError) and "SIGKILL" in str(result) for result in results)
        assert "died" in str(engine.health())
        with pytest.raises(OverloadedError, match="being started again"):
            await outputs(engine, request(engine, "early"))
        await until(lambda: engine.health() is None, 30.0)
        assert text(await outputs(engine, request(engine, "late")))
        assert engine.num_restarts == 1


@in_loop
async def test_a_step_whose_text_cannot_be_made_ends_its_requests_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = AsyncEngine(EngineArgs(max_model_len=512))
    engine.state = "ready"  # what the process would say is said here
    poisoned, sound = (asyncio.create_task(outputs(engine, request(engine, name, 2))) for name in ("bad", "good"))
    await asyncio.sleep(0)
    process = engine.outputs.process

    def fails(events: Any) -> Any:
        if any(event.request_id == "bad" for event in events):
            raise IndexError("a token without a text")
        return process(events)

    monkeypatch.setattr(engine.outputs, "process", fails)
    engine.hear(News([Event("bad", 0, [5])], EngineStats()))
    engine.hear(News([Event("good", 0, [5, 6], finish_reason="length")], EngineStats()))
    with pytest.raises(EngineDeadError, match="no text could be made"):
        await poisoned
    assert (await sound)[-1].finished and engine.num_requests == 0


@in_loop
async def test_a_frozen_engine_is_not_well() -> None:
    async with running() as engine:
        assert engine._process is not None
        os.kill(engine._process.pid, signal.SIGSTOP)
        try:
            await until(lambda: engine.health() == "the engine process is stopped", 2.0)
        finally:
            os.kill(engine._process.pid, signal.SIGCONT)
        await until(lambda: engine.health() is None, 2.0)


@in_loop
async def test_stopping_lets_requests_end_and_then_refuses() -> None:
    async with running() as engine:
        tasks = [asyncio.create_task(outputs(engine, request(engine, f"r{i}", 100))) for i in range(4)]
        await until(lambda: engine.stats().num_running == 4)
        assert engine._process is not None
        process = psutil.Process(engine._process.pid)
        await engine.stop(timeout=30.0)
        assert all(len(parts[-1].outputs) == 1 and parts[-1].finished for parts in await asyncio.gather(*tasks))
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        with pytest.raises(OverloadedError, match="shutting down"):
            await outputs(engine, request(engine, "late"))


@in_loop
async def test_an_engine_that_was_stopped_can_be_started_again() -> None:
    async with running() as engine:
        before = text(await outputs(engine, request(engine, "a")))
        await engine.stop()
        assert engine._process is not None and engine._process.poll() is not None
        await asyncio.gather(engine.start())
        assert text(await outputs(engine, request(engine, "b"))) == before
        assert engine.num_restarts == 0 and engine.health() is None


@in_loop
async def test_an_engine_that_could_not_start_can_be_started_again(tmp_path: Path) -> None:
    from vllm.engine.setup import DEFAULT_MODEL_PATH

    for file in DEFAULT_MODEL_PATH.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    engine = AsyncEngine(EngineArgs(model=str(tmp_path), max_model_len=512))
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "away")
    with pytest.raises(ModelError):
        await engine.start()
    (tmp_path / "away").rename(weights)
    await engine.start()
    assert text(await outputs(engine, request(engine, "a")))
    await engine.stop()


@in_loop
async def test_stopping_without_patience_tells_who_is_left() -> None:
    async with running() as engine:
        task = asyncio.create_task(outputs(engine, request(engine, "a", 400)))
        await until(lambda: engine.stats().num_running == 1)
        await engine.stop(timeout=0.0)
        with pytest.raises(EngineDeadError, match="shutting down"):
            await task


@in_loop
async def test_stopping_while_it_loads_takes_no_time() -> None:
    engine = AsyncEngine(EngineArgs(max_model_len=512))
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine._process is not None)
    began = time.monotonic()
    await engine.stop(timeout=30.0)
    assert time.monotonic() - began < 1.0
    with pytest.raises(EngineDeadError):
        await starting


@in_loop
async def test_a_model_that_cannot_be_loaded_is_the_callers_to_know(tmp_path: Path) -> None:
    from vllm.engine.setup import DEFAULT_MODEL_PATH

    for file in DEFAULT_MODEL_PATH.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1000])
    engine = AsyncEngine(EngineArgs(model=str(tmp_path)))
    with pytest.raises(ModelError, match="model.safetensors"):
        await engine.start()
    await engine.stop()


def test_no_engine_outlives_its_front(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import asyncio, sys\nfrom vllm import EngineArgs\nfrom vllm.engine.async_engine import AsyncEngine\n"
        "async def main():\n"
        "    engine = AsyncEngine(EngineArgs(max_model_len=512)); await engine.start()\n"
        "    print(engine._process.pid, 'torch' in sys.modules, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    front = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    pid, has_torch = front.stdout.readline().split()
    assert has_torch == "False", "the front needs no torch"
    child = psutil.Process(int(pid))
    front.kill()
    front.wait()
    child.wait(timeout=5.0)
