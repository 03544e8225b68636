"""Folders as well-known encoders were published: older fields of config.json, older names and tensors nobody needs.

Each entry has the form of the named repository's files with small numbers in it; transformers reads the same config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig

from vllm.layers.transformer import Transformer

Weights = dict[str, Tensor]
Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]

BERT: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.8.2",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 96,
}
ROBERTA: dict[str, Any] = {
    **BERT,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "output_past": True,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
DECODER: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float32",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "vocab_size": 96,
}


def as_it_is(weights: Weights) -> Weights:
    return weights


def older_norms(weights: Weights) -> Weights:
    """Name the parts of norms as the first converters from TensorFlow did."""
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def older(name: str) -> str:
        return next((name.removesuffix(end) + ends[end] for end in ends if name.endswith(end)), name)

    return {older(name): tensor for name, tensor in weights.items()}


def with_tensors(**shapes: tuple[int, ...]) -> Callable[[Weights], Weights]:
    """Add tensors of zeros; two underscores stand for a dot."""
    more = {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}
    return lambda weights: weights | more


def with_positions(prefix: str) -> Callable[[Weights], Weights]:
    """Add the numbers of positions, which used to be saved, and a pooler that was never trained."""
    numbers = {f"{prefix}embeddings.position_ids": torch.arange(64)[None]}
    pooler = {f"{prefix}pooler.dense.weight": torch.zeros(32, 32), f"{prefix}pooler.dense.bias": torch.zeros(32)}
    return lambda weights: weights | numbers | pooler


@dataclass(frozen=True)
class Published:
    """What a repository holds, with small numbers."""

    model_type: str
    architecture: str
    config: dict[str, Any]
    weights: Callable[[Weights], Weights] = as_it_is
    made_as: str = ""
    """The class of transformers that has these weights, where that isn't the architecture."""
    more: dict[str, Any] = field(default_factory=dict)
    """Entries of config.json that transformers must not see."""


