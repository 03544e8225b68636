"""One row per architecture and variant: a tiny checkpoint of each gives the logits that transformers gives, and the
very same bits however the prompt is cut into steps and whatever runs beside it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.conformance import era, published
from vllm.layers.placement import Placement
from vllm.layers.rotary import Unstretched
from vllm.layers.transformer import Transformer
from vllm.models import families
from vllm.models.build import build_transformer
from vllm.models.registry import ARCHITECTURES, build, spec_of
from vllm.models.spec import AttentionSpec, HeadSpec, TransformerSpec

CPU = torch.device("cpu")
LENGTH = 40
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN_HEADS = {"num_key_value_heads": None, "head_dim": None}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 96}
OPT = {**OWN_HEADS, "intermediate_size": None, "ffn_dim": 48}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_hidden_layers": 3}


def rope(kind: str, **fields: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


LONG_ROPE = {
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 2.0, 3.0, 5.0],
    "original_max_position_embeddings": 16,
}
PHI3 = {"head_dim": None, "original_max_position_embeddings": 16}
TYPES = ["full_attention", "sliding_attention", "full_attention"]

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "cohere": ("cohere", {}),
    "cohere, norms of heads": ("cohere", {"use_qk_norm": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, own heads": ("llama", OWN_HEADS),
    "llama, one kv head of odd width": ("llama", {"num_key_value_heads": 1, "head_dim": 18}),
    "llama, gelu": ("llama", {"hidden_act": "gelu"}),
    "llama, linear rope": ("llama", rope("linear", factor=4.0)),
    "llama, dynamic rope": ("llama", {**rope("dynamic", factor=4.0), "max_position_embeddings": 16}),
    "llama, yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama, yarn, all parameters": (
        "llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            attention_factor=1.3,
            beta_fast=4.0,
            beta_slow=0.5,
            truncate=False,
        ),
    ),
    "llama, yarn, mscale": (
        "llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.4),
    ),
    "llama, long rope": ("llama", rope("longrope", **LONG_ROPE)),
    "llama, long rope, attention factor": ("llama", rope("longrope", **LONG_ROPE, attention_factor=1.4)),
    "llama, long rope, short": ("llama", rope("longrope", **{**LONG_ROPE, "original_max_position_embeddings": 64})),
    "llama, llama3 rope": (
        "llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen2, tied": ("qwen2", {"head_dim": None, "tie_word_embeddings": True}),
    "qwen2, window on the last layers": (
        "qwen2",
        {"head_dim": None, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen2, layer types": (
        "qwen2",
        {
            "head_dim": None,
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": TYPES,
            "num_hidden_layers": 3,
        },
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, bias, window": (
        "qwen3",
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "phi3": ("phi3", {"head_dim": None}),
    "phi3, window": ("phi3", {"head_dim": None, "sliding_window": 6}),
    "phi3, partial rotary": ("phi3", {"head_dim": None, **rope("default", partial_rotary_factor=0.5)}),
    "phi3, long rope": ("phi3", {**PHI3, **rope("longrope", **LONG_ROPE)}),
    "gemma": ("gemma", {}),
    "gemma, biases": ("gemma", {"attention_bias": True}),
    "gemma2": ("gemma2", {"sliding_window": 5, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0}),
    "gemma2, no caps": (
        "gemma2",
        {"sliding_window": 5, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("gemma3_text", {"sliding_window": 5, "query_pre_attn_scalar": 12, "num_hidden_layers": 7}),
    "gemma3, layer types, scaled rope": (
        "gemma3_text",
        {
            "sliding_window": 6,
            "num_hidden_layers": 3,
            "layer_types": TYPES,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2, layer scales, inner width, untied": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40, "tie_word_embeddings": False},
    ),
    "gpt2, no scale": ("gpt2", {"scale_attn_weights": False}),
    "opt": ("opt", OPT),
    "opt, 350m": ("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "opt, no final norm": ("opt", {**OPT, "_remove_final_layer_norm": True}),
    "opt, no biases, plain norms": ("opt", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "opt, untied": ("opt", {**OPT, "tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", OWN_HEADS),
    "gpt_neox, one after the other": ("gpt_neox", {**OWN_HEADS, "use_parallel_residual": False}),
    "gpt_neox, no bias, whole heads": (
        "gpt_neox",
        {**OWN_HEADS, "attention_bias": False, **rope("default", partial_rotary_factor=1.0)},
    ),
    "gpt_neox, an odd number rotated": ("gpt_neox", {**OWN_HEADS, "rotary_pct": 0.45}),
    "gpt_neox, tied": ("gpt_neox", {**OWN_HEADS, "tie_word_embeddings": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral, window": ("mixtral", {"num_local_experts": 3, "sliding_window": 5}),
    "qwen3_moe": ("qwen3_moe", {**MOE, "decoder_sparse_step": 2}),
    "qwen3_moe, renormalized, dense layers, window": (
        "qwen3_moe",
        {
            **MOE,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
        },
    ),
}


def tiny_config(name: str) -> PreTrainedConfig:
    model_type, fields = CASES[name]
    base = GPT2 if model_type == "gpt2" else SMALL
    given = {field: value for field, value in {**base, **fields}.items() if value is not None}
    config = AutoConfig.for_model(model_type, **given)
    for field in fields:  # None on purpose; a class's default may be something else
        if fields[field] is None and field not in base:
            setattr(config, field, None)
    return config


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


Pair = tuple[PreTrainedModel, Transformer]
Compute = Callable[..., list[Tensor]]


@pytest.fixture
def pair(spread: Callable[..., Any], fill: Callable[..., None], tmp_path: Path) -> Callable[..., Pair]:
    """Make the tiny transformers model of a case, save it, and load it into a decoder of ours."""

    def pair(
        name: str,
        dtype: torch.dtype = torch.float32,
        change: Callable[[TransformerSpec], TransformerSpec] = lambda spec: spec,
    ) -> Pair:
        model = spread(AutoModelForCausalLM.from_config(tiny_config(name), attn_implementation="eager"))
        model.save_pretrained(tmp_path)
        decoder = build_transformer(change(spec_of(model.config)), Placement(dtype, CPU), max_model_len=LENGTH)
        fill(decoder, tmp_path)
        return model, decoder

    return pair


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_gives_the_logits_of_transformers_in_any_steps(
    name: str, pair: Callable[..., Pair], compute: Compute
) -> None:
    model, decoder = pair(name)
    prompt, other = torch.randint(3, 96, (LENGTH,)), torch.randint(3, 96, (23,))
    alone = compute(decoder, [prompt])[0]
    assert difference(alone, model(prompt[None], use_cache=False).logits[0]) < 1e-4
    for chunk in (1, 7, 16):
        assert torch.equal(compute(decoder, [other, prompt], chunk)[1], alone), f"chunks of {chunk}"


def test_every_architecture_is_examined() -> None:
    """Here, or by the conformance suite."""
    covered = {type(AutoModelForCausalLM.from_config(tiny_config(name))).__name__ for name in CASES}
    by_suite = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *era.FORMATS, *era.ALIASES, *published.MODELS}
    assert set(ARCHITECTURES) - covered - by_suite == set()


def every_attention(spec: TransformerSpec, change: Callable[[AttentionSpec], dict[str, Any]]) -> TransformerSpec:
    layers = (replace(layer, mixer=replace(layer.attention, **change(layer.attention))) for layer in spec.layers)
    return replace(spec, layers=tuple(layers))


def plain_rope(attention: AttentionSpec) -> dict[str, Any]:
    assert attention.rope
    return {"rope": replace(attention.rope, stretch=Unstretched())}


def one_rope(spec: TransformerSpec) -> TransformerSpec:
    return every_attention(spec, lambda attention: {"rope": spec.layers[-1].attention.rope})


MUTATIONS: dict[str, Callable[[TransformerSpec], TransformerSpec]] = {
    "scale": lambda spec: every_attention(spec, lambda attention: {"scale": attention.scale * 1.01}),
    "window": lambda spec: every_attention(spec, lambda attention: {"window": None}),
    "wider window": lambda spec: every_attention(
        spec, lambda attention: {"window": attention.window and attention.window + 1}
    ),
    "softcap": lambda spec: every_attention(spec, lambda attention: {"softcap": 0.0}),
    "rope": lambda spec: every_attention(spec, plain_rope),
    "one rope": one_rope,
    "norm offset": lambda spec: replace(spec, norm=replace(spec.norm, offset=0.0)),
    "eps": lambda spec: replace(spec, norm=replace(spec.norm, eps=1e-2)),
    "embed scale": lambda spec: replace(spec, entry=replace(spec.entry, scale=1.0)),
    "logit softcap": lambda spec: replace(spec, head=HeadSpec()),
    "positions": lambda spec: replace(
        spec,
        entry=replace(spec.entry, positions=spec.entry.positions and replace(spec.entry.positions, offset=0, count=66)),
    ),
    "block": lambda spec: replace(spec, layers=tuple(replace(layer, block="pre") for layer in spec.layers)),
}


@pytest.mark.parametrize(
    "name, mutation",
    [
        ("llama", "scale"),
        ("llama", "eps"),
        ("mistral, window", "window"),
        ("mistral, window", "wider window"),
        ("phi3, window", "window"),
        ("qwen2, window on the last layers", "window"),
        ("gemma2", "window"),
        ("gemma2", "softcap"),
        ("gemma2", "logit softcap"),
        ("gemma", "norm offset"),
        ("gemma", "embed scale"),
        ("gemma3", "one rope"),
        ("gemma3, layer types, scaled rope", "rope"),
        ("mixtral, window", "window"),
        ("opt", "positions"),
        ("opt, 350m", "block"),
        ("gpt_neox", "block"),
        *(
            (name, "rope")
            for name, (_, fields) in CASES.items()
            if name.endswith("rope") and "rope_parameters" in fields
        ),
        *((name, "rope") for name in CASES if "yarn" in name or "long rope" in name),
    ],
)
def test_a_changed_spec_breaks_the_equality(
    name: str, mutation: str, pair: Callable[..., Pair], compute: Compute
) -> None:
    model, decoder = pair(name, change=MUTATIONS[mutation])
    prompt = torch.randint(3, 96, (LENGTH,))
    assert difference(compute(decoder, [prompt])[0], model(prompt[None], use_cache=False).logits[0]) > 5e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", ["llama, biases", "phi3, long rope", "gemma2", "gemma3", "gpt2", "opt, 350m", "gpt_neox", "qwen3_moe"]
)
def test_half_precision_gives_the_same_bits_in_any_steps(
    name: str, dtype: torch.dtype, pair: Callable[..., Pair], compute: Compute
) -> None:
    model, decoder = pair(name, dtype)
    prompt, other = torch.randint(3, 96, (LENGTH,)), torch.randint(3, 96, (23,))
    alone = compute(decoder, [prompt])[0]
    assert alone.dtype == torch.float32
    theirs = model.to(dtype)(prompt[None], use_cache=False).logits[0]
    assert difference(alone, theirs) < (0.3 if dtype == torch.bfloat16 else 0.05)
    for chunk in (1, 7, 16):
        assert torch.equal(compute(decoder, [other, prompt], chunk)[1], alone), f"chunks of {chunk}"


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama, tied"])
def test_a_checkpoint_of_the_bare_model_lacks_only_the_base_prefix(
    name: str, pair: Callable[..., Pair], fill: Callable[..., None], compute: Compute, tmp_path: Path
) -> None:
    model, decoder = pair(name)
    prompt = torch.randint(3, 96, (LENGTH,))
    expected = compute(decoder, [prompt])[0]
    again = build(model.config, Placement(torch.float32, CPU), max_model_len=LENGTH)
    model.base_model.save_pretrained(tmp_path / "bare")
    fill(again, tmp_path / "bare")
    assert torch.equal(compute(again, [prompt])[0], expected)


def test_a_family_is_short() -> None:
    """What makes a family differ can be seen at a glance: at most 15 lines a function, and 400 a file."""
    for file in sorted(Path(families.__file__).parent.glob("*.py")):
        text = file.read_text("utf-8")
        assert len(text.splitlines()) <= 400, file.name
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        long = [f.name for f in functions if f.end_lineno is not None and f.end_lineno - f.lineno >= 15]
        assert not long, f"{file.name}: {long}"
