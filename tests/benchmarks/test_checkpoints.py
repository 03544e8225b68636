"""One set of weights in every format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.checkpoints import gguf_kind, gguf_name, read_bf16, tensor_sizes, write_safetensors
from benchmarks.shapes import QWEN_HALF_BILLION, Shape

TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=96, vocab=320, max_positions=128)


def test_transformers_finds_every_weight_it_wants_and_no_other(tmp_path: Path) -> None:
    write_safetensors(TINY, tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    _, found = loaded
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_safetensors(TINY, tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_bfloat16_is_read_without_torch_as_torch_reads_it(tmp_path: Path) -> None:
    write_safetensors(TINY, tmp_path)
    path = tmp_path / "model.safetensors"
    found = dict(read_bf16(path))
    wanted = load_file(path)
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        assert torch.equal(torch.from_numpy(values.copy()), wanted[name].float())


def test_the_sizes_add_up_to_the_shapes_weights() -> None:
    sizes = tensor_sizes(QWEN_HALF_BILLION).values()
    products = sum(math.prod(size) for size in sizes if len(size) > 1)
    assert products == QWEN_HALF_BILLION.body_weights + QWEN_HALF_BILLION.head_weights


def test_gguf_names_are_all_different_and_of_the_known_form() -> None:
    names = {gguf_name(name) for name in tensor_sizes(TINY)}
    assert len(names) == len(tensor_sizes(TINY))
    assert {"token_embd.weight", "output_norm.weight", "blk.1.attn_q.bias", "blk.0.ffn_down.weight"} <= names


def test_vectors_stay_whole_and_the_head_of_a_4_bit_file_has_8_bits() -> None:
    assert gguf_kind("blk.0.attn_q.bias", 1, TINY, "q4_0") == "F32"
    assert gguf_kind("blk.0.attn_q.weight", 2, TINY, "q4_0") == "Q4_0"
    assert gguf_kind("token_embd.weight", 2, QWEN_HALF_BILLION, "q4_0") == "Q8_0"
    assert gguf_kind("token_embd.weight", 2, QWEN_HALF_BILLION, "bf16") == "BF16"
