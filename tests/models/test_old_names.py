"""Checkpoints that call an architecture, or the fields of its config, as they were called before transformers knew it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance import era
from tests.conformance.tiny import VOCAB, save_tiny
from vllm.errors import ModelError
from vllm.layers.transformer import Transformer
from vllm.models.registry import find

Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]

_GROUPS = {"new_decoder_architecture": True, "num_kv_heads": 2}
_RW = {"multi_query": False, "num_kv_heads": 4, "parallel_attn": False, "alibi": True, "bias": True}


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "RefinedWebModel"),
        (_GROUPS, "RefinedWeb"),
        ({**_GROUPS, "num_ln_in_parallel_attn": 1}, "falcon"),
        (_RW, "RefinedWebModel"),
        ({**_RW, "num_attention_heads": 6, "num_kv_heads": 6, "hidden_size": 96}, "falcon"),
        ({"bias": True, "parallel_attn": False}, "RefinedWebModel"),
    ],
    ids=["7b", "40b", "11b", "rw", "rw with 6 heads", "in turn"],
)
def test_a_falcon_of_each_kind(changes: Any, model_type: str, load: Load, compute: Compute, tmp_path: Path) -> None:
    model = save_tiny("falcon", tmp_path, changes)
    model.config._attn_implementation = "sdpa"  # the other adds distances twice
    older = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    lost = ("new_decoder_architecture",) if model_type == "RefinedWeb" else ()
    _rewrite(tmp_path, older, lost, architectures=["RWForCausalLM"], model_type=model_type)
    _compare(model, load(tmp_path), compute)


def test_the_first_stablelm(load: Load, compute: Compute, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
    model = save_tiny("stablelm", tmp_path, {"layer_norm_eps": 1e-3, "rope_parameters": rope})
    new = {"architectures": ["StableLMEpochForCausalLM"], "model_type": "stablelm_epoch", "rope_pct": 0.5}
    _rewrite(tmp_path, {"layer_norm_eps": "norm_eps"}, ("rope_parameters",), **new, rope_theta=20000.0)
    _compare(model, load(tmp_path), compute)


@pytest.mark.parametrize(("original", "trained", "growth"), [(64, 64, 1), (16, 64, 7), (8, 16, 7)])
def test_a_telechat_that_was_trained_beyond_its_length(
    original: int, trained: int, growth: int, load: Load, compute: Compute, tmp_path: Path
) -> None:
    model = era.save("TeleChat2ForCausalLM", tmp_path)
    new = {"base_seqlen": original, "training_seqlen": trained}
    _rewrite(tmp_path, {}, (), architectures=["TelechatForCausalLM"], model_type="telechat", **new)
    longest, rotary = 30, model.model.rotary_emb
    rotary.inv_freq = (10000.0 * growth ** (16 / 14)) ** -(torch.arange(0, 16, 2) / 16)
    rotary.attention_scaling = max(1.0, 0.1 * math.log(longest / trained) + 1.0)
    _compare(model, load(tmp_path, longest), compute)


def test_iquest_coder_is_a_llama(load: Load, compute: Compute, tmp_path: Path) -> None:
    model = save_tiny("iquestcoder", tmp_path)
    _rewrite(tmp_path, {}, (), architectures=["IQuestCoderForCausalLM"])
    _compare(model, load(tmp_path), compute)


def test_a_llama_that_fairseq2_saved_in_a_wrapper(load: Load, compute: Compute, tmp_path: Path) -> None:
    model = era.save("Fairseq2LlamaForCausalLM", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    stored = {
        name: tensor.contiguous() for name, tensor in era.fairseq2(dict(model.state_dict()), model.config).items()
    }
    torch.save({"model_key": "model", "model": stored, "step": 3}, tmp_path / "model.pt")
    _compare(model, load(tmp_path), compute)


def test_a_mixtral_that_is_quantized_by_name_is_refused() -> None:
    config = SimpleNamespace(architectures=["QuantMixtralForCausalLM"], model_type="mixtral")
    with pytest.raises(ModelError, match="hold quantized weights; use one of MixtralForCausalLM without"):
        find(config)


def _rewrite(folder: Path, older: dict[str, str], lost: tuple[str, ...], **new: Any) -> None:
    """Rename fields of a config, take others out, and set some."""
    file = folder / "config.json"
    content = {older.get(name, name): value for name, value in json.loads(file.read_text()).items() if name not in lost}
    file.write_text(json.dumps(content | new))


def _compare(model: Any, ours: Transformer, compute: Compute) -> None:
    prompts = [torch.randint(3, VOCAB, (length,)) for length in (23, 9)]
    for chunk in (None, 7):
        for prompt, found in zip(prompts, compute(ours, prompts, chunk), strict=True):
            expected = model(prompt[None]).logits[0]
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
