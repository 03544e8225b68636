"""Windows cover every parameter once, under the checkpoint's names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import Gemma3TextConfig, GPTNeoXConfig, MixtralConfig, PreTrainedConfig

from vllm.kv_cache.spec import Full, Window
from vllm.layers.linear import Linear, Part
from vllm.layers.placement import Placement
from vllm.layers.transformer import Transformer
from vllm.models.registry import build
from vllm.ops.matrix import Matrix

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}
GEMMA3 = Gemma3TextConfig(
    **SMALL, head_dim=8, num_key_value_heads=2, sliding_window=16, architectures=["Gemma3ForCausalLM"]
)
NEOX = GPTNeoXConfig(**SMALL, architectures=["GPTNeoXForCausalLM"])
MIXTRAL = MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3, architectures=["MixtralForCausalLM"])


def built(config: PreTrainedConfig) -> Transformer:
    return build(config, Placement(torch.bfloat16, CPU), max_model_len=64)


@pytest.mark.parametrize("config", [GEMMA3, NEOX, MIXTRAL], ids=["gemma3", "gpt_neox", "mixtral"])
def test_every_element_of_every_parameter_is_in_one_window(config: PreTrainedConfig) -> None:
    decoder = built(config)
    for window in decoder.windows():
        assert window.place.dtype == torch.bfloat16
        window.place.put(torch.ones(window.place.shape, dtype=torch.bfloat16))
    for matrix in (module for module in decoder.modules() if isinstance(module, Matrix)):
        x = torch.zeros(1, matrix.shape.width, dtype=torch.bfloat16)
        matrix.multiply(x, activation="relu" if matrix.shape.gated else None)  # fails if a part of it is missing
    assert all((parameter == 1).all() for parameter in decoder.parameters())


def test_a_tied_head_has_no_window_and_its_name_is_explained() -> None:
    decoder = built(GEMMA3)
    assert "lm_head.weight" not in {window.name for window in decoder.windows()}
    assert "lm_head.weight" in decoder.ignored_names
    assert "lm_head.weight" not in built(MIXTRAL).ignored_names


def test_each_layer_says_what_memory_it_needs() -> None:
    local, full = Window(2, 8, 8, size=16), Full(2, 8, 8)
    assert built(GEMMA3).cache_specs == (local, local, local, local, local, full, local)


def test_layers_with_the_same_rope_share_a_table() -> None:
    tables = {id(block.attention.rotary) for block in built(GEMMA3).blocks}
    assert len(tables) == 2  # one with a window, one without


@pytest.mark.parametrize("transposed", [False, True])
def test_parts_of_a_fused_tensor_are_cut_before_they_are_copied(transposed: bool) -> None:
    stored = torch.arange(24.0).view(6, 4)  # rows a a b b b b
    parts: Sequence[Part] = (Part("ab", 4, lambda t: t[2:]), Part("ab", 2, lambda t: t[:2]))
    linear = Linear(4, parts, Placement(torch.float32, CPU), bias=True, transposed=transposed)
    for window in linear.windows():
        tensor = stored[:, 0] if window.name.endswith("bias") else stored.T if transposed else stored
        assert window.cut
        window.place.put(window.cut(tensor))
    x = torch.randn(3, 4)
    expected = x @ stored.T + stored[:, 0]
    torch.testing.assert_close(linear(x), torch.cat((expected[:, 2:], expected[:, :2]), 1))
