"""Every engine has its turn at every workload in every round, and one that fails spoils nothing."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fleet as fleets
from benchmarks import rounds
from benchmarks.conversation import Child, EngineFailed, NotLoaded
from benchmarks.engines import GIB, Engine
from benchmarks.processes import Memory
from benchmarks.rounds import Plan, run
from benchmarks.workloads import Request


def engine(name: str) -> Engine:
    return Engine(name, name, "none", "bf16", "safetensors")


class FakeFleet:
    """Answers at once; engines called "refused" do not load, and "breaks" breaks at W2."""

    turns: list[tuple[str, int]]

    def __init__(self, work: Path, cores: list[int]) -> None:
        type(self).turns = []

    def wake(self, engine: Engine) -> None:
        if engine.name == "refused":
            raise NotLoaded("no such option")

    def run(self, engine: Engine, requests: Sequence[Request]) -> dict[str, Any]:
        if engine.name == "breaks" and len(requests) > 1:
            raise EngineFailed("broken")
        self.turns.append((engine.name, len(requests)))
        counts = [request.num_output for request in requests]
        return {"first": [1.0] * len(counts), "last": [2.0] * len(counts), "counts": counts, "tokens": []}

    def start(self, engine: Engine) -> float:
        return 0.5

    def peak_memory(self, engine: Engine, requests: Sequence[Request]) -> Memory:
        self.turns.append((engine.name, 0))
        return Memory(3, 2, 1)

    def __enter__(self) -> FakeFleet:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(rounds, "Fleet", FakeFleet)
    monkeypatch.setattr(rounds, "_meter", lambda plan, record, stack: None)
    monkeypatch.setattr(rounds.checkpoints, "make", lambda *_: None)

    def go(names: Sequence[str], workloads: Sequence[str], count: int) -> dict[str, Any]:
        plan = Plan([engine(name) for name in names], workloads, count, quick=True, work=tmp_path)
        record = run(plan, tmp_path / "results.json")
        assert json.loads((tmp_path / "results.json").read_text()) == record
        return record

    return go


def test_engines_take_turns_and_the_order_moves_on(go: Any) -> None:
    go(["a", "b", "c"], ["W1", "W2"], 2)
    names = [name for name, _ in FakeFleet.turns]
    assert names == ["a", "b", "c"] * 2 + ["b", "c", "a"] * 2


def test_every_single_measurement_is_kept(go: Any) -> None:
    record = go(["a", "b"], ["W1", "start", "memory"], 3)
    assert [(each["round"], each["engine"]) for each in record["measurements"]] == [
        (0, "a"),
        (0, "b"),
        (1, "b"),
        (1, "a"),
        (2, "a"),
        (2, "b"),
    ]
    assert len(record["starts"]) == 6
    assert record["memory"] == {name: {"rss": 3, "pss": 2, "anonymous": 1} for name in "ab"}
    assert FakeFleet.turns.count(("a", 0)) == 1


def test_an_engine_that_does_not_load_is_written_down_once_and_not_tried_again(go: Any) -> None:
    record = go(["refused", "b"], ["W1", "W2", "start"], 2)
    assert record["failed"] == {"refused": {"loading": "no such option"}}
    assert {name for name, _ in FakeFleet.turns} == {"b"}
    assert {each["engine"] for each in record["starts"]} == {"b"}


def test_an_engine_that_breaks_at_one_workload_goes_on_with_the_others(go: Any) -> None:
    record = go(["breaks", "b"], ["W2", "W3"], 2)
    assert record["failed"] == {"breaks": {"W2": "broken"}}
    assert [each["workload"] for each in record["measurements"] if each["engine"] == "breaks"] == ["W3", "W3"]


def test_a_peer_that_is_not_installed_is_named_and_the_others_run(go: Any, tmp_path: Path) -> None:
    peer = Engine("peer", "peer", "none", "bf16", "safetensors", environment="vllm")
    record = run(Plan([peer, engine("a")], ["W1"], 1, True, tmp_path), tmp_path / "results.json")
    assert "benchmarks.environments vllm" in record["missing"]["peer"]
    assert list(record["engines"]) == ["a"]


def test_each_turn_holds_the_lock_and_no_longer(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"

    def is_free() -> bool:
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    seen: list[bool] = []
    monkeypatch.setattr(FakeFleet, "start", lambda self, engine: seen.append(is_free()) or 1.0)
    monkeypatch.setattr(rounds.time, "sleep", lambda seconds: seen.append(is_free()))
    run(Plan([engine("a"), engine("b")], ["start"], 1, True, tmp_path, lock), tmp_path / "results.json")
    assert seen == [False, True, False, True]


def test_who_tries_the_patience_has_one_turn_and_the_record_says_so(go: Any, tmp_path: Path) -> None:
    plan = Plan([engine("a"), engine("b")], ["W1", "W2"], 3, True, tmp_path, patience=1.0)
    record = run(plan, tmp_path / "results.json")  # all take 2 s
    assert [(each["round"], each["workload"], each["engine"]) for each in record["measurements"]] == [
        (0, "W1", "a"),
        (0, "W1", "b"),
        (0, "W2", "a"),
        (0, "W2", "b"),
    ]
    assert record["notes"][0] == "a took 2 s for W1, more than 1: it had one turn at it"


class FakeChild(Child):
    """Loads in as many seconds as its model's name says."""

    alive: list[str] = []

    def __init__(self, command: Sequence[str], *_: Any) -> None:
        self.name = command[0]
        self.alive.append(self.name)

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {"seconds": float(self.name)}

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def stop(self, seconds: float = 0.0) -> None:
        self.alive.remove(self.name)


def test_room_is_made_by_those_that_load_fastest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fleets, "Child", FakeChild)
    monkeypatch.setattr(fleets, "available", lambda: (13 - 4 * len(FakeChild.alive)) * GIB)
    monkeypatch.setattr(Engine, "command", lambda self, work: [self.name])
    with fleets.Fleet(tmp_path, [0]) as fleet:
        for name in ("80", "2", "5"):
            fleet.wake(engine(name))
        assert FakeChild.alive == ["80", "5"]
        fleet.wake(engine("80"))
        assert FakeChild.alive == ["80", "5"]
    assert FakeChild.alive == []
