"""`vllm models`: what there is, and what a model takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm.entrypoints.cli import main


def test_all_architectures_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "generate, by families here:\n" in out and "  LlamaForCausalLM\n" in out and "  MambaForCausalLM\n" in out


def test_a_model_says_how_it_is_computed_and_what_it_needs(
    checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(checkpoint("llama")), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["computed by"] == "vllm.models.families.llama:llama" and facts["tasks"] == "generate"
    assert facts["weights"].endswith("GiB as they are stored")
    assert main(["models", str(checkpoint("llama")), "--model-impl", "transformers"]) == 0
    assert "computed by: transformers' own module" in capsys.readouterr().out
    assert main(["models", str(checkpoint("llama")), "--task", "embed"]) == 0
    assert "tasks: embed" in capsys.readouterr().out


def test_what_cannot_be_computed_is_refused_in_a_line(
    checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = json.loads((checkpoint("llama") / "config.json").read_text()) | {"architectures": ["LamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["models", str(tmp_path)]) == 1
    assert "Did you mean 'LlamaForCausalLM'?" in capsys.readouterr().err
