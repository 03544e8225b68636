"""Windows cover every parameter once, under the checkpoint's names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GPTNeoXConfig,
    MixtralConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from vllm import ops
from vllm.kv_cache.spec import Full, Scratch, Window
from vllm.layers.linear import Linear, Part
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.loader.dummy import fill_dummy
from vllm.models.registry import build
from vllm.ops import native
from vllm.ops.matrix import Matrix
from vllm.pooling_params import Pooling

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}
GEMMA3 = Gemma3TextConfig(
    **SMALL, head_dim=8, num_key_value_heads=2, sliding_window=16, architectures=["Gemma3ForCausalLM"]
)
NEOX = GPTNeoXConfig(**SMALL, architectures=["GPTNeoXForCausalLM"])
MPNET = MPNetConfig(**SMALL, pad_token_id=1, architectures=["MPNetModel"])
ROBERTA = RobertaConfig(**SMALL, type_vocab_size=1, architectures=["RobertaModel"])
MIXTRAL = MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3, architectures=["MixtralForCausalLM"])


# what a cut makes something larger of
_STORED = {"relative_attention_bias.weight": (32, 4), "token_type_embeddings.weight": (1, 32)}


def built(config: PreTrainedConfig) -> Transformer:
    pooling = Pooling(("embed",), "CLS") if config.architectures[0].endswith("Model") else None
    return build(config, Placement(torch.bfloat16, CPU), max_model_len=64, pooling=pooling)


@pytest.mark.parametrize(
    "config", [GEMMA3, NEOX, MIXTRAL, MPNET, ROBERTA], ids=["gemma3", "gpt_neox", "mixtral", "mpnet", "roberta"]
)
def test_every_element_of_every_parameter_is_in_one_window(config: PreTrainedConfig) -> None:
    decoder = built(config)
    for window in decoder.windows():
        assert window.place.dtype == torch.bfloat16
        shape = _STORED.get(window.name.rpartition(".embeddings.")[2].rpartition("encoder.")[2], window.place.shape)
        content = torch.ones(shape, dtype=torch.bfloat16)
        window.place.put(content if shape == window.place.shape or window.cut is None else window.cut(content))
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


def test_a_layer_that_sees_both_ways_keeps_nothing() -> None:
    assert set(built(MPNET).cache_specs) == {Scratch(4, 8, 8)}
    assert built(MPNET).whole_prompts and not built(GEMMA3).whole_prompts


def test_layers_share_the_bias_of_distances() -> None:
    decoder = built(MPNET)
    assert len({id(block.attention.learned[0]) for block in decoder.blocks}) == 1
    assert sum("relative_attention_bias" in window.name for window in decoder.windows()) == 1


@pytest.mark.parametrize("config", [MPNET, ROBERTA], ids=["mpnet", "roberta"])
def test_the_entry_of_an_encoder_can_be_recorded(config: PreTrainedConfig) -> None:
    decoder = built(config)
    fill_dummy(decoder.windows())
    ids = [torch.zeros(16, dtype=torch.int64) for _ in range(3)]
    step = Step(*ids, (), (), (), None)  # type: ignore[arg-type]
    program = ops.record(lambda rows: decoder.entry(step.first(rows)), 16)
    if native.library() is None:
        return
    assert program is not None
    ids[0][:5] = torch.tensor([3, 1, 4, 1, 5])
    ids[2][:5] = torch.arange(5)
    found = program.run(5).clone()
    torch.testing.assert_close(found, decoder.entry(step.first(5)))


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
