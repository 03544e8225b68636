"""A conversation with an engine in a child process: answers, refusals, deaths, and quiet while it waits."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conversation import Child, EngineFailed
from benchmarks.processes import members_of

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
WITH_A_CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; print('{\\"ok\\": {}}', flush=True); time.sleep(60)"])
"""
RUN = {"do": "run", "requests": [[[7, 8, 9], 2], [[5], 3]]}


def load(model: str, **engine: str) -> dict[str, Any]:
    return {"do": "load", "model": model, "options": {"engine": engine}}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children = []

    def start(*command: str) -> Child:
        command = command or ("-m", "tests.benchmarks.fake_engine")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        children.append(Child([sys.executable, *command], environment, tmp_path / "engine.log"))
        return children[-1]

    yield start
    for child in children:
        child.stop(seconds=1.0)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_engine_loads_and_answers_what_it_is_asked(start: Callable[..., Child]) -> None:
    child = start()
    assert child.ask(load("plain"), SECONDS)["seconds"] >= 0
    reply = child.ask(RUN, SECONDS)
    assert reply["counts"] == [2, 3]
    assert reply["tokens"] == [7, 7]
    assert 0 <= reply["first"][0] <= reply["last"][0] <= reply["first"][1] <= reply["last"][1]


def test_what_an_engine_prints_is_no_answer(start: Callable[..., Child], tmp_path: Path) -> None:
    start().ask(load("plain"), SECONDS)
    assert "not part of the conversation\nnor is this" in (tmp_path / "engine.log").read_text()


def test_a_refusal_comes_with_the_engines_words_and_the_conversation_goes_on(start: Callable[..., Child]) -> None:
    child = start()
    with pytest.raises(EngineFailed, match="ValueError: .*int8.* cannot be had"):
        child.ask(load("refused", quantization="int8"), SECONDS)
    assert child.ask(load("plain"), SECONDS)


def test_too_few_tokens_are_no_answer(start: Callable[..., Child]) -> None:
    child = start()
    child.ask(load("stops early"), SECONDS)
    with pytest.raises(EngineFailed, match=r"made \[1, 2\] tokens where \[2, 3\]"):
        child.ask(RUN, SECONDS)


def test_an_unknown_message_is_refused_by_name(start: Callable[..., Child]) -> None:
    with pytest.raises(EngineFailed, match="'sing' is nothing that can be asked"):
        start().ask({"do": "sing"}, SECONDS)


def test_a_death_is_told_with_its_code_and_last_words(start: Callable[..., Child]) -> None:
    child = start()
    child.ask(load("dies"), SECONDS)
    with pytest.raises(EngineFailed, match=r"(?s)ended with 3: .*the last words"):
        child.ask(RUN, SECONDS)
    with pytest.raises(EngineFailed, match="the process ended"):
        for _ in range(2):  # the pipe may take one message that nobody reads
            child.send(RUN)


def test_silence_is_not_waited_for_for_ever(start: Callable[..., Child]) -> None:
    child = start("-c", "import time; time.sleep(60)")
    with pytest.raises(EngineFailed, match="no answer within 0 s"):
        child.ask(RUN, 0.0)


def test_whoever_waits_is_stopped_with_all_its_processes(start: Callable[..., Child]) -> None:
    child = start("-c", WITH_A_CHILD)
    child.receive(SECONDS)
    members = members_of(child.session)
    assert len(members) == 2
    child.pause()
    assert {state(pid) for pid in members} == {"T"}
    child.resume()
    assert "T" not in {state(pid) for pid in members}


def test_nothing_of_an_engine_stays(start: Callable[..., Child]) -> None:
    child = start()
    child.ask(load("plain"), SECONDS)
    child.pause()
    child.stop()
    assert members_of(child.session) == []


def stand_alone(folder: Path, serve: str) -> list[str]:
    """The command for a child whose conversation is the given code."""
    (folder / "adapters").mkdir()
    (folder / "child.py").write_text((ROOT / "benchmarks" / "child.py").read_text())
    (folder / "adapters" / "protocol.py").write_text(f"import os, sys, time\ndef serve(engine): {serve}\n")
    (folder / "adapters" / "some.py").write_text("Engine = int\n")
    return [sys.executable, str(folder / "child.py"), "some"]


def test_an_adapter_leaves_the_search_path_as_the_peers_environment_has_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = stand_alone(tmp_path, "print(*sys.path, sep='\\n')")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {str(tmp_path), str(ROOT), ""} & set(done.stdout.splitlines())


def test_an_engine_that_waits_dies_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    command = stand_alone(tmp_path, "print(os.getpid(), flush=True); time.sleep(60)")
    parent = f"import subprocess, time; subprocess.Popen({command!r}, start_new_session=True); time.sleep(60)"
    benchmark = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert benchmark.stdout is not None
    engine = int(benchmark.stdout.readline())
    os.kill(engine, signal.SIGSTOP)
    benchmark.kill()
    benchmark.wait()
    gone, _, _ = select.select([benchmark.stdout], [], [], 20)  # the engine holds the other end of the pipe
    with suppress(ProcessLookupError):
        os.kill(engine, signal.SIGKILL)
    assert gone
