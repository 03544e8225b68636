"""One row per encoder and variant: a tiny checkpoint of each gives the hidden states and the classes that transformers
gives, and the very same bits whatever is beside a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from tests.models.dense_attention import DenseAttention
from vllm import ops
from vllm.errors import ModelError
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.models.build import build_transformer
from vllm.models.families import bert
from vllm.models.registry import ENCODERS, FALLBACKS
from vllm.ops import native
from vllm.pooling_params import Pooling

CPU = torch.device("cpu")
LENGTH = 40
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "num_labels": 3,
}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
MODERN = {"local_attention": 6, "cls_token_id": 0, "sep_token_id": 2}
GEMMA = {"head_dim": 8, "num_key_value_heads": 2, "use_bidirectional_attention": True, "sliding_window": 10}
DECODER = {"num_key_value_heads": 2, "is_causal": False}

ALBERT = {"embedding_size": 16, "num_hidden_groups": 1, "hidden_act": "gelu_new"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("albert", ALBERT),
    "bert": ("bert", {}),
    "bert, relu, another eps": ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "roberta, padding elsewhere": ("roberta", {"pad_token_id": 4}),
    "xlm_roberta": ("xlm-roberta", {"type_vocab_size": 1}),
    "camembert": ("camembert", {"type_vocab_size": 1}),
    "distilbert": ("distilbert", DISTIL),
    "electra": ("electra", {"embedding_size": 16}),
    "electra, wide embeddings": ("electra", {"embedding_size": 32}),
    "eurobert": ("eurobert", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "mpnet": ("mpnet", {"max_position_embeddings": 302}),
    "modernbert": ("modernbert", MODERN),
    "modernbert, biases, all local but the last": (
        "modernbert",
        {
            **MODERN,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "classifier_pooling": "mean",
            "classifier_activation": "relu",
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "nomic_bert": ("nomic_bert", {}),
    "gte": ("gte", {}),
    "gte, no types": ("gte", {"type_vocab_size": 0}),
    "jina_embeddings_v3": ("jina_embeddings_v3", {}),
}
POOLER = Pooler(Pooling(("embed",), "CLS", width=32), [], 32)
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gte-qwen2": ("qwen2", DECODER),
    "bidirectional llama": ("llama", DECODER),
    "bidirectional mistral, window": ("mistral", {**DECODER, "sliding_window": 5}),
    "bidirectional qwen3": ("qwen3", {**DECODER, "head_dim": 8}),
    "embeddinggemma": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}),
}
FOREIGN: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "convbert": {"embedding_size": 32},
    "data2vec-text": {},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 2},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "ernie": {},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 5},
    "fnet": {},
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "ibert": {},
    "layoutlm": {},
    "longformer": {"attention_window": 8},
    "megatron-bert": {},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roberta-prelayernorm": {},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "roformer": {"embedding_size": 32},
    "squeezebert": {"embedding_size": 32},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "xlm-roberta-xl": {},
}


def tiny_config(model_type: str, fields: dict[str, Any]) -> Any:
    given = {**SMALL, **fields}
    if model_type in ("distilbert", "flaubert", "xlm"):
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            given.pop(name)
    return AutoConfig.for_model(model_type, **given)


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


Save = Callable[..., PreTrainedModel]
Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]


@pytest.fixture
def save(spread: Callable[..., Any], tmp_path: Path) -> Save:
    """Make the tiny transformers model of a type and a head, and write it to the test's folder."""

    def save(model_type: str, fields: dict[str, Any], head: str = "") -> PreTrainedModel:
        kind = getattr(transformers, f"AutoModel{head}")
        model = spread(kind.from_config(tiny_config(model_type, fields), attn_implementation="eager"))
        model.save_pretrained(tmp_path)
        return model

    return save


def prompts(*lengths: int) -> list[Tensor]:
    return [torch.randint(5, 96, (length,)) for length in lengths]


@pytest.mark.parametrize("name", [*CASES, *DECODERS])
def test_hidden_states_are_those_of_transformers_alone_and_in_company(
    name: str, save: Save, load: Load, states: Compute, tmp_path: Path
) -> None:
    theirs = save(*(CASES | DECODERS)[name])
    ours = load(tmp_path)
    assert ours.whole_prompts
    rows = prompts(LENGTH, 1, 17, 2)
    together = states(ours, rows)
    for row, found in zip(rows, together, strict=True):
        assert difference(found, theirs(row[None]).last_hidden_state[0]) < 1e-4
        assert torch.equal(states(ours, [row])[0], found)


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert", "gte"])
def test_a_long_prompt_is_computed_beside_a_short_one(
    name: str, save: Save, load: Load, states: Compute, tmp_path: Path
) -> None:
    model_type, fields = CASES[name]
    theirs = save(model_type, {**fields, "max_position_embeddings": 1302})
    ours = load(tmp_path, max_model_len=1300)
    rows = prompts(1300, 3, 129)
    for row, found in zip(rows, states(ours, rows), strict=True):
        assert difference(found, theirs(row[None]).last_hidden_state[0]) < 1e-4


