"""Models that pass their layers several times: what the conformance suite does not ask of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance import published
from tests.conformance.published_loops import LAYERS, LOOP_CODER, LOOPS, NANBEIGE, OURO, PASSES
from vllm.errors import ModelError
from vllm.layers.transformer import Transformer
from vllm.models.families.era_loops import loop_coder, nanbeige, ouro

Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]


@pytest.mark.parametrize("architecture", LOOPS)
def test_passes_share_weights_and_keep_tokens_of_their_own(architecture: str, load: Load, tmp_path: Path) -> None:
    published.save(architecture, tmp_path)
    model = load(tmp_path)
    stored = sum(
        tensor.nbytes for name, tensor in published.save(architecture, tmp_path).weights.items() if "exit" not in name
    )
    assert model.num_bytes <= 1.1 * stored  # rows of matrices are filled up
    assert len(model.cache_specs) == LAYERS * PASSES


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("NanbeigeForCausalLM", {"num_loops": 1}),
        ("OuroForCausalLM", {"total_ut_steps": 1}),
        ("NanbeigeForCausalLM", {"skip_loop_final_norm": True}),
        ("IQuestLoopCoderForCausalLM", {"loop_window_size": 1}),
    ],
    ids=str,
)
def test_other_passes(architecture: str, changes: Any, load: Load, compute: Compute, tmp_path: Path) -> None:
    written = published.save(architecture, tmp_path, **changes)
    prompt = torch.randint(3, published.VOCAB, (29,))
    found, expected = compute(load(tmp_path), [prompt])[0], written.compute(written.config, written.weights, prompt)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("family", "config", "changes", "message"),
    [
        (nanbeige, NANBEIGE, {"qk_layernorm": True}, "qk_layernorm=True: a nanbeige with it"),
        (nanbeige, NANBEIGE, {"loop_loss_weights": [0.5]}, r"loop_loss_weights=\[0.5\]: a nanbeige with it"),
        (ouro, OURO, {"early_exit_threshold": 0.8}, "early_exit_threshold=0.8: .*; use 1.0"),
        (ouro, OURO, {"use_sliding_window": True}, "use_sliding_window=True: an ouro with it"),
    ],
)
def test_variants_that_are_not_built_are_refused(family: Any, config: Any, changes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        family(SimpleNamespace(**{**config, **changes}))


def test_later_passes_have_the_window() -> None:
    layers = loop_coder(SimpleNamespace(**LOOP_CODER)).layers
    assert [getattr(layer.mixer, "recalled", None) for layer in layers] == [None, None, 0, 1, 0, 1]
