"""`vllm check`: right is right, and wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm.config import EngineArgs
from vllm.entrypoints.cli import main
from vllm.entrypoints.cli.check import Run, compare, compute


@pytest.mark.parametrize("options", [["--dtype", "float32"], ["--dtype", "bfloat16"], ["--quantization", "int8"]])
def test_a_right_model_is_right(
    checkpoint: Callable[..., Path], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(checkpoint("llama")), "--num-prompts", "2", "--max-tokens", "6", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("right: ") and out.count("\n") == 1
    assert " of 12 greedy tokens" in out and "tokens/s" in out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_model_is_wrong(checkpoint: Callable[..., Path], dtype: str) -> None:
    args = EngineArgs(model=str(checkpoint("llama")), dtype=dtype)
    runs, _, model = compute(args, num_prompts=2, prompt_len=8, max_tokens=4)
    assert compare(runs, model, args).right
    assert not compare(runs, model, EngineArgs(model=args.model, dtype=dtype, hf_overrides={"rms_norm_eps": 0.5})).right


def test_one_wrong_token_is_wrong(checkpoint: Callable[..., Path]) -> None:
    args = EngineArgs(model=str(checkpoint("llama")), dtype="float32")
    (run,), _, model = compute(args, num_prompts=1, prompt_len=8, max_tokens=4)
    last = int(run.logits[-1].argmin())
    assert not compare([Run(run.prompt, [*run.tokens[:-1], last], run.logits)], model, args).right


def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--prompt-len", "2048"]) == 1
    assert "more than the model's context of 2048 tokens" in capsys.readouterr().err