def test_layers_that_are_one_in_the_checkpoint_are_one_in_memory() -> None:
    specs = {depth: bert.albert(tiny_config("albert", {**ALBERT, "num_hidden_layers": depth})) for depth in (1, 5)}
    place = Placement(torch.float32, CPU)
    bytes_of = {depth: build_transformer(spec, place, LENGTH, POOLER).num_bytes for depth, spec in specs.items()}
    assert bytes_of[1] == bytes_of[5]


@pytest.mark.parametrize("field", ["num_hidden_groups", "inner_group_num"])
def test_an_albert_whose_layers_differ_is_refused(field: str) -> None:
    with pytest.raises(ModelError, match=f"{field}=2 is not supported"):
        bert.albert(tiny_config("albert", {**ALBERT, field: 2}))


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "electra"])
def test_a_bert_that_generates_is_refused(model_type: str, save: Save, load: Load, tmp_path: Path) -> None:
    save(model_type, {"is_decoder": True})
    with pytest.raises(ModelError, match="is_decoder=True"):
        load(tmp_path)


@pytest.mark.parametrize("name", [name for name in CASES if name != "eurobert"])  # whose head pools in three ways
def test_classes_of_prompts_are_those_of_transformers(
    name: str, save: Save, load: Load, pool: Compute, tmp_path: Path
) -> None:
    theirs = save(*CASES[name], "ForSequenceClassification")
    rows = prompts(LENGTH, 5)
    found = pool(load(tmp_path), rows, use_activation=False)
    for row, logits in zip(rows, found, strict=True):
        assert difference(logits, theirs(row[None]).logits[0]) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_classes_of_tokens_are_those_of_transformers(
    name: str, save: Save, load: Load, pool: Compute, tmp_path: Path
) -> None:
    theirs = save(*CASES[name], "ForTokenClassification")
    rows = prompts(LENGTH, 5)
    found = pool(load(tmp_path), rows)
    for row, probabilities in zip(rows, found, strict=True):
        assert difference(probabilities, theirs(row[None]).logits[0].softmax(-1)) < 1e-4


@pytest.mark.parametrize("name", [name for name, (_, fields) in CASES.items() if name not in ("mpnet", "distilbert")])
def test_an_encoder_of_a_language_model_is_found(
    name: str, save: Save, load: Load, states: Compute, tmp_path: Path
) -> None:
    theirs = save(*CASES[name], "ForMaskedLM").base_model
    (row,) = prompts(9)
    assert difference(states(load(tmp_path), [row])[0], theirs(row[None]).last_hidden_state[0]) < 1e-4


@pytest.mark.parametrize("name", ["bert", "electra", "nomic_bert"])
def test_the_texts_of_a_pair_are_told_apart(name: str, save: Save, load: Load, states: Compute, tmp_path: Path) -> None:
    theirs = save(*CASES[name])
    rows, ours = prompts(12, 7), load(tmp_path)
    types = [(torch.arange(len(row)) > 4).long() for row in rows]
    for row, kinds, found in zip(rows, types, states(ours, rows, types), strict=True):
        expected = theirs(row[None], token_type_ids=kinds[None]).last_hidden_state[0]
        assert difference(found, expected) < 1e-4
    assert difference(states(ours, rows)[0], states(ours, rows, types)[0]) > 1e-2


def test_a_model_of_one_type_takes_the_second_text_for_it(
    save: Save, load: Load, states: Compute, tmp_path: Path
) -> None:
    save(*CASES["xlm_roberta"])
    rows, ours = prompts(12), load(tmp_path)
    assert torch.equal(states(ours, rows)[0], states(ours, rows, [torch.ones(12, dtype=torch.int64)])[0])


@pytest.mark.parametrize("name", FOREIGN)
def test_an_encoder_without_a_family_is_computed_by_transformers(
    name: str, save: Save, load: Load, dense_states: Compute, tmp_path: Path
) -> None:
    theirs = save(name, FOREIGN[name])
    ours = load(tmp_path)
    assert ours.whole_prompts and ours.num_bytes > 0
    rows = prompts(LENGTH, 1, 6)
    for row, found in zip(rows, dense_states(ours, rows), strict=True):
        assert difference(found, theirs(row[None])[0][0]) < 1e-4
        assert torch.equal(dense_states(ours, [row])[0], found)


