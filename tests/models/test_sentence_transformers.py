"""Folders as sentence-transformers write them, against what their modules compute, written out in torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from vllm.errors import ModelError, RequestError
from vllm.layers.transformer import Transformer

WIDTH = 32
Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]
PROMPTS = [torch.arange(5, 5 + length) for length in (20, 1, 7)]

PICKS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0).values,
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: (x * torch.arange(1, len(x) + 1)[:, None]).sum(0) / (len(x) * (len(x) + 1) / 2),
    "lasttoken": lambda x: x[-1],
}
SWITCHES = {mode: f"pooling_mode_{mode}" for mode in PICKS} | {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}


@pytest.fixture
def bert(spread: Callable[..., Any], tmp_path: Path) -> Callable[[], list[Tensor]]:
    """Write a tiny bert; return a function that gives its hidden states of the prompts."""
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    model = spread(transformers.BertModel._from_config(config, attn_implementation="eager"))
    model.save_pretrained(tmp_path)
    return lambda: [model(ids[None]).last_hidden_state[0] for ids in PROMPTS]


def write_modules(folder: Path, *entries: tuple[str, str, dict[str, Any] | None, dict[str, Tensor] | None]) -> None:
    """Write modules.json, and for each module (type, path) its configuration and weights."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, path, config, weights) in enumerate(entries, start=1):
        listed.append({"idx": number, "name": str(number), "path": path, "type": kind})
        (folder / path).mkdir(exist_ok=True)
        if config is not None:
            (folder / path / "config.json").write_text(json.dumps(config))
        if weights is not None:
            safetensors.torch.save_file(weights, folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(listed))


def switches(*modes: str) -> dict[str, Any]:
    return {"word_embedding_dimension": WIDTH} | {switch: mode in modes for mode, switch in SWITCHES.items()}


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["older", "newer"])
@pytest.mark.parametrize("mode", PICKS)
def test_each_pooling_mode(
    mode: str, layout: str, bert: Callable[[], list[Tensor]], load: Load, pool: Compute, tmp_path: Path
) -> None:
    if layout == "older":
        write_modules(tmp_path, ("sentence_transformers.models.Pooling", "1_Pooling", switches(mode), None))
    else:
        kind = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
        config = {"embedding_dimension": WIDTH, "pooling_mode": mode, "include_prompt": True}
        write_modules(tmp_path, (kind, "1_Pooling", config, None))
    close(pool(load(tmp_path), PROMPTS), [PICKS[mode](x) for x in bert()])


def test_results_of_several_modes_are_joined_in_their_order(
    bert: Callable[[], list[Tensor]], load: Load, pool: Compute, tmp_path: Path
) -> None:
    write_modules(tmp_path, ("sentence_transformers.models.Pooling", "1_Pooling", switches("mean", "cls", "max"), None))
    joined = [torch.cat([PICKS[mode](x) for mode in ("cls", "max", "mean")]) for x in bert()]
    close(pool(load(tmp_path), PROMPTS), joined)
    kind = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    config = {"embedding_dimension": WIDTH, "pooling_mode": ["mean", "cls"]}
    write_modules(tmp_path, (kind, "1_Pooling", config, None))
    joined = [torch.cat([PICKS[mode](x) for mode in ("mean", "cls")]) for x in bert()]
    close(pool(load(tmp_path), PROMPTS), joined)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.GELU": F.gelu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pickled", [False, True])
