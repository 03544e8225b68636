"""Plamo 2: what the conformance suite does not ask of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance import published
from vllm.layers.transformer import Transformer
from vllm.models.families.era_plamo import plamo2
from vllm.models.spec_recurrent import MambaSpec

LENGTH = 75


def test_the_kernels_give_the_same_bits_in_any_steps(
    load: Callable[..., Transformer], compute: Callable[..., list[Tensor]], tmp_path: Path
) -> None:
    written = published.save("Plamo2ForCausalLM", tmp_path, attention_window_size=20)
    model = load(tmp_path, LENGTH)
    prompt, other = torch.randint(3, published.VOCAB, (LENGTH,)), torch.randint(3, published.VOCAB, (23,))
    alone = compute(model, [prompt])[0]
    expected = written.compute(written.config, written.weights, prompt)
    assert (alone - expected).abs().max() < 1e-4 * expected.abs().max()
    for chunk in (1, 7, 16, 40):
        assert torch.equal(compute(model, [other, prompt], chunk)[1], alone), f"chunks of {chunk}"


@pytest.mark.parametrize(
    ("changes", "attending"),
    [
        ({}, [1, 3]),
        ({"mamba_step": 8}, [3]),  # fewer layers than half a step: the last one
        ({"mamba_step": 6}, [3]),
        ({"mamba_enabled": False}, [0, 1, 2, 3]),
    ],
)
def test_which_layers_attend(changes: Any, attending: list[int]) -> None:
    spec = plamo2(SimpleNamespace(**{**published.PLAMO2, **changes}))
    assert [index for index, layer in enumerate(spec.layers) if not isinstance(layer.mixer, MambaSpec)] == attending
    assert spec.layers[3].attention.window is None and spec.tied