@pytest.mark.parametrize(
    "name",
    [name for name in FOREIGN if name not in ("flaubert", "fnet", "longformer", "mobilebert", "xlm")],
)
def test_an_encoder_without_a_family_classifies(
    name: str, save: Save, load: Load, pool: Compute, tmp_path: Path
) -> None:
    theirs = save(name, FOREIGN[name], "ForSequenceClassification")
    rows = prompts(LENGTH, 5)
    for row, logits in zip(rows, pool(load(tmp_path), rows, use_activation=False), strict=True):
        assert difference(logits, theirs(row[None]).logits[0]) < 1e-4


def test_every_encoder_has_a_case() -> None:
    kinds = [(kind, fields) for kind, fields in CASES.values()] + [*FOREIGN.items()]
    made = {type(transformers.AutoModel.from_config(tiny_config(*kind))).__name__ for kind in kinds}
    own_tests = {"GteNewModel", "JinaBertModel", "NewModel"}
    assert {f"{base}Model" for base in (*ENCODERS, *FALLBACKS)} - made == own_tests


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert", "gte"])
def test_half_precision_is_near_and_does_not_depend_on_company(
    name: str, dtype: torch.dtype, save: Save, load: Load, states: Compute, tmp_path: Path
) -> None:
    theirs = save(*CASES[name]).to(dtype)
    ours, rows = load(tmp_path, dtype=dtype), prompts(LENGTH, 3)
    found = states(ours, rows)
    assert torch.equal(states(ours, rows[:1])[0], found[0])
    assert difference(found[0], theirs(rows[0][None]).last_hidden_state[0]) < (0.2 if dtype == torch.bfloat16 else 0.04)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["deberta-v2", "esm", "xlm"])
def test_transformers_own_module_gives_its_own_bits_in_half_precision(
    name: str, dtype: torch.dtype, save: Save, load: Load, dense_states: Compute, tmp_path: Path
) -> None:
    save(name, FOREIGN[name])
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    (row,) = prompts(LENGTH)
    ours = load(tmp_path, dtype=dtype)
    found = dense_states(ours, [row])[0]
    assert found.dtype == dtype
    assert torch.equal(found, theirs(row[None])[0][0])


class PassingAttention(DenseAttention):
    """Hands q on, and computes nothing."""

    def run(self, q: Tensor, *_: Any) -> Tensor:
        return q


@pytest.mark.skipif(native.library() is None, reason="there are no kernels")
@pytest.mark.parametrize("name", CASES)
def test_all_but_attention_is_recorded(name: str, save: Save, load: Load, tmp_path: Path) -> None:
    save(*CASES[name])
    ours = load(tmp_path)
    ids, types, positions = torch.randint(5, 96, (16,)), torch.zeros(16, dtype=torch.int64), torch.arange(16)
    plans, depth = (PassingAttention().plan(),), len(ours.cache_specs)
    step = Step(ids, types, positions, plans, (None,) * depth, (0,) * depth, PassingAttention())
    program = ops.record(lambda rows: ours(step.first(rows)), 16)
    assert program is not None
    assert torch.equal(program.run(5).clone(), ours(step.first(5)))


@pytest.mark.skipif(native.library() is None, reason="there are no kernels")
@pytest.mark.parametrize("name", [*CASES, *DECODERS])
def test_a_recorded_encoder_gives_the_same_bits(
    name: str, save: Save, load: Load, native_states: Compute, recorded: Compute, tmp_path: Path
) -> None:
    save(*(CASES | DECODERS)[name])
    ours, rows = load(tmp_path), prompts(17, LENGTH, 1)
    types = [torch.arange(len(row)) % 2 for row in rows]
    for found, expected in zip(recorded(ours, rows, types), native_states(ours, rows, types), strict=True):
        assert torch.equal(found, expected)


MUTATIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "window": lambda options: {"window": options.window and options.window + 1},
    "causal": lambda options: {"causal": True},
    "bias": lambda options: {"bias": None},
    "scale": lambda options: {"scale": options.scale * 1.01},
}


@pytest.mark.parametrize(
    ("name", "mutation"),
    [
        ("modernbert", "window"),
        ("embeddinggemma", "window"),
        ("bidirectional mistral, window", "window"),
        ("bert", "causal"),
        ("gte-qwen2", "causal"),
        ("mpnet", "bias"),
        ("nomic_bert", "scale"),
    ],
)
def test_a_changed_attention_breaks_the_equality(
    name: str, mutation: str, save: Save, load: Load, states: Compute, tmp_path: Path
) -> None:
    theirs = save(*(CASES | DECODERS)[name])
    ours = load(tmp_path)
    for block in ours.blocks:
        options = block.attention.options
        block.attention.options = replace(options, **MUTATIONS[mutation](options))
    (row,) = prompts(LENGTH)
    assert difference(states(ours, [row])[0], theirs(row[None]).last_hidden_state[0]) > 1e-3