def test_projections_and_norms_follow_in_their_order(
    activation: str, pickled: bool, bert: Callable[[], list[Tensor]], load: Load, pool: Compute, tmp_path: Path
) -> None:
    first = {"linear.weight": torch.randn(20, WIDTH) / 4, "linear.bias": torch.randn(20)}
    norm = {"norm.weight": torch.randn(20), "norm.bias": torch.randn(20)}
    second = {"linear.weight": torch.randn(12, 20) / 4}
    package = "sentence_transformers.models."
    config = {"in_features": WIDTH, "out_features": 20, "bias": True, "activation_function": activation}
    write_modules(
        tmp_path,
        (f"{package}Pooling", "1_Pooling", switches("mean"), None),
        (f"{package}Dense", "2_Dense", config, first),
        (f"{package}Dropout", "3_Dropout", {"dropout": 0.1}, None),
        (f"{package}LayerNorm", "4_LayerNorm", {"dimension": 20}, norm),
        (f"{package}Dense", "5_Dense", {**config, "in_features": 20, "out_features": 12, "bias": False}, second),
        (f"{package}Normalize", "6_Normalize", None, None),
    )
    if pickled:
        torch.save(first, tmp_path / "2_Dense" / "pytorch_model.bin")
        (tmp_path / "2_Dense" / "model.safetensors").unlink()
    model = load(tmp_path)
    assert model.head.pooling.width == 12  # type: ignore[union-attr]
    act = ACTIVATIONS[activation]
    expected = []
    for x in bert():
        y = act(F.linear(x.mean(0), first["linear.weight"], first["linear.bias"]))
        y = F.layer_norm(y, (20,), norm["norm.weight"], norm["norm.bias"])
        expected.append(act(F.linear(y, second["linear.weight"])))
    close(pool(model, PROMPTS), [y / y.norm() for y in expected])
    close(pool(model, PROMPTS, normalize=False), expected)
    close(pool(model, PROMPTS, dimensions=5), [y[:5] / y[:5].norm() for y in expected])


def test_a_projection_without_its_weights_is_refused(bert: Any, load: Load, tmp_path: Path) -> None:
    config = {"in_features": WIDTH, "out_features": 20}
    package = "sentence_transformers.models."
    write_modules(
        tmp_path,
        (f"{package}Pooling", "1_Pooling", switches("mean"), None),
        (f"{package}Dense", "2_Dense", config, None),
    )
    with pytest.raises(ModelError, match=r"2_Dense has no model.safetensors or pytorch_model.bin"):
        load(tmp_path)


def test_the_transformer_may_have_a_folder_of_its_own(
    bert: Callable[[], list[Tensor]], load: Load, pool: Compute, tmp_path: Path
) -> None:
    write_modules(tmp_path, ("sentence_transformers.models.Pooling", "1_Pooling", switches("max"), None))
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).rename(inner / name)
    close(pool(load(inner), PROMPTS), [x.max(0).values for x in bert()])


def colbert(folder: Path, weight: Tensor) -> None:
    """Make a ColBERT of a folder with a bert, as its authors write one."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights = {f"bert.{name}": tensor for name, tensor in weights.items()} | {"linear.weight": weight}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "artifact.metadata").write_text(json.dumps({"dim": len(weight)}))


def test_a_colbert_embeds_every_token(
    bert: Callable[[], list[Tensor]], load: Load, pool: Compute, tmp_path: Path
) -> None:
    weight = torch.randn(12, WIDTH)
    colbert(tmp_path, weight)
    close(pool(load(tmp_path), PROMPTS), [F.normalize(x @ weight.T, dim=-1) for x in bert()])


def test_a_colbert_of_pylate_embeds_every_token(
    bert: Callable[[], list[Tensor]], load: Load, pool: Compute, tmp_path: Path
) -> None:
    weights = {"linear.weight": torch.randn(12, WIDTH)}
    config = {"in_features": WIDTH, "out_features": 12, "bias": False, "use_residual": False}
    config["activation_function"] = "torch.nn.modules.linear.Identity"
    write_modules(tmp_path, ("pylate.models.Dense.Dense", "1_Dense", config, weights))
    expected = [F.normalize(x @ weights["linear.weight"].T, dim=-1) for x in bert()]
    close(pool(load(tmp_path), PROMPTS), expected)


def test_a_result_does_not_depend_on_company(bert: Any, load: Load, pool: Compute, tmp_path: Path) -> None:
    weights = {"linear.weight": torch.randn(20, WIDTH) / 4, "linear.bias": torch.randn(20)}
    package = "sentence_transformers.models."
    write_modules(
        tmp_path,
        (f"{package}Pooling", "1_Pooling", switches("mean"), None),
        (f"{package}Dense", "2_Dense", {"in_features": WIDTH, "out_features": 20}, weights),
        (f"{package}Normalize", "3_Normalize", None, None),
    )
    model = load(tmp_path)
    for task in ("embed", "token_embed"):
        together = pool(model, PROMPTS, task=task)
        for prompt, found in zip(PROMPTS, together, strict=True):
            assert torch.equal(pool(model, [prompt], task=task)[0], found)


def test_a_pooling_type_is_one_of_those_there_are() -> None:
    from vllm import PoolingParams

    with pytest.raises(RequestError, match="task must be one of embed"):
        PoolingParams(task="embeddings")  # type: ignore[arg-type]
