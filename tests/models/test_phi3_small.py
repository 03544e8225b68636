"""Phi 3 small: what the conformance suite does not ask of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance import published
from vllm.errors import ModelError
from vllm.layers.rotary import cos_sin_table
from vllm.layers.transformer import Transformer
from vllm.models.families.era_phi3 import phi3small

LENGTH, LAYERS = 150, published.LAYERS
Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]


@pytest.mark.parametrize(
    "changes",
    [
        {"blocksparse_num_local_blocks": 1},
        {"blocksparse_homo_head_pattern": True},
        {"blocksparse_vert_stride": 8},  # neighbouring heads don't see neighbouring blocks
        {"dense_attention_every_n_layers": LAYERS + 1},
    ],
    ids=str,
)
def test_blocks_as_long_as_those_of_the_cache(changes: Any, load: Load, compute: Compute, tmp_path: Path) -> None:
    written = published.save("Phi3SmallForCausalLM", tmp_path, blocksparse_block_size=16, **changes)
    model = load(tmp_path, LENGTH)
    prompt, other = torch.randint(3, published.VOCAB, (LENGTH,)), torch.randint(3, published.VOCAB, (23,))
    alone = compute(model, [prompt])[0]
    expected = written.compute(written.config, written.weights, prompt)
    assert (alone - expected).abs().max() < 1e-4 * expected.abs().max()
    for chunk in (1, 7, 16, 40):
        assert torch.equal(compute(model, [other, prompt], chunk)[1], alone), f"chunks of {chunk}"


def test_no_unused_token_is_ever_likely(load: Load, compute: Compute, tmp_path: Path) -> None:
    written = published.save("Phi3SmallForCausalLM", tmp_path, blocksparse_block_size=16, dummy_token_indices=[5, 319])
    prompt = torch.arange(3, 20)
    expected = written.compute(written.config, written.weights, prompt)
    expected[:, [5, 319]] = torch.finfo(torch.float32).min
    torch.testing.assert_close(compute(load(tmp_path), [prompt])[0], expected)


def test_what_the_published_vocabulary_has_no_use_for_is_known() -> None:
    unused = phi3small(config(vocab_size=100352)).head.never
    said = {
        *range(100256),
        100257,
        100261,
        100262,
        100263,
        100266,
    }  # text, its end, three roles, the end of what is said
    assert said.isdisjoint(unused) and said | set(unused) == set(range(100352))


def test_rotated_vectors_are_as_long_as_is_said() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    told = {"type": "su", **factors, "short_mscale": 1.1, "long_mscale": 1.3}
    for scaling, length, factor in ((told, 64, 1.1), (told, 65, 1.3), ({"type": "longrope", **factors}, 64, 1.0)):
        rope = phi3small(config(rope_scaling=scaling)).layers[0].attention.rope
        assert rope is not None and rope.theta == 5000
        assert float(cos_sin_table(rope, length)[0, 0]) == pytest.approx(factor)
        assert float(cos_sin_table(rope, length)[1, 0]) == pytest.approx(
            factor * float(torch.tensor(1.0 if length == 64 else 0.5).cos())
        )


@pytest.mark.parametrize("changes", [{"hidden_act": "silu"}, {"ff_intermediate_size": None, "ff_dim_multiplier": 4}])
def test_another_feed_forward_is_refused(changes: Any) -> None:
    with pytest.raises(ModelError, match="'gegelu' and a width are supported"):
        phi3small(config(**changes))


def config(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**published.PHI3_SMALL, **changes})
