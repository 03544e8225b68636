"""Latent attention with stretched positions, and experts that are chosen group by group; jamba as a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.checkpoints import spread
from vllm import LLM, SamplingParams
from vllm.ops.moe import Routing, route

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
    "num_experts_per_tok": 2, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "first_k_dense_replace": 1, "max_position_embeddings": 512, "n_shared_experts": 1,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
YARN |= {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DeepseekV3", {"q_lora_rank": 16, "rope_parameters": YARN}),
        ("DeepseekV3", {"q_lora_rank": None, "rope_interleave": False, "attention_bias": True}),
        ("DeepseekV2", {"q_lora_rank": 16, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0}),
    ],
)
def test_it_says_what_transformers_says(
    name: str, changes: dict[str, Any], tmp_path: Path, tokenizer_folders: dict[str, Path]
) -> None:
    architecture = f"{name}ForCausalLM"
    kind = getattr(transformers, architecture)
    config = getattr(transformers, f"{name}Config")(**SIZES, **changes, architectures=[architecture])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = spread(kind(config))
        for buffer_name, buffer in model.named_buffers():
            if "correction" in buffer_name:
                buffer.uniform_(-0.3, 0.3)
        model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tokenizer_folders["byte level"]).save_pretrained(tmp_path)
    ids = list(range(10, 140))
    with torch.inference_mode():
        result = kind.from_pretrained(tmp_path, dtype=torch.float32).generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1
        )
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with LLM(str(tmp_path), dtype="float32", max_num_batched_tokens=48) as llm:
        outputs = llm.generate(
            [{"prompt_token_ids": ids}, "The tide", {"prompt_token_ids": ids}], params, use_tqdm=False
        )
    for output in (outputs[0], outputs[2]):
        assert output.outputs[0].token_ids == result[0, len(ids) :].tolist()


def test_experts_of_the_best_groups_are_chosen() -> None:
    logits = torch.tensor([[5.0, -9.0, 2.0, 2.1, 0.0, 0.1]])
    grouped = Routing(2, False, sigmoid=True, groups=3, top_groups=1, scale=2.0)
    weights, ids = route(logits, grouped)
    assert sorted(ids[0].tolist()) == [2, 3], "two good ones are better than the best with a bad one"
    torch.testing.assert_close(weights.sort().values, 2 * torch.sigmoid(logits[:, 2:4]))
    _, ids = route(logits, Routing(2, False, groups=3, top_groups=1, group_best=1))
    assert sorted(ids[0].tolist()) == [0, 1]
    correction = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 9.0])
    weights, ids = route(logits, Routing(2, True, sigmoid=True), correction)
    assert sorted(ids[0].tolist()) == [4, 5] and weights.sum().item() == pytest.approx(1.0)


def test_jamba_classifies(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    config = transformers.JambaConfig(
        vocab_size=512, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, mamba_d_state=8, mamba_dt_rank=4, pad_token_id=1,
        attn_layer_period=2, attn_layer_offset=1, num_labels=3, max_position_embeddings=512,
        architectures=["JambaForSequenceClassification"],
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: Any = spread(transformers.JambaForSequenceClassification(config))
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(0, 1)
        model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tokenizer_folders["byte level"]).save_pretrained(tmp_path)
    with LLM(str(tmp_path), dtype="float32") as llm:
        for output in llm.classify(["The tide came in", "nobody"], use_tqdm=False):
            with torch.inference_mode():
                expected = model(input_ids=torch.tensor([output.prompt_token_ids])).logits[0].softmax(-1)
            torch.testing.assert_close(torch.tensor(output.outputs.probs), expected, atol=1e-4, rtol=0.0)
