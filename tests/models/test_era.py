"""Models published with code of their own: what the conformance suite does not ask of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conformance import era, published
from vllm import LLM
from vllm.errors import ConfigError, ModelError
from vllm.loader.foreign_config import translated
from vllm.models.families.era_more import arctic, jais, solar
from vllm.models.registry import find
from vllm.models.tasks import resolve_pooling


def test_a_reward_model_of_internlm2_rewards_each_token(tmp_path: Path) -> None:
    body = era.save("InternLM2ForCausalLM", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["InternLM2ForRewardModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["output.weight"]
    weights["v_head.weight"] = torch.randn(1, body.config.hidden_size)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    prompt = [5, 17, 200, 9]
    with LLM(str(tmp_path), skip_tokenizer_init=True, dtype="float32", max_model_len=64, device="cpu") as llm:
        (output,) = llm.reward([prompt], use_tqdm=False)
    expected = body.model(torch.tensor([prompt])).last_hidden_state[0] @ weights["v_head.weight"].T
    torch.testing.assert_close(output.outputs.data, expected, atol=1e-4, rtol=1e-4)


def test_the_first_jais_has_other_names_for_its_factors() -> None:
    newer = published.JAIS
    older = {name: value for name, value in newer.items() if not name.startswith("mup_")}
    older |= {"embeddings_scale": 3.0, "width_scale": 0.5, "scale_qk_dot_by_d": True}
    assert jais(SimpleNamespace(**translated(dict(newer)))) == jais(SimpleNamespace(**translated(dict(older))))


@pytest.mark.parametrize(
    ("family", "config", "changes", "message"),
    [
        (jais, published.JAIS, {"position_embedding_type": "learned"}, "='learned'.* 'alibi' and 'swiglu' are"),
        (
            jais,
            published.JAIS,
            {"activation_function": "gelu"},
            "activation_function='gelu'.* 'alibi' and 'swiglu' are",
        ),
        (arctic, published.ARCTIC, {"moe_layer_frequency": 2}, "moe_layer_frequency=2, .*beside every layer"),
        (arctic, published.ARCTIC, {"parallel_attn_mlp_res": False}, "parallel_attn_mlp_res=False"),
        (solar, published.SOLAR, {"bskcn_1": [5]}, "nothing is kept before layer 2"),
    ],
)
def test_variants_that_are_not_built_are_refused(family: Any, config: Any, changes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        family(SimpleNamespace(**translated({**config, **changes})))


def test_gritlm_generates_and_does_not_embed(tmp_path: Path) -> None:
    config = SimpleNamespace(architectures=["GritLM"], model_type="mistral")
    config.get_text_config = lambda: config
    assert find(config).head == "generate"
    assert resolve_pooling(config, tmp_path) is None
    with pytest.raises(ConfigError, match="task='embed'.*GritLM embeds by what stands behind an instruction"):
        resolve_pooling(config, tmp_path, task="embed")
