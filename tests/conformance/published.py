"""Models that transformers has no class for and no other model computes: their mathematics, as published, without a cache."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.conformance.published_kin import KIN
from tests.conformance.published_linears import GROK, MINIMAX, grok, grok_shapes, minimax, minimax_shapes
from tests.conformance.published_longcat import LONGCAT, longcat, longcat_shapes
from tests.conformance.published_loops import LOOPS
from tests.conformance.published_motif import MOTIFS
from tests.conformance.published_parts import attend, rotate
from tests.conformance.published_states import PLAMO2, plamo2, plamo2_shapes
from tests.conformance.published_steps import STEPS
from tests.conformance.tiny import VOCAB

Config = Mapping[str, Any]
Weights = dict[str, Tensor]

WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS, EXPERTS = 64, 4, 2, 16, 48, 4, 4
_ENDS = ("weight", "bias")


@dataclass(frozen=True)
class Written:
    """A model by its mathematics."""

    config: Config
    weights: Weights
    compute: Callable[[Config, Weights, Tensor], Tensor]
    """Of token ids [n], the logits behind each [n, V]"""

    def go_on(self, prompt: list[int], num_tokens: int) -> tuple[list[int], Tensor]:
        """Return the likeliest tokens behind a prompt, and the logits that they were chosen by.  [num_tokens, V]"""
        ids, found = list(prompt), []
        for _ in range(num_tokens):
            found.append(self.compute(self.config, self.weights, torch.tensor(ids))[-1])
            ids.append(int(found[-1].argmax()))
        return ids[len(prompt) :], torch.stack(found)


def save(architecture: str, folder: Path, **changes: Any) -> Written:
    """Write a tiny checkpoint of an architecture, with changes to its config; return what it computes."""
    torch.manual_seed(0)
    config, shapes, compute = MODELS[architecture]
    config = {**config, **changes}
    weights = {name: _random(name, shape) for name, shape in shapes.items()}
    content = {"architectures": [architecture], "model_type": architecture.lower(), "torch_dtype": "float32", **config}
    (folder / "config.json").write_text(json.dumps(content))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return Written(config, weights, compute)


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    noise = torch.randn(shape)
    if len(shape) > 1:
        return noise * 1.6 / math.sqrt(WIDTH)
    return noise * 0.2 + (1.0 if name.endswith(("weight", "scale")) else 0.0)


def _rms(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[f"{name}.weight"]


def _llama_attention(weights: Weights, name: str, x: Tensor) -> Tensor:
    q, k, v = (F.linear(x, weights[f"{name}.{part}_proj.weight"]).unflatten(1, (-1, HEAD_DIM)) for part in "qkv")
    mixed = attend(rotate(q), rotate(k), v, HEAD_DIM**-0.5)
    return F.linear(mixed, weights[f"{name}.o_proj.weight"])


def _gated(weights: Weights, names: tuple[str, str, str], x: Tensor) -> Tensor:
    gate, up, down = (weights[f"{name}.weight"] for name in names)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _llama_shapes(name: str) -> dict[str, tuple[int, ...]]:
    inner, shared = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    sizes = {"q": (inner, WIDTH), "k": (shared, WIDTH), "v": (shared, WIDTH), "o": (WIDTH, inner)}
    norms = {f"{name}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    return {f"{name}.self_attn.{part}_proj.weight": shape for part, shape in sizes.items()} | norms


def _ends() -> dict[str, tuple[int, ...]]:
    names = ("model.embed_tokens", "lm_head")
    return {f"{name}.weight": (VOCAB, WIDTH) for name in names} | {"model.norm.weight": (WIDTH,)}


# ── jais: gpt2 with linear distances and a gate; muP's factors ──────────────────────────────────────────────────────

JAIS: Config = {
    "model_type": "jais",
    "vocab_size": VOCAB, "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS, "n_inner": INNER, "n_positions": 128,
    "activation_function": "swiglu", "position_embedding_type": "alibi", "layer_norm_epsilon": 1e-5,
    "mup_embeddings_scale": 3.0, "mup_output_alpha": 2.0, "mup_width_scale": 0.25, "mup_scale_qk_dot_by_d": True,
}  # fmt: skip


def _jais_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCAB, WIDTH)}
    for layer in range(LAYERS):
        name = f"transformer.h.{layer}"
        for part, width, rows in (
            ("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH), ("mlp.c_fc", WIDTH, INNER),
            ("mlp.c_fc2", WIDTH, INNER), ("mlp.c_proj", INNER, WIDTH),
        ):  # fmt: skip
            shapes |= {f"{name}.{part}.weight": (width, rows), f"{name}.{part}.bias": (rows,)}
        shapes |= {f"{name}.ln_{number}.{end}": (WIDTH,) for number in (1, 2) for end in ("weight", "bias")}
    last = {f"transformer.ln_f.{end}": (WIDTH,) for end in ("weight", "bias")}
    return shapes | last | {"transformer.relative_pe.slopes": (HEADS, 1)}


def jais(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    table = weights["transformer.wte.weight"]
    places = torch.arange(len(ids))
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])  # of four heads
    distances = -slopes[:, None, None] * (places[:, None] - places).abs()
    x = table[ids] * config["mup_embeddings_scale"]
    for layer in range(LAYERS):
        name = f"transformer.h.{layer}"
        parts = linear(f"{name}.attn.c_attn", norm(f"{name}.ln_1", x)).chunk(3, -1)
        q, k, v = (part.unflatten(1, (HEADS, HEAD_DIM)) for part in parts)
        x = x + linear(f"{name}.attn.c_proj", attend(q, k, v, 1 / HEAD_DIM, distances))
        y = norm(f"{name}.ln_2", x)
        x = x + linear(f"{name}.mlp.c_proj", linear(f"{name}.mlp.c_fc", y) * F.silu(linear(f"{name}.mlp.c_fc2", y)))
    return norm("transformer.ln_f", x) @ table.T * config["mup_output_alpha"] * config["mup_width_scale"]


# ── solar: llama whose states go past layers ────────────────────────────────────────────────────────────────────────

_LLAMA: Config = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 128,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
SOLAR: Config = {
    **_LLAMA, "num_hidden_layers": 8, "bskcn_1": [1, 3], "bskcn_3": [2, 6], "bskcn_2": [3], "bskcn_4": [5, 6],
    "bskcn_tv": [0.9, 0.8],
}  # fmt: skip


def _solar_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = _ends()
    for layer in range(8):
        name = f"model.layers.{layer}"
        shapes |= _llama_shapes(name) | {f"{name}.mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (WIDTH, INNER)
    return shapes


def solar(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x, share = weights["model.embed_tokens.weight"][ids], config["bskcn_tv"][1]
    kept: dict[str, Tensor] = {}
    for layer in range(8):
        name = f"model.layers.{layer}"
        kept |= {slot: x for slot in ("1", "2") if layer in config[f"bskcn_{slot}"]}
        for slot, target in (("1", "3"), ("2", "4")):
            if layer in config[f"bskcn_{target}"]:
                x = kept[slot] * share + x * (1 - share)
        x = x + _llama_attention(weights, f"{name}.self_attn", _rms(weights, f"{name}.input_layernorm", x))
        y = _rms(weights, f"{name}.post_attention_layernorm", x)
        x = x + _gated(weights, tuple(f"{name}.mlp.{part}_proj" for part in ("gate", "up", "down")), y)  # type: ignore[arg-type]
    return F.linear(_rms(weights, "model.norm", x), weights["lm_head.weight"])


# ── arctic: experts that read what a layer reads, beside a feed-forward ─────────────────────────────────────────────

ARCTIC: Config = {
    **_LLAMA, "num_hidden_layers": LAYERS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
    "moe_layer_frequency": 1, "parallel_attn_mlp_res": True,
}  # fmt: skip


def _arctic_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = _ends()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= _llama_shapes(name) | {f"{name}.residual_mlp.w{part}.weight": (WIDTH, WIDTH) for part in (1, 2, 3)}
        shapes[f"{name}.residual_layernorm.weight"] = (WIDTH,)
        shapes[f"{name}.block_sparse_moe.gate.weight"] = (EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            own = f"{name}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{own}.w{part}.weight": (WIDTH, INNER) if part == 2 else (INNER, WIDTH) for part in (1, 2, 3)}
    return shapes


def arctic(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    def network(name: str, x: Tensor) -> Tensor:
        return _gated(weights, (f"{name}.w1", f"{name}.w3", f"{name}.w2"), x)

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        y = x + _llama_attention(weights, f"{name}.self_attn", _rms(weights, f"{name}.input_layernorm", x))
        dense = network(f"{name}.residual_mlp", _rms(weights, f"{name}.residual_layernorm", y))
        z = _rms(weights, f"{name}.post_attention_layernorm", x)
        shares, chosen = F.linear(z, weights[f"{name}.block_sparse_moe.gate.weight"]).softmax(-1).topk(2)
        every = torch.stack([network(f"{name}.block_sparse_moe.experts.{expert}", z) for expert in range(EXPERTS)], 1)
        shares = shares / shares.sum(-1, keepdim=True)
        x = y + dense + (every[torch.arange(len(z))[:, None], chosen] * shares[..., None]).sum(1)
    return F.linear(_rms(weights, "model.norm", x), weights["lm_head.weight"])


# ── phi 3 small: heads that see blocks; a bounded gate; muP's factors ───────────────────────────────────────────────

PHI3_SMALL: Config = {
    "model_type": "phi3small",
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "hidden_act": "gegelu", "ff_intermediate_size": INNER, "gegelu_limit": 1.5,
    "layer_norm_epsilon": 1e-5, "max_position_embeddings": 128, "rope_embedding_base": 5000, "rope_position_scale": 1.0,
    "blocksparse_block_size": 8, "blocksparse_num_local_blocks": 2, "blocksparse_vert_stride": 3,
    "blocksparse_homo_head_pattern": False, "dense_attention_every_n_layers": 2, "mup_use_scaling": True,
    "mup_attn_multiplier": 3.0, "mup_embedding_multiplier": 10.0, "mup_width_multiplier": 8.0,
}  # fmt: skip
_PHI3_SMALL_SIZES = {
    "self_attn.query_key_value": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH),
    "self_attn.dense": (WIDTH, HEADS * HEAD_DIM),
    "mlp.up_proj": (2 * INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
    "input_layernorm": (WIDTH,),
    "post_attention_layernorm": (WIDTH,),
}


def _phi3_small_shapes() -> dict[str, tuple[int, ...]]:
    sizes = {
        f"model.layers.{layer}.{part}": size for layer in range(LAYERS) for part, size in _PHI3_SMALL_SIZES.items()
    }
    sizes["model.final_layernorm"] = (WIDTH,)
    shapes = {f"{name}.{end}": size if end == "weight" else size[:1] for name, size in sizes.items() for end in _ENDS}
    return shapes | {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}


def phi3_small(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    blocks = torch.arange(len(ids)) // config["blocksparse_block_size"]
    near = blocks[:, None] - blocks < config["blocksparse_num_local_blocks"]
    stride = config["blocksparse_vert_stride"]
    turn = 0 if config["blocksparse_homo_head_pattern"] else max(1, stride // HEADS)
    far = (blocks + torch.arange(HEADS)[:, None, None] * turn + 1) % stride == 0
    hidden = torch.zeros(HEADS, len(ids), len(ids)).masked_fill(~(near | far), -math.inf)
    x = weights["model.embed_tokens.weight"][ids] * config["mup_embedding_multiplier"]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        mixed = linear(f"{name}.self_attn.query_key_value", norm(f"{name}.input_layernorm", x))
        q, k, v = mixed.unflatten(1, (KV_HEADS, -1, HEAD_DIM)).split((HEADS // KV_HEADS, 1, 1), dim=2)
        q, k, v = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
        bias = hidden if (layer + 1) % config["dense_attention_every_n_layers"] else 0.0
        scale, theta = config["mup_attn_multiplier"] / HEAD_DIM, config["rope_embedding_base"]
        x = x + linear(f"{name}.self_attn.dense", attend(rotate(q, theta), rotate(k, theta), v, scale, bias))
        y = linear(f"{name}.mlp.up_proj", norm(f"{name}.post_attention_layernorm", x))
        gate, up = y[:, ::2].clamp(max=config["gegelu_limit"]), y[:, 1::2]
        up = up.clamp(-config["gegelu_limit"], config["gegelu_limit"])
        x = x + linear(f"{name}.mlp.down_proj", gate * torch.sigmoid(1.702 * gate) * (up + 1))
    logits = F.linear(norm("model.final_layernorm", x), weights["lm_head.weight"])
    return logits / config["mup_width_multiplier"]


MODELS: Mapping[str, tuple[Config, dict[str, tuple[int, ...]], Callable[[Config, Weights, Tensor], Tensor]]] = {
    "ArcticForCausalLM": (ARCTIC, _arctic_shapes(), arctic),
    "Grok1ModelForCausalLM": (GROK, grok_shapes(), grok),
    "JAISLMHeadModel": (JAIS, _jais_shapes(), jais),
    "LongcatFlashNgramForCausalLM": (LONGCAT, longcat_shapes(), longcat),
    "MiniMaxText01ForCausalLM": (MINIMAX, minimax_shapes(), minimax),
    "Phi3SmallForCausalLM": (PHI3_SMALL, _phi3_small_shapes(), phi3_small),
    "Plamo2ForCausalLM": (PLAMO2, plamo2_shapes(), plamo2),
    "SolarForCausalLM": (SOLAR, _solar_shapes(), solar),
    **KIN,
    **LOOPS,
    **MOTIFS,
    **STEPS,
}
