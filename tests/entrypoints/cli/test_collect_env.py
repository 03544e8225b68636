"""`vllm collect-env`: what a report needs, and no secret."""

from __future__ import annotations

import json

import pytest

import vllm
from vllm.entrypoints.cli import main


def test_the_machine_is_described_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "open sesame")
    monkeypatch.setenv("HF_TOKEN", "open sesame")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    assert main(["collect-env", "--json"]) == 0
    out = capsys.readouterr().out
    facts = json.loads(out)
    assert "open sesame" not in out
    assert facts["environment"]["VLLM_LOGGING_LEVEL"] == "WARNING" and facts["environment"]["HF_TOKEN"] == "(hidden)"
    assert facts["package"]["vllm"] == vllm.__version__
    assert facts["processor"]["usable cores"] >= 1
    assert main(["collect-env"]) == 0
    assert "native kernels:" in capsys.readouterr().out
