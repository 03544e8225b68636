"""Pooling through the engine: what comes out is what transformers computes, however prompts are cut and packed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.checkpoints import reference
from vllm import EngineArgs, LLMEngine, PoolingParams, SamplingParams
from vllm.errors import ConfigError
from vllm.messages import EngineRequest

RNG = random.Random(1)
PROMPTS = [[RNG.randrange(3, 500) for _ in range(length)] for length in (1, 40, 7, 17, 100, 16)]
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


def pool(folder: Path, prompts: Sequence[list[int]] = PROMPTS, **options: Any) -> list[np.ndarray]:
    """Pool prompts together."""
    params = options.pop("params", PoolingParams())
    with LLMEngine.from_engine_args(EngineArgs(str(folder), dtype="float32", **options)) as engine:
        return pool_with(engine, prompts, params)


def pool_with(engine: LLMEngine, prompts: Sequence[list[int]], params: PoolingParams) -> list[np.ndarray]:
    pooling = engine.model_config.pooling
    assert pooling is not None
    params = params.clone()
    params.skip_reading_prefix_cache = pooling.keeps_all(params)
    found = {}
    for number, prompt in enumerate(prompts):
        engine.add(EngineRequest(str(number), prompt, SamplingParams(), pooling=params))
    while engine.has_work:
        for output in engine.step():
            assert output.error is None  # type: ignore[union-attr]
            found[output.request_id] = output.outputs.data  # type: ignore[union-attr]
    engine.scheduler.check()
    assert engine.scheduler.cache.usage == 0
    return [found[str(number)] for number in range(len(prompts))]


def close(found: Sequence[np.ndarray], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(one, other.detach().numpy(), atol=1e-4, rtol=1e-4)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def states(folder: Path, head: str = "") -> list[Tensor]:
    model = reference(folder, head)
    with torch.no_grad():
        return [model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0] for prompt in PROMPTS]


def logits(folder: Path, head: str) -> list[Tensor]:
    model = reference(folder, head)
    with torch.no_grad():
        return [model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mistral", "gemma2"])
def test_a_bare_decoder_embeds_with_its_last_token(model_type: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(model_type, head="")
    close(pool(folder), [unit(x[-1]) for x in states(folder)])


@pytest.mark.parametrize("task", ["embed", "embedding"])
def test_a_model_that_generates_embeds_when_asked_to(task: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama")
    close(pool(folder, task=task), [unit(x[-1]) for x in states(folder, "ForCausalLM")])


@pytest.mark.parametrize(
    ("pooling_type", "pick"),
    [("MEAN", lambda x: x.mean(0)), ("CLS", lambda x: x[0]), ("LAST", lambda x: x[-1]), ("MAX", lambda x: x.amax(0))],
)
def test_the_user_says_which_states_count(
    pooling_type: str, pick: Callable[[Tensor], Tensor], checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint("qwen2", head="")
    config = {"pooling_type": pooling_type, "normalize": False}
    close(pool(folder, override_pooler_config=config), [pick(x) for x in states(folder)])


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt2"])
def test_classes_are_probabilities(model_type: str, checkpoint: Callable[..., Path]) -> None:
    sizes = {"num_key_value_heads": None, "intermediate_size": None} if model_type == "gpt2" else {}
    folder = checkpoint(model_type, head="ForSequenceClassification", **LABELS, **sizes)
    expected = logits(folder, "ForSequenceClassification")
    close(pool(folder), [x.softmax(-1) for x in expected])
    close(pool(folder, params=PoolingParams(use_activation=False)), expected)
    close(pool(folder, task="classify", pooler_config={"softmax": False}), expected)


def test_one_class_is_a_score(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(
        "qwen3", head="ForSequenceClassification", id2label={0: "yes"}, label2id={"yes": 0}, head_dim=12
    )
    close(pool(folder, task="score"), [x.sigmoid() for x in logits(folder, "ForSequenceClassification")])


def test_every_token_has_its_classes(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2", head="ForTokenClassification", **LABELS)
    close(pool(folder), [x.softmax(-1) for x in logits(folder, "ForTokenClassification")])


def test_however_a_prompt_is_cut_and_found_the_bits_are_the_same(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2", head="")
    for config in ({}, {"pooling_type": "MEAN"}):
        with LLMEngine.from_engine_args(EngineArgs(str(folder), dtype="float32", pooler_config=config)) as engine:
            whole = pool_with(engine, PROMPTS, PoolingParams())
            again = pool_with(engine, PROMPTS, PoolingParams())
            each = pool_with(engine, PROMPTS, PoolingParams(task="token_embed"))
            assert (engine.core.stats().prefix_hits > 0) is (not config)
        cut = pool(folder, max_num_batched_tokens=9, pooler_config=config)
        alone = [pool(folder, [prompt], pooler_config=config)[0] for prompt in PROMPTS]
        for found in (again, cut, alone):
            assert all(np.array_equal(one, other) for one, other in zip(whole, found, strict=True))
        close(each, [unit(x) for x in states(folder)])


def rewritten(source: Path, folder: Path, extra: dict[str, Tensor], **config: Any) -> Path:
    """Copy a checkpoint, with more weights and other entries in its config."""
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(weights | extra, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def random_weights(**shapes: Sequence[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(*shape, generator=generator) / 4 for name, shape in shapes.items()}


def head_of_two(labels: int) -> dict[str, Tensor]:
    shapes = {
        "score.0.weight": (48, 48),
        "score.0.bias": (48,),
        "score.2.weight": (labels, 48),
        "score.2.bias": (labels,),
    }
    return random_weights(**shapes)


def apply(head: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = torch.relu(x @ head["score.0.weight"].T + head["score.0.bias"])
    return hidden @ head["score.2.weight"].T + head["score.2.bias"]


def test_a_reward_model_rewards_every_token(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source, head = checkpoint("qwen2", head=""), head_of_two(1)
    folder = rewritten(source, tmp_path, head, architectures=["Qwen2ForRewardModel"])
    close(pool(folder, task="reward"), [apply(head, x) for x in states(source)])


def test_a_process_reward_model_judges_steps(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source, head = checkpoint("qwen2", head=""), head_of_two(2)
    folder = rewritten(source, tmp_path, head, architectures=["Qwen2ForProcessRewardModel"])
    tag = PROMPTS[4][30]
    expected = [
        apply(head, x).softmax(-1)[torch.tensor(p) == tag] for p, x in zip(PROMPTS, states(source), strict=True)
    ]
    close(pool(folder, params=PoolingParams(step_tag_id=tag)), expected)
    assert len(expected[4]) >= 1
    close(pool(folder, pooler_config={"step_tag_id": tag}), expected)


def test_a_plain_decoder_gives_its_states_as_rewards(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama")
    close(pool(folder, task="reward"), states(folder, "ForCausalLM"))


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_of_the_vocabulary_can_be_the_classes(tied: bool, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen3", head_dim=12, tie_word_embeddings=tied)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    no, yes = itertools.islice(tokens, 300, 302)
    every = [x[-1] for x in logits(folder, "ForCausalLM")]
    both = [torch.stack((x[tokens[no]], x[tokens[yes]])) for x in every]
    overrides = {"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": [no, yes]}
    close(pool(folder, hf_overrides=overrides), [x.softmax(-1) for x in both])
    for option in ({"is_original_qwen3_reranker": True}, {"method": "from_2_way_softmax"}):
        close(pool(folder, hf_overrides=overrides | option), [x.softmax(-1)[1:] for x in both])
    overrides |= {"classifier_from_token": [yes], "method": "no_post_processing"}
    close(pool(folder, hf_overrides=overrides), [x[1:].sigmoid() for x in both])
    with pytest.raises(ConfigError, match="method='sum' is not supported; use from_2_way_softmax"):
        pool(folder, hf_overrides=overrides | {"method": "sum"})


def test_a_folder_of_sentence_transformers_is_read_as_it_is(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("qwen2", head="")
    folder = rewritten(source, tmp_path, {})
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 120}))
    for path in paths[1:3]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": 48, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {
        "in_features": 48,
        "out_features": 20,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    weights = random_weights(**{"linear.weight": (20, 48), "linear.bias": (20,)})
    safetensors.torch.save_file(weights, folder / "2_Dense" / "model.safetensors")
    means = [x.mean(0) @ weights["linear.weight"].T + weights["linear.bias"] for x in states(source)]
    close(pool(folder), [unit(x.tanh()) for x in means])
    close(pool(folder, params=PoolingParams(dimensions=8)), [unit(x.tanh()[:8]) for x in means])
    with LLMEngine.from_engine_args(EngineArgs(str(folder), dtype="float32")) as engine:
        assert engine.model_config.max_model_len == 120


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("ForCausalLM", {"task": "classify", "runner": "generate"}, "task='classify' means runner='pooling'"),
        ("", {"task": "generate"}, "has no vocabulary to generate from"),
        ("", {"task": "classify"}, "use a checkpoint of Qwen2ForSequenceClassification"),
        ("", {"pooler_config": {"pooling_type": "ALL"}}, "pooling_type='ALL' does not fit embed"),
        ("", {"pooler_config": {"pooling_type": "FIRST"}}, "pooling_type='FIRST' is not one of CLS"),
    ],
)
def test_what_a_model_cannot_be_is_refused(
    head: str, options: dict[str, Any], message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        LLMEngine.from_engine_args(EngineArgs(str(checkpoint("qwen2", head=head)), **options))
