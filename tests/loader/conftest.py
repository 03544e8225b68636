"""Tiny checkpoints, written by the tests themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "layer.q.weight": torch.randn(4, 8, generator=generator),
        "layer.k.weight": torch.randn(2, 8, generator=generator),
        "norm.weight": torch.randn(8, generator=generator).to(torch.bfloat16),
    }


@pytest.fixture
def single(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    """A folder with one safetensors file."""
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    """A folder with one safetensors file per tensor, and their index."""
    places = {}
    for number, (name, tensor) in enumerate(weights.items(), start=1):
        places[name] = f"model-{number:05}-of-00003.safetensors"
        save_file({name: tensor}, tmp_path / places[name])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return tmp_path


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write a small llama configuration, changed by keyword; None removes an entry."""

    def write(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "rope_theta": 500000.0,
        }
        content.update(changes)
        kept = {key: value for key, value in content.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        return tmp_path

    return write
