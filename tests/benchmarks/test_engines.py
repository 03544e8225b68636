"""The table of engines, the environments they live in, and the command line that chooses among them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import environments, goals
from benchmarks.__main__ import main
from benchmarks.adapters import protocol
from benchmarks.engines import ENGINES, ROOT
from benchmarks.measures import TITLES
from benchmarks.shapes import PRECISIONS
from benchmarks.workloads import workloads


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_an_adapter_an_environment_and_a_precision(name: str) -> None:
    engine = ENGINES[name]
    assert (Path(protocol.__file__).with_name(f"{engine.adapter}.py")).is_file()
    assert engine.environment is None or engine.environment in environments.RECIPES
    assert engine.precision in PRECISIONS


def test_goals_are_about_engines_and_measures_that_there_are() -> None:
    for goal in (*goals.RATIOS, *goals.SHARES):
        assert goal.ours in ENGINES
        assert goal.measure in workloads()[goal.workload].measures
        assert goal.measure in TITLES
    assert all(goal.peer in ENGINES for goal in goals.RATIOS)


def test_the_callers_settings_favour_nobody(tmp_path: Path) -> None:
    inherited = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "9", "PYTHONPATH": "/elsewhere"}
    ours = ENGINES["ours-bf16"].variables_for(tmp_path, [0, 3], inherited)
    peer = ENGINES["vllm"].variables_for(tmp_path, [0, 3], inherited)
    assert ours["PATH"] == peer["PATH"] == "/bin"
    assert ours["PYTHONPATH"] == str(ROOT)
    assert "PYTHONPATH" not in peer
    assert not {"OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE"} & (ours.keys() | peer.keys())
    assert peer["VLLM_CPU_OMP_THREADS_BIND"] == "0,3"


def test_an_environment_that_failed_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "vllm.json").write_text(json.dumps({"error": "no such wheel"}))
    assert environments.reason_missing("vllm", tmp_path) == "no such wheel"
    assert "python -m benchmarks.environments openvino" in (environments.reason_missing("openvino", tmp_path) or "")


def test_a_recipe_that_fails_leaves_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(python: Path, jobs: int) -> None:
        raise subprocess.CalledProcessError(1, [str(python), "-m", "pip", "install", "it"], "first\nthe very reason\n")

    monkeypatch.setitem(environments.RECIPES, "vllm", fail)
    monkeypatch.setattr(environments, "run", lambda command: "")
    assert environments.install("vllm", tmp_path, 1) == "install it: first / the very reason"
    assert environments.reason_missing("vllm", tmp_path) == "install it: first / the very reason"


@pytest.mark.parametrize(
    ("requirement", "left_out"),
    [
        ("torch==2.13.0+cpu; platform_machine == 'x86_64'", True),
        ("torchvision; platform_machine != 'riscv64'", True),
        ("torchcodec>=0.14", True),
        ("torchmetrics", False),
        ("transformers<5.20.0,>=5.16.1", False),
    ],
)
def test_what_vllm_is_not_given_is_what_is_built_for_gpus(requirement: str, left_out: bool) -> None:
    assert bool(environments.NOT_FOR_VLLM.match(requirement)) == left_out


@pytest.mark.parametrize("wrong", [["--engines", "vlm"], ["--workloads", "W7"], ["--rounds", "0"]])
def test_a_wrong_choice_is_refused_by_name(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
    assert wrong[1] in capsys.readouterr().err
