"""Models that were published with code of their own: their files, against their mathematics written down here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.errors import ModelError
from vllm.layers.position_bias import alibi_slopes
from vllm.layers.transformer import Transformer

HEADS, HEAD_DIM, WIDTH, INNER, LAYERS, VOCABULARY = 4, 8, 32, 48, 2, 96
Weights = dict[str, Tensor]
Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape) * (0.3 if len(shape) > 1 else 0.2)


def linear(name: str, rows: int, width: int, bias: bool = True) -> Weights:
    return {f"{name}.weight": normal(rows, width)} | ({f"{name}.bias": normal(rows)} if bias else {})


def norm(name: str) -> Weights:
    return {f"{name}.weight": 1 + normal(WIDTH), f"{name}.bias": normal(WIDTH)}


def write(folder: Path, weights: Weights, **config: Any) -> None:
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def apply(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def apply_norm(weights: Weights, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    q, k, v = (x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM) + bias
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """[n, H E] by halves of each head."""
    heads = x.unflatten(-1, (HEADS, HEAD_DIM))
    angles = torch.arange(len(x)).float()[:, None, None] * frequencies
    low, high = heads.chunk(2, dim=-1)
    turned = (low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin())
    return torch.cat(turned, dim=-1).flatten(1)


GTE_CONFIG: dict[str, Any] = {
    "architectures": ["NewModel"],
    "auto_map": {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"},
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 64,
    "model_type": "new",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pack_qkv": True,
    "pad_token_id": 1,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 20000,
    "torch_dtype": "float32",
    "type_vocab_size": 1,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
    "vocab_size": VOCABULARY,
}


def gte_weights() -> Weights:
    weights = linear("embeddings.word_embeddings", VOCABULARY, WIDTH, bias=False)
    weights |= linear("embeddings.token_type_embeddings", 1, WIDTH, bias=False) | norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        weights |= linear(f"{name}.attention.qkv_proj", 3 * WIDTH, WIDTH)
        weights |= linear(f"{name}.attention.o_proj", WIDTH, WIDTH)
        weights |= linear(f"{name}.mlp.up_gate_proj", 2 * INNER, WIDTH, bias=False)
        weights |= linear(f"{name}.mlp.down_proj", WIDTH, INNER) | norm(f"{name}.attn_ln") | norm(f"{name}.mlp_ln")
    return weights


def gte_states(weights: Weights, ids: Tensor, factor: float) -> Tensor:
    base = 20000 * factor
    frequencies = base ** -(torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM) / factor ** (2 / HEAD_DIM)
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = apply_norm(weights, "embeddings.LayerNorm", x)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = apply(weights, f"{name}.attention.qkv_proj", x).chunk(3, dim=-1)
        mixed = attend(rotate(q, frequencies), rotate(k, frequencies), v)
        x = apply_norm(weights, f"{name}.attn_ln", x + apply(weights, f"{name}.attention.o_proj", mixed))
        up, gate = apply(weights, f"{name}.mlp.up_gate_proj", x).chunk(2, dim=-1)
        x = apply_norm(weights, f"{name}.mlp_ln", x + apply(weights, f"{name}.mlp.down_proj", up * F.gelu(gate)))
    return x


@pytest.mark.parametrize("architecture", ["NewModel", "GteNewModel"])
@pytest.mark.parametrize("scaling", [{"factor": 8.0, "type": "ntk"}, None])
def test_gte_as_its_authors_published_it(
    architecture: str, scaling: Any, load: Load, states: Compute, tmp_path: Path
) -> None:
    weights = gte_weights()
    write(tmp_path, weights, **{**GTE_CONFIG, "architectures": [architecture], "rope_scaling": scaling})
    ids = torch.randint(3, VOCABULARY, (40,))
    expected = gte_states(weights, ids, 8.0 if scaling else 1.0)
    assert difference(states(load(tmp_path), [ids])[0], expected) < 1e-4


def test_gte_scores_as_its_authors_published_it(load: Load, pool: Compute, tmp_path: Path) -> None:
    body = gte_weights()
    head = linear("new.pooler.dense", WIDTH, WIDTH) | linear("classifier", 1, WIDTH)
    config = {**GTE_CONFIG, "architectures": ["NewForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    write(tmp_path, {f"new.{name}": tensor for name, tensor in body.items()} | head, **config)
    ids = torch.randint(3, VOCABULARY, (20,))
    pooled = apply(head, "new.pooler.dense", gte_states(body, ids, 8.0)[0]).tanh()
    assert difference(pool(load(tmp_path), [ids])[0], apply(head, "classifier", pooled).sigmoid()) < 1e-4


JINA_CONFIG: dict[str, Any] = {
    "architectures": ["JinaBertForMaskedLM"],
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "model_type": "bert",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "position_embedding_type": "alibi",
    "type_vocab_size": 2,
    "vocab_size": VOCABULARY,
}


def jina_weights() -> Weights:
    weights = linear("embeddings.word_embeddings", VOCABULARY, WIDTH, bias=False)
    weights |= linear("embeddings.token_type_embeddings", 2, WIDTH, bias=False) | norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            weights |= linear(f"{name}.attention.self.{part}", WIDTH, WIDTH)
        weights |= linear(f"{name}.attention.output.dense", WIDTH, WIDTH) | norm(f"{name}.attention.output.LayerNorm")
        weights |= linear(f"{name}.mlp.gated_layers", 2 * INNER, WIDTH, bias=False)
        weights |= linear(f"{name}.mlp.wo", WIDTH, INNER) | norm(f"{name}.mlp.layernorm")
    return weights


def jina_states(weights: Weights, ids: Tensor) -> Tensor:
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])  # of four heads
    places = torch.arange(len(ids))
    bias = -slopes[:, None, None] * (places[:, None] - places).abs()
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = apply_norm(weights, "embeddings.LayerNorm", x)
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (apply(weights, f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = apply(weights, f"{name}.attention.output.dense", attend(q, k, v, bias))
        x = apply_norm(weights, f"{name}.attention.output.LayerNorm", x + mixed)
        gate, up = apply(weights, f"{name}.mlp.gated_layers", x).chunk(2, dim=-1)
        x = apply_norm(weights, f"{name}.mlp.layernorm", x + apply(weights, f"{name}.mlp.wo", F.gelu(gate) * up))
    return x


@pytest.mark.parametrize("architecture", ["JinaBertForMaskedLM", "JinaBertModel"])
def test_jina_embeddings_v2(architecture: str, load: Load, pool: Compute, tmp_path: Path) -> None:
    weights = jina_weights()
    write(tmp_path, weights, **{**JINA_CONFIG, "architectures": [architecture]})
    ids = torch.randint(3, VOCABULARY, (40,))
    mean = jina_states(weights, ids).mean(0)
    assert difference(pool(load(tmp_path), [ids])[0], mean / mean.norm()) < 1e-4


def test_slopes_of_twelve_heads_are_those_of_the_paper() -> None:
    """Those of 8 heads, then every other one of 16."""
    expected = [2.0 ** -(head + 1) for head in range(8)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(expected))


@pytest.mark.parametrize("written", [{"rotary_emb_base": 20000.0}, {}])
def test_an_xlm_roberta_with_rotary_positions_is_built_like_jina_v3(
    written: dict[str, float], load: Load, states: Compute, spread: Callable[..., Any], tmp_path: Path
) -> None:
    import transformers

    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    known = transformers.JinaEmbeddingsV3Config(
        **sizes,
        **tokens,
        intermediate_size=INNER,
        max_position_embeddings=66,
        rope_parameters={"rope_type": "default", "rope_theta": written.get("rotary_emb_base", 10000.0)},
    )
    theirs = spread(transformers.JinaEmbeddingsV3Model(known))
    theirs.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content |= {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", **written}
    del content["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**content, "position_embedding_type": "rotary"}))
    ids = torch.randint(3, VOCABULARY, (30,))
    assert difference(states(load(tmp_path), [ids])[0], theirs(ids[None]).last_hidden_state[0]) < 1e-4


NOMIC_CONFIG: dict[str, Any] = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "causal": False,
    "layer_norm_epsilon": 1e-9,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_layer": LAYERS,
    "n_positions": 64,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 700,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": VOCABULARY,
}


def nomic_model(spread: Callable[..., Any]) -> Any:
    import transformers

    config = transformers.NomicBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=64,
        layer_norm_eps=1e-9,
        rope_parameters={"rope_type": "default", "rope_theta": 700.0},
    )
    return spread(transformers.NomicBertModel(config))


def test_nomic_bert_as_its_authors_describe_it(
    load: Load, states: Compute, spread: Callable[..., Any], tmp_path: Path
) -> None:
    theirs = nomic_model(spread)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(NOMIC_CONFIG))
    ids = torch.randint(3, VOCABULARY, (30,))
    assert difference(states(load(tmp_path), [ids])[0], theirs(ids[None]).last_hidden_state[0]) < 1e-4


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (NOMIC_CONFIG, {"num_experts": 8}, "num_experts=8 is not supported for nomic_bert"),
        (NOMIC_CONFIG, {"rotary_scaling_factor": 2}, "rotary_scaling_factor=2 is not supported"),
        (GTE_CONFIG, {"logn_attention_scale": True}, "logn_attention_scale=True is not supported"),
        (JINA_CONFIG, {"position_embedding_type": "absolute"}, "position_embedding_type='absolute'.*only 'alibi' is"),
        (JINA_CONFIG, {"feed_forward_type": "original"}, "feed_forward_type='original'.*geglu, reglu"),
        (JINA_CONFIG, {"architectures": ["BertModel"]}, "position_embedding_type='alibi'.*only 'absolute' is"),
        (GTE_CONFIG, {"rope_scaling": {"type": "ntk"}}, "rope_type='ntk' needs 'factor'"),
    ],
)
def test_variants_that_were_never_built_are_refused(
    config: dict[str, Any], change: dict[str, Any], message: str, load: Load, tmp_path: Path
) -> None:
    write(tmp_path, {"x": torch.zeros(1)}, **{**config, **change})
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("architecture", ["LlamaBidirectionalModel", "LlamaEncoderModel", "LlamaBiModel"])
def test_a_llama_whose_name_says_it_sees_both_ways(
    architecture: str, load: Load, states: Compute, spread: Callable[..., Any], tmp_path: Path
) -> None:
    import transformers

    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=INNER, is_causal=False)
    theirs = spread(transformers.LlamaModel._from_config(config, attn_implementation="eager"))
    theirs.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [architecture]}
    del content["is_causal"]
    if architecture == "LlamaBidirectionalModel":
        content |= {"model_type": "llama_bidirec", "pooling": "avg"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    ids = torch.randint(3, VOCABULARY, (20,))
    assert difference(states(load(tmp_path), [ids])[0], theirs(ids[None]).last_hidden_state[0]) < 1e-4
