"""What cannot work is refused by name, with the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, MobileBertConfig, OPTConfig, RemBertConfig

from vllm.errors import ConfigError, ModelError
from vllm.layers.placement import Placement
from vllm.models.registry import build, find
from vllm.pooling_params import Pooling

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 96,
    "architectures": ["LlamaForCausalLM"],
}


def build_llama(**fields: Any) -> None:
    build(LlamaConfig(**{**SMALL, **fields}), Placement(torch.float32, CPU), max_model_len=16)


def test_an_unknown_architecture_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match=r"LamaForCausalLM.*Did you mean 'LlamaForCausalLM'\?"):
        build_llama(architectures=["LamaForCausalLM"])


def test_a_config_without_architectures_is_refused() -> None:
    with pytest.raises(ModelError, match="names no architecture"):
        build_llama(architectures=None)


def test_the_first_known_architecture_is_taken() -> None:
    build_llama(architectures=["SomethingElse", "LlamaForCausalLM"])


def test_quantized_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="quantization_config"):
        build_llama(quantization_config={"quant_method": "awq", "bits": 4})


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'mish' is not supported; use one of silu"):
        build_llama(hidden_act="mish")


def test_an_unknown_rope_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"rope_type='yarm'.*Did you mean 'yarn'\?"):
        build_llama(rope_parameters={"rope_type": "yarm", "rope_theta": 1e4})


def test_heads_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ModelError, match="4 attention heads cannot share 3"):
        build_llama(num_key_value_heads=3)


def test_more_positions_than_were_learned_are_refused() -> None:
    gpt2 = GPT2Config(
        n_embd=32,
        n_layer=1,
        n_head=4,
        n_positions=64,
        vocab_size=96,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["GPT2LMHeadModel"],
    )
    opt = OPTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        ffn_dim=48,
        vocab_size=96,
        max_position_embeddings=64,
        architectures=["OPTForCausalLM"],
    )
    for config in (gpt2, opt):
        build(config, Placement(torch.float32, CPU), max_model_len=64)
        with pytest.raises(ConfigError, match="max_model_len=65.*use at most 64"):
            build(config, Placement(torch.float32, CPU), max_model_len=65)


@pytest.mark.parametrize(
    ("name", "base", "head", "both_ways"),
    [
        ("BertModel", "Bert", "embed", False),
        ("Data2VecTextModel", "Data2VecText", "embed", False),
        ("Gemma3TextModel", "Gemma3", "embed", False),
        ("Gemma3TextForSequenceClassification", "Gemma3", "classify", False),
        ("GPT2ForSequenceClassification", "GPT2", "classify", False),
        ("LlamaBidirectionalForSequenceClassification", "Llama", "classify", True),
        ("MistralEncoderModel", "Mistral", "embed", True),
        ("Qwen2ForProcessRewardModel", "Qwen2", "process_reward", False),
        ("XLMRobertaXLForMaskedLM", "XLMRobertaXL", "embed", False),
    ],
)
def test_a_name_is_a_base_and_a_head(name: str, base: str, head: str, both_ways: bool) -> None:
    found = find(LlamaConfig(**{**SMALL, "architectures": [name]}))
    assert (found.name, found.base, found.head, found.both_ways) == (name, base, head, both_ways)


@pytest.mark.parametrize(
    "name", ["BertLMHeadModel", "Model", "ForSequenceClassification", "Blip2ForConditionalGenerations"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="are not supported"):
        find(LlamaConfig(**{**SMALL, "architectures": [name]}))


def test_a_model_that_sees_both_ways_does_not_generate() -> None:
    with pytest.raises(ModelError, match="its tokens see those behind them, so it can't generate"):
        build_llama(is_causal=False)


def test_quantizing_an_encoder_of_transformers_is_refused() -> None:
    config = RemBertConfig(**{**SMALL, "architectures": ["RemBertModel"]}, input_embedding_size=16)
    pooling = Pooling(("embed",), "CLS")
    placement = Placement(torch.float32, CPU, "int8")
    with pytest.raises(ConfigError, match="quantization='int8' can't be used with RemBert"):
        build(config, placement, 16, pooling)


def test_an_encoder_whose_head_is_not_known_embeds_only() -> None:
    config = MobileBertConfig(
        **{**SMALL, "architectures": ["MobileBertForSequenceClassification"]},
        embedding_size=16,
        intra_bottleneck_size=16,
        true_hidden_size=16,
    )
    with pytest.raises(ModelError, match="the head that classifies is not known for MobileBert.*task='embed'"):
        build(config, Placement(torch.float32, CPU), 16, Pooling(("classify",), "CLS", num_labels=2))


def test_models_that_see_the_future_or_an_encoder_are_refused() -> None:
    both_ways = Gemma2Config(**{**SMALL, "architectures": ["Gemma2ForCausalLM"]}, use_bidirectional_attention=True)
    with pytest.raises(ModelError, match="use_bidirectional_attention"):
        build(both_ways, Placement(torch.float32, CPU), max_model_len=16)
    crossed = GPT2Config(
        n_embd=32,
        n_layer=1,
        n_head=4,
        vocab_size=96,
        add_cross_attention=True,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["GPT2LMHeadModel"],
    )
    with pytest.raises(ModelError, match="add_cross_attention"):
        build(crossed, Placement(torch.float32, CPU), max_model_len=16)
