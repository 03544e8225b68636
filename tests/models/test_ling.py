"""Ling and its kin: what the conformance suite does not ask of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conformance import era
from tests.conformance.suite import Outcome, _expected, _prompts, _try_ways
from vllm.errors import ModelError
from vllm.models.families.era_ling import ling2, pangu_ultra


def agrees(folder: Path, reference: Any) -> bool:
    outcome = Outcome("")
    _try_ways(folder, {"device": "cpu"}, [_expected(reference, prompt) for prompt in _prompts()], outcome)
    assert outcome.route == "family"
    return outcome.passed


def changed(folder: Path, **config: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))


def test_a_pangu_ultra_may_have_norms_behind_its_branches(tmp_path: Path) -> None:
    reference = era.save("PanguUltraMoEForCausalLM", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for index, layer in enumerate(reference.model.layers):
        name, after = f"model.layers.{index}", [torch.rand(reference.config.hidden_size) + 0.5 for _ in range(2)]
        weights[f"{name}.pre_mlp_layernorm.weight"] = weights[f"{name}.post_attention_layernorm.weight"]
        weights[f"{name}.post_attention_layernorm.weight"], weights[f"{name}.post_mlp_layernorm.weight"] = after
        layer.self_attn.register_forward_hook(_normed(after[0]))
        layer.mlp.register_forward_hook(_normed(after[1]))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    changed(tmp_path, sandwich_norm=True)
    assert agrees(tmp_path, reference)


def _normed(weight: Tensor) -> Any:
    def norm(module: nn.Module, inputs: Any, found: Any) -> Any:
        if isinstance(found, tuple):
            return (norm(module, inputs, found[0]), *found[1:])
        return F.rms_norm(found, weight.shape, weight, 1e-6)

    return norm


def test_a_ling_may_bring_the_columns_of_its_head_to_length_one(tmp_path: Path) -> None:
    reference = era.save("BailingMoeForCausalLM", tmp_path)
    reference.lm_head.weight.data = F.normalize(reference.lm_head.weight.data, dim=0)
    changed(tmp_path, norm_head=True)
    assert agrees(tmp_path, reference)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (ling2, {"score_function": "softmax"}, "score_function='softmax'"),
        (pangu_ultra, {"param_sink_number": 128}, "param_sink_number=128"),
        (pangu_ultra, {"sliding_window": 512}, "sliding_window=512"),
    ],
)
def test_variants_that_are_not_built_are_refused(family: Any, changes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        family(SimpleNamespace(**changes))
