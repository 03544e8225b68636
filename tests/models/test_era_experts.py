"""Models with experts that were published with code of their own: what the conformance suite does not ask of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LongcatFlashConfig

from tests.conformance.published_linears import MINIMAX
from vllm.errors import ModelError
from vllm.models.families.deepseek import longcat_flash
from vllm.models.families.era_linear import minimax_text
from vllm.models.families.era_puzzle import nemotron_h_puzzle


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"postnorm": False}, "postnorm=False"),
        ({"shared_intermediate_size": 64}, "shared_intermediate_size=64"),
        ({"num_attention_heads": 6}, "num_attention_heads=6.*power of 2"),
    ],
)
def test_variants_of_minimax_that_are_not_built_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        minimax_text(SimpleNamespace(**{**MINIMAX, **changes}))


@pytest.mark.parametrize("changes", [{"zero_expert_type": "drop"}, {"mla_scale_q_lora": False}])
def test_variants_of_longcat_that_are_not_built_are_refused(changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ModelError, match=f"{name}={value!r} is not supported"):
        longcat_flash(LongcatFlashConfig(**changes))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"block_type": "attention", "sliding_window": 8}, "sliding_window=8 of a block of attention"),
        ({"block_type": "none"}, "block_type='none' is not supported; use one of mamba, attention, mlp, moe"),
    ],
)
def test_blocks_of_a_puzzle_that_are_not_built_are_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        nemotron_h_puzzle(SimpleNamespace(block_configs=[block]))
