"""From options to a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm import EngineArgs
from vllm.engine import setup
from vllm.engine.setup import resolve
from vllm.errors import ConfigError


def test_none_stands_for_the_default_of_every_option() -> None:
    names = [field.name for field in dataclasses.fields(EngineArgs)]
    assert EngineArgs(**dict.fromkeys(names)) == EngineArgs()


@pytest.mark.parametrize(
    ("ropes", "length"),
    [
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, 2048),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, 1024),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, 2048),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
            512,
        ),
        ({}, 512),
    ],
)
def test_the_context_length_follows_the_rope(
    ropes: dict[str, Any], length: int, checkpoint: Callable[..., Path]
) -> None:
    config, _ = resolve(EngineArgs(model=str(checkpoint("llama")), hf_overrides=ropes))
    assert config.model.max_model_len == length


def test_a_generation_config_may_come_from_a_folder(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.125}')
    config, _ = resolve(EngineArgs(model=str(checkpoint("llama")), generation_config=str(tmp_path)))
    assert config.model.default_sampling == {"temperature": 0.125}


@pytest.mark.parametrize(("value", "expected"), [("2", 2 << 30), ("0.5", 1 << 29), ("0", None), ("", None)])
def test_the_cache_may_be_sized_by_the_environment(
    value: str, expected: int | None, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", value)
    config, _ = resolve(EngineArgs(model=str(checkpoint("llama"))))
    assert config.cache.memory_bytes == expected
    given, _ = resolve(EngineArgs(model=str(checkpoint("llama")), kv_cache_memory_bytes=77))
    assert given.cache.memory_bytes == 77


@pytest.mark.parametrize("value", ["4GB", "-1", "nan", "inf"])
def test_an_environment_that_is_no_size_is_refused_by_name(
    value: str, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", value)
    with pytest.raises(ConfigError, match=f"VLLM_CPU_KVCACHE_SPACE='{value}' is not a number of GiB"):
        resolve(EngineArgs(model=str(checkpoint("llama"))))


def test_the_scheduling_policy_and_the_tokenizers_revision_arrive(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = checkpoint("llama"), []

    def find(name: str, revision: str | None, *_: object) -> Path:
        asked.append((name, revision))
        return folder

    monkeypatch.setattr(setup, "find_model", find)
    args = EngineArgs(
        model="m", revision="r", tokenizer="t", tokenizer_revision="u", scheduling_policy="priority", block_size=32
    )
    config, _ = resolve(args)
    assert asked == [("m", "r"), ("t", "u")]
    assert (config.scheduler.policy, config.cache.block_size) == ("priority", 32)
