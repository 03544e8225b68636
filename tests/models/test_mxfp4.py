"""Experts that a checkpoint has in MXFP4: written by hand from random weights, compared with transformers' model of what they
stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conformance.tiny import VOCAB, save_tiny
from vllm import LLM, SamplingParams
from vllm.errors import ModelError
from vllm.layers.transformer import Transformer
from vllm.ops.mxfp4 import Unpacked, unpack
from vllm.weights import TensorPlace

LENGTH = 30
SIZES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def pack(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return blocks, scales, and what they stand for.  [..., width] -> [..., G, 16], [..., G], [..., width]"""
    groups = rows.unflatten(-1, (-1, 32))
    exponents = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
    scaled = groups / 2**exponents
    codes = (scaled.abs().unsqueeze(-1) - torch.tensor(SIZES)).abs().argmin(-1)
    meant = torch.tensor(SIZES)[codes] * scaled.sign() * 2**exponents
    codes = codes + 8 * (scaled < 0)
    blocks = codes[..., 0::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (exponents.squeeze(-1) + 127).to(torch.uint8), meant.flatten(-2)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Any]:
    """A checkpoint as it is published, and transformers' model that computes the same."""
    model = save_tiny("gpt_oss", tmp_path, {"swiglu_limit": 0.5})
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        blocks, scales, meant = pack(weights.pop(name).mT)
        weights[f"{name}_blocks"], weights[f"{name}_scales"] = blocks.contiguous(), scales.contiguous()
        model.get_parameter(name).copy_(meant.mT)
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path, model


def test_packed_experts_are_what_they_stand_for(
    packed: tuple[Path, Any], load: Callable[..., Transformer], compute: Callable[..., list[Tensor]]
) -> None:
    folder, model = packed
    prompt = torch.randint(3, VOCAB, (LENGTH,))
    expected = model(prompt[None], use_cache=False).logits[0]
    found = compute(load(folder, LENGTH), [prompt])[0]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_packed_experts_can_be_kept_in_eight_bits(packed: tuple[Path, Any]) -> None:
    folder, model = packed
    prompt = torch.randint(3, VOCAB, (LENGTH,))
    expected = model(prompt[None], use_cache=False).logits[0, -1].log_softmax(-1)
    with LLM(str(folder), quantization="int8", dtype="float32", skip_tokenizer_init=True, device="cpu") as llm:
        output = llm.generate({"prompt_token_ids": prompt.tolist()}, SamplingParams(max_tokens=1, logprobs=3))[0]
    (entries,) = output.outputs[0].logprobs
    assert all(abs(entry.logprob - expected[token]) < 0.3 for token, entry in entries.items())


def test_every_code_and_the_least_scale_are_known() -> None:
    blocks = torch.tensor([[[low + 16 * ((low + 5) % 16) for low in range(16)]]], dtype=torch.uint8)
    values = [*SIZES, *(-size for size in SIZES)]
    expected = torch.tensor([value for low in range(16) for value in (values[low], values[(low + 5) % 16])])
    for scale in (127, 130, 100, 0):
        found = unpack(blocks, torch.tensor([[scale]], dtype=torch.uint8))[0]
        assert torch.equal(found.double(), expected.double() * 2.0 ** (scale - 127))


def test_a_scale_that_is_no_number_is_refused() -> None:
    place = Unpacked("experts", TensorPlace(torch.zeros(2, 32)))
    place.scales.put(torch.full((2, 1), 255, dtype=torch.uint8))
    with pytest.raises(ModelError, match="experts.*no number"):
        place.blocks.put(torch.ones(2, 1, 16, dtype=torch.uint8))


def test_numbers_beyond_the_range_of_the_dtype_are_refused() -> None:
    place = Unpacked("experts", TensorPlace(torch.zeros(2, 32, dtype=torch.float16)))
    place.blocks.put(torch.ones(2, 1, 16, dtype=torch.uint8))
    with pytest.raises(ModelError, match="experts.*range of torch.float16"):
        place.scales.put(torch.full((2, 1), 200, dtype=torch.uint8))


def test_rows_that_scales_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="rows of 40"):
        Unpacked("experts", TensorPlace(torch.zeros(2, 40)))
