"""`vllm bench …`: what is printed, written and refused."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from tests.entrypoints.fake_openai import FakeOpenAI
from vllm.entrypoints.cli import main

SMALL = ["--num-prompts", "6", "--input-len", "10", "--output-len", "3", "--disable-tqdm"]


@pytest.fixture
def ask(tokenizer_folders: dict[str, Path]) -> Any:
    """`ask(server, "--option")` → exit status."""

    def run(server: FakeOpenAI, *options: str) -> int:
        folder = str(tokenizer_folders["byte level"])
        return main(["bench", "serve", "--url", server.url, "--tokenizer", folder, *SMALL, *options])

    return run


def test_a_server_is_measured(ask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    with FakeOpenAI(key="k") as server:
        server.delay = 0.002
        options = ["--api-key", "k", "--ignore-eos", "--temperature", "0", "--percentiles", "50,90"]
        assert ask(server, *options, "--max-concurrency", "2", "--result-json", str(path), "--save-detailed") == 0
        assert len(server.bodies) == 7  # one to warm up
        asked = server.bodies[-1]
        assert (asked["max_tokens"], asked["temperature"], asked["ignore_eos"]) == (3, 0, True)
        assert server.most_at_once == 2
    out = capsys.readouterr().out
    assert all(part in out for part in ("6 requests answered, 0 failed", "18 out", "time to first token, ms", "p90"))
    found = json.loads(path.read_text())
    assert (found["completed"], found["total_input_tokens"], found["total_output_tokens"]) == (6, 42, 18)
    assert found["p90_itl_ms"] >= found["p50_itl_ms"] > 0
    assert [len(values) for values in found["itls"]] == [2] * 6 and found["request_rate"] == "inf"


def test_failures_are_counted_named_and_told_by_the_status(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI() as server:
        answered: list[Any] = []

        def refuse(body: dict[str, Any]) -> Any:
            answered.append(body)
            return (503, "full", {}) if len(answered) > 4 else None

        server.refuse = refuse
        assert ask(server) == 1
    captured = capsys.readouterr()
    assert "3 requests answered, 3 failed" in captured.out
    assert "failed: 3 × 503: full" in captured.err


def test_a_server_that_fails_at_once_is_not_measured(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI() as server:
        server.refuse = lambda body: (400, "no", {})
        assert ask(server) == 1
        assert len(server.bodies) == 1
    assert "the first request to" in capsys.readouterr().err


def test_a_picture_is_drawn(ask: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    with FakeOpenAI() as server:
        assert ask(server, "--plot", str(tmp_path / "figure.png"), "--backend", "openai-chat") == 0
        assert server.bodies[0]["path"] == "/v1/chat/completions"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(
    ask: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *args)

    with FakeOpenAI() as server:
        monkeypatch.setattr(builtins, "__import__", missing)
        assert ask(server, "--plot", "x.png") == 1
        assert server.bodies == []
    assert 'pip install "vllm[bench]"' in capsys.readouterr().err


def test_the_model_s_own_tokenizer_counts(tokenizer_folders: dict[str, Path]) -> None:
    with FakeOpenAI() as server:
        server.root = str(tokenizer_folders["byte level"])
        assert main(["bench", "serve", "--url", server.url, "--model", "second", *SMALL]) == 0
        assert server.bodies[0]["model"] == "second"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--endpoint", "/v1/embeddings"], "use /v1/completions or /v1/chat/completions"),
        (["--request-rate", "0"], "--request-rate must be above 0"),
        (["--max-concurrency", "0"], "--max-concurrency must be at least 1"),
        (["--num-prompts", "0"], "--num-prompts must be at least 1"),
        (["--random-range-ratio", "1"], "must be in [0, 1)"),
        (["--dataset-name", "sharegpt"], "needs the file: --dataset-path"),
        (["--dataset-path", "x"], "name its form with --dataset-name"),
        (["--save-detailed"], "name its file with --result-json"),
        (["--result-json", "/no/such/folder/x.json"], "/no/such/folder is no folder"),
        (["--model", "third"], "has no model 'third'; it has first, second"),
    ],
)
def test_a_mistake_is_one_line(ask: Any, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI() as server:
        assert ask(server, *options) == 1
        assert server.bodies == []
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_throughput_counts_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    assert main(["bench", "throughput", *SMALL, "-n", "2", "--result-json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert (found["num_requests"], found["total_input_tokens"], found["total_output_tokens"]) == (6, 60, 36)
    assert "6 requests in" in capsys.readouterr().out


def test_latency_takes_every_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    batch = [
        "--input-len",
        "4",
        "--output-len",
        "2",
        "--batch-size",
        "2",
        "--num-iters-warmup",
        "1",
        "--num-iters",
        "3",
    ]
    assert main(["bench", "latency", *batch, "--disable-tqdm", "--result-json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert len(found["latencies"]) == 3 and min(found["latencies"]) <= found["avg_latency"] <= max(found["latencies"])
    assert "batches of 2, 4 tokens in, 2 out" in capsys.readouterr().out


def test_startup_has_its_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    assert main(["bench", "startup", "--num-iters", "1", "--disable-tqdm", "--result-json", str(path)]) == 0
    (load,), (total,) = (json.loads(path.read_text())[name] for name in ("load_s", "total_s"))
    assert 0 < load < total
    assert main(["bench", "startup", "no/such/folder/here", "--num-iters", "1", "--disable-tqdm"]) == 1
    assert "no such directory: no/such/folder/here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["throughput", "--input-len", "3000"], "lower --input-len or --output-len"),
        (["latency", "--input-len", "3000"], "more than the model's context of 2048 tokens"),
        (["latency", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["startup", "--num-iters", "0"], "--num-iters must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments, "--disable-tqdm"]) == 1
    assert message in capsys.readouterr().err
