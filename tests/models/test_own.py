"""Architectures of one's own: registered by hand, each way, and refused by name where they are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from vllm import ModelRegistry
from vllm.errors import ConfigError, ModelError
from vllm.layers.placement import Placement
from vllm.layers.transformer import Transformer
from vllm.loader.config import read_config
from vllm.models import registry
from vllm.models.build import build_transformer
from vllm.models.families.llama import llama
from vllm.models.registry import build, find
from vllm.pooling_params import Pooling

CPU = Placement(torch.float32, torch.device("cpu"))
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
}


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def config(name: str, **fields: Any) -> LlamaConfig:
    return LlamaConfig(**SMALL, architectures=[name], **fields)


class OwnModule(Transformer):
    """Llama's modules under another name."""

    def __init__(self, config: Any, placement: Placement, max_model_len: int) -> None:
        like = build_transformer(llama(config), placement, max_model_len)
        super().__init__(like.entry, list(like.blocks), like.norm, like.head, ignored_names=(), base_prefix="model.")


@pytest.mark.parametrize("definition", [llama, "vllm.models.families.llama:llama", OwnModule, f"{__name__}:OwnModule"])
def test_a_definition_may_be_a_spec_or_a_module_and_either_by_name(definition: Any) -> None:
    ModelRegistry.register_model("OwnForCausalLM", definition)
    assert "OwnForCausalLM" in ModelRegistry.get_supported_archs()
    model = build(config("OwnForCausalLM"), CPU, max_model_len=16)
    assert "model.layers.0.self_attn.q_proj.weight" in {window.name for window in model.windows()}


def test_a_spec_has_the_other_heads_too() -> None:
    ModelRegistry.register_model("OwnForCausalLM", llama)
    found = find(config("OwnForSequenceClassification"))
    assert (found.base, found.head, found.body) == ("Own", "classify", llama)
    pooling = Pooling(("embed",), "LAST")
    assert build(config("OwnModel"), CPU, 16, pooling).head is not None


def test_what_is_registered_goes_before_what_is_ours() -> None:
    ModelRegistry.register_model("LlamaForCausalLM", OwnModule)
    assert isinstance(build(config("LlamaForCausalLM"), CPU, 16), OwnModule)


@pytest.mark.parametrize("definition", ["no colon", "package:", ":name", "a b:c", 3, None])
def test_what_can_be_no_definition_is_refused_at_once(definition: Any) -> None:
    with pytest.raises(ConfigError, match="package.module:name"):
        ModelRegistry.register_model("OwnForCausalLM", definition)
    assert not registry._registered


@pytest.mark.parametrize("definition", ["no_such_package:own", "vllm.models.families.llama:no_such_name"])
def test_what_cannot_be_imported_is_named(definition: str) -> None:
    ModelRegistry.register_model("OwnForCausalLM", definition)
    with pytest.raises(ModelError, match=f"OwnForCausalLM: {definition} cannot be imported"):
        build(config("OwnForCausalLM"), CPU, 16)


def test_what_a_definition_must_give_is_said() -> None:
    ModelRegistry.register_model("OwnForCausalLM", lambda config: {"layers": 3})
    with pytest.raises(ModelError, match="returned a dict instead of a TransformerSpec"):
        build(config("OwnForCausalLM"), CPU, 16)

    class Bare(nn.Module):
        def __init__(self, *_: Any) -> None:
            super().__init__()

    ModelRegistry.register_model("OwnForCausalLM", Bare)
    with pytest.raises(ModelError, match="Bare is no subclass of .*Transformer"):
        build(config("OwnForCausalLM"), CPU, 16)


def test_a_module_generates_and_does_not_pool() -> None:
    ModelRegistry.register_model("OwnForCausalLM", OwnModule)
    with pytest.raises(ModelError, match="is a module of its own .* describe it by a TransformerSpec"):
        build(config("OwnForCausalLM"), CPU, 16, Pooling(("embed",), "LAST"))


def test_a_near_name_is_offered() -> None:
    ModelRegistry.register_model("TidalForCausalLM", llama)
    with pytest.raises(ModelError, match="Did you mean 'TidalForCausalLM'"):
        find(config("TidelForCausalLM"))


def test_a_model_type_that_nobody_knows_is_taken_as_it_stands_for_an_own_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "own", "architectures": ["OwnForCausalLM"], "depth": 3}')
    assert read_config(tmp_path, own_architectures=["OwnForCausalLM"]).depth == 3
    with pytest.raises(ModelError, match="'own' is not known to transformers .* must be registered"):
        read_config(tmp_path)
    with pytest.raises(ConfigError, match="hf_overrides has 'width'"):
        read_config(tmp_path, own_architectures=["OwnForCausalLM"], hf_overrides={"width": 1})