CASES = {
    "google-bert/bert-base-uncased": Published("bert", "BertForMaskedLM", BERT, older_norms),
    "sentence-transformers/all-MiniLM-L6-v2": Published("bert", "BertModel", BERT, with_positions("")),
    "BAAI/bge-base-en-v1.5": Published(
        "bert",
        "BertModel",
        {**BERT, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "classifier_dropout": None},
        with_positions(""),
    ),
    "google-bert/bert-base-uncased, pretraining": Published("bert", "BertForPreTraining", BERT, older_norms),
    "BAAI/bge-m3": Published("xlm-roberta", "XLMRobertaModel", {**ROBERTA, "classifier_dropout": None}),
    "intfloat/multilingual-e5-large": Published("xlm-roberta", "XLMRobertaModel", ROBERTA, with_positions("")),
    "FacebookAI/roberta-base": Published("roberta", "RobertaForMaskedLM", ROBERTA, with_positions("roberta.")),
    "dangvantuan/sentence-camembert-base": Published("camembert", "CamembertModel", ROBERTA, with_positions("")),
    "sentence-transformers/all-mpnet-base-v2": Published(
        "mpnet",
        "MPNetForMaskedLM",
        {**ROBERTA, "relative_attention_num_buckets": 32},
        with_positions(""),
        made_as="MPNetModel",
    ),
    "sentence-transformers/distiluse-base-multilingual-cased-v2": Published(
        "distilbert",
        "DistilBertModel",
        {
            "activation": "gelu",
            "attention_dropout": 0.1,
            "dim": 32,
            "dropout": 0.1,
            "hidden_dim": 48,
            "initializer_range": 0.02,
            "max_position_embeddings": 64,
            "n_heads": 4,
            "n_layers": 2,
            "output_hidden_states": True,
            "output_past": True,
            "pad_token_id": 0,
            "qa_dropout": 0.1,
            "seq_classif_dropout": 0.2,
            "sinusoidal_pos_embds": False,
            "tie_weights_": True,
            "vocab_size": 96,
        },
    ),
    "google/electra-small-discriminator": Published(
        "electra",
        "ElectraForPreTraining",
        {
            **BERT,
            "embedding_size": 16,
            "summary_activation": "gelu",
            "summary_last_dropout": 0.1,
            "summary_type": "first",
            "summary_use_proj": True,
        },
        with_tensors(electra__embeddings__position_ids=(1, 64)),
    ),
    "Alibaba-NLP/gte-modernbert-base": Published(
        "modernbert",
        "ModernBertModel",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "classifier_activation": "gelu",
            "classifier_bias": False,
            "classifier_dropout": 0.0,
            "classifier_pooling": "mean",
            "cls_token_id": 1,
            "decoder_bias": True,
            "deterministic_flash_attn": False,
            "embedding_dropout": 0.0,
            "eos_token_id": 2,
            "global_attn_every_n_layers": 2,
            "global_rope_theta": 50000.0,
            "gradient_checkpointing": False,
            "hidden_activation": "gelu",
            "hidden_size": 32,
            "initializer_cutoff_factor": 2.0,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "layer_norm_eps": 1e-05,
            "local_attention": 8,
            "local_rope_theta": 300.0,
            "max_position_embeddings": 64,
            "mlp_bias": False,
            "mlp_dropout": 0.0,
            "norm_bias": False,
            "norm_eps": 1e-05,
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "reference_compile": True,
            "sep_token_id": 2,
            "sparse_pred_ignore_index": -100,
            "sparse_prediction": False,
            "torch_dtype": "float32",
            "transformers_version": "4.47.0.dev0",
            "vocab_size": 96,
        },
    ),
    "Snowflake/snowflake-arctic-embed-m-v2.0": Published(
        "gte",
        "GteModel",
        {
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "layer_norm_eps": 1e-12,
            "layer_norm_type": "layer_norm",
            "logn_attention_clip1": False,
            "logn_attention_scale": False,
            "max_position_embeddings": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "pack_qkv": True,
            "pad_token_id": 1,
            "position_embedding_type": "rope",
            "rope_scaling": None,
            "rope_theta": 160000,
            "torch_dtype": "float32",
            "transformers_version": "4.47.0.dev0",
            "type_vocab_size": 1,
            "unpad_inputs": False,
            "use_memory_efficient_attention": False,
            "vocab_size": 96,
        },
        more={"auto_map": {"AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig"}},
    ),
    "google/embeddinggemma-300m": Published(
        "gemma3_text",
        "Gemma3TextModel",
        {
            **DECODER,
            "_sliding_window_pattern": 6,
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 12,
            "rope_local_base_freq": 100.0,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "sliding_window": 12,
            "use_bidirectional_attention": True,
        },
    ),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": Published(
        "qwen2",
        "Qwen2ForCausalLM",
        {
            **DECODER,
            "hidden_act": "silu",
            "is_causal": False,
            "max_window_layers": 1,
            "num_hidden_layers": 2,
            "rope_theta": 1000.0,
            "sliding_window": 5,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        },
        made_as="Qwen2Model",
        more={"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}},
    ),
    "EuroBERT/EuroBERT-210m": Published(
        "eurobert",
        "EuroBertForMaskedLM",
        {
            **DECODER,
            "attention_bias": False,
            "clf_pooling": "late",
            "head_dim": 8,
            "hidden_act": "silu",
            "mask_token_id": 3,
            "mlp_bias": False,
            "num_hidden_layers": 2,
            "pad_token_id": 1,
            "pretraining_tp": 1,
            "rope_scaling": None,
            "rope_theta": 250000,
            "tie_word_embeddings": False,
        },
        more={"auto_map": {"AutoConfig": "configuration_eurobert.EuroBertConfig"}},
    ),
    "microsoft/deberta-v3-base": Published(
        "deberta-v2",
        "DebertaV2Model",
        {
            **BERT,
            "layer_norm_eps": 1e-07,
            "max_relative_positions": -1,
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
            "position_buckets": 16,
            "relative_attention": True,
            "share_att_key": True,
            "type_vocab_size": 0,
        },
        with_tensors(lm_predictions__lm_head__bias=(96,), mask_predictions__dense__weight=(32, 32)),
    ),
}


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


@pytest.fixture
def publish(spread: Callable[..., Any], tmp_path: Path) -> Callable[[Published], Any]:
    """Write a folder as it was published.  Return transformers' bare model."""

    def publish(case: Published) -> Any:
        file = tmp_path / "config.json"
        content = {"model_type": case.model_type, "architectures": [case.architecture], **case.config}
        file.write_text(json.dumps(content))
        config = AutoConfig.from_pretrained(tmp_path)
        kind = getattr(transformers, case.made_as or case.architecture)
        model = spread(kind._from_config(config, attn_implementation="eager"))
        model.save_pretrained(tmp_path)
        weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
        safetensors.torch.save_file(case.weights(weights), tmp_path / "model.safetensors", {"format": "pt"})
        file.write_text(json.dumps({**content, **case.more}))
        return model.base_model

    return publish


@pytest.mark.parametrize("name", CASES)
def test_a_folder_as_it_was_published_gives_the_hidden_states_of_transformers(
    name: str, publish: Callable[[Published], Any], load: Load, states: Compute, tmp_path: Path
) -> None:
    theirs = publish(CASES[name])
    ours = load(tmp_path)
    assert ours.whole_prompts
    rows = [torch.randint(5, 96, (length,)) for length in (30, 1, 12)]
    together = states(ours, rows)
    for row, found in zip(rows, together, strict=True):
        assert difference(found, theirs(row[None]).last_hidden_state[0]) < 1e-4
        assert torch.equal(states(ours, [row])[0], found)
