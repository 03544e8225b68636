"""What a model is for: architecture, files and options, settled or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from vllm.errors import ConfigError, ModelError
from vllm.loader.config import read_config
from vllm.models.tasks import native_length, resolve_pooling
from vllm.pooling_params import PoolerConfig, Pooling

Write = Callable[..., Path]
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 96, "intermediate_size": 48}
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
OLD = "sentence_transformers.models."
NEW = "sentence_transformers.base.modules.transformer."


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a folder: config.json, and files of sentence-transformers by path."""

    def write(architecture: str, model_type: str, files: dict[str, Any] | None = None, **fields: Any) -> Path:
        content = {"architectures": [architecture], "model_type": model_type, **SIZES, **TOKENS, **fields}
        for name, entry in {**(files or {}), "config.json": content}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(entry))
        return tmp_path

    return write


def resolve(folder: Path, **options: Any) -> Pooling | None:
    return resolve_pooling(read_config(folder), folder, **options)


def settled(pooling: Pooling | None, names: Iterable[str]) -> dict[str, Any]:
    """Fields of what was settled: of the pooling, or of its texts."""
    assert pooling is not None
    return {name: getattr(pooling if hasattr(pooling, name) else pooling.texts, name) for name in names}


def modules(*entries: tuple[str, str], package: str = OLD) -> list[dict[str, Any]]:
    return [{"idx": i, "name": str(i), "path": path, "type": package + kind} for i, (kind, path) in enumerate(entries)]


CASES: dict[str, tuple[tuple[str, str], dict[str, Any], dict[str, Any]]] = {
    "a bert embeds with its first token": (
        ("BertModel", "bert"),
        {},
        {"tasks": ("embed", "token_embed"), "pooling_type": "CLS", "normalize": True, "num_token_types": 2},
    ),
    "a bert of a language model embeds": (("BertForMaskedLM", "bert"), {}, {"pooling_type": "CLS", "width": 32}),
    "a decoder without a head embeds with its last token": (("Qwen3Model", "qwen3"), {}, {"pooling_type": "LAST"}),
    "a decoder that sees both ways embeds with the mean": (
        ("Qwen2Model", "qwen2"),
        {"is_causal": False},
        {"pooling_type": "MEAN"},
    ),
    "a decoder that its name says sees both ways": (("MistralBiModel", "mistral"), {}, {"pooling_type": "MEAN"}),
    "nvidia's embedding models": (
        ("LlamaBidirectionalModel", "llama_bidirec"),
        {"pooling": "avg"},
        {"pooling_type": "MEAN"},
    ),
    "one label is a score": (
        ("RobertaForSequenceClassification", "roberta"),
        {"id2label": {"0": "LABEL_0"}},
        {"tasks": ("classify",), "num_labels": 1, "activation": "sigmoid", "is_cross_encoder": True},
    ),
    "several labels are probabilities": (
        ("BertForSequenceClassification", "bert"),
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"num_labels": 3, "activation": "softmax", "is_cross_encoder": False, "pooling_type": "CLS"},
    ),
    "several labels at once": (
        ("BertForSequenceClassification", "bert"),
        {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"},
        {"activation": "sigmoid"},
    ),
    "a regression": (
        ("BertForSequenceClassification", "bert"),
        {"id2label": {"0": "a"}, "problem_type": "regression"},
        {"activation": "none"},
    ),
    "sentence-transformers know the activation better": (
        ("BertForSequenceClassification", "bert"),
        {"id2label": {"0": "a"}, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"activation": "none"},
    ),
    "and knew it under another name": (
        ("BertForSequenceClassification", "bert"),
        {"id2label": {"0": "a"}, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"activation": "none"},
    ),
    "a modernbert that classifies by the mean": (
        ("ModernBertForSequenceClassification", "modernbert"),
        {"classifier_pooling": "mean", "cls_token_id": 0, "sep_token_id": 2},
        {"pooling_type": "MEAN"},
    ),
    "tokens are classified": (
        ("ElectraForTokenClassification", "electra"),
        {},
        {"tasks": ("token_classify",), "pooling_type": "ALL", "num_labels": 2, "activation": "softmax"},
    ),
    "a model without a family of ours": (("DebertaV2Model", "deberta-v2"), {}, {"pooling_type": "CLS"}),
    "a reward model": (
        ("Qwen2ForRewardModel", "qwen2"),
        {},
        {"tasks": ("token_classify",), "pooling_type": "ALL", "num_labels": 1, "activation": "none"},
    ),
    "a process reward model": (("Qwen2ForProcessRewardModel", "qwen2"), {}, {"pooling_type": "STEP", "num_labels": 2}),
    "a colbert": (("HF_ColBERT", "bert"), {}, {"tasks": ("token_embed",), "pooling_type": "ALL", "width": 128}),
    "matryoshka": (
        ("BertModel", "bert"),
        {"is_matryoshka": True, "matryoshka_dimensions": [8, 16]},
        {"matryoshka": (8, 16)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_architecture_says_what_a_model_is_for(name: str, write: Write) -> None:
    names, fields, expected = CASES[name]
    pooling = resolve(write(*names, **fields))
    assert pooling is not None
    assert settled(pooling, expected) == expected


OPTIONS: dict[str, tuple[tuple[str, str], dict[str, Any], dict[str, Any]]] = {
    "task embed": (("LlamaForCausalLM", "llama"), {"task": "embed"}, {"tasks": ("embed", "token_embed")}),
    "convert embed": (("LlamaForCausalLM", "llama"), {"convert": "embed"}, {"pooling_type": "LAST"}),
    "runner pooling": (("LlamaForCausalLM", "llama"), {"runner": "pooling"}, {"pooling_type": "LAST"}),
    "convert classify": (("LlamaForCausalLM", "llama"), {"convert": "classify"}, {"tasks": ("classify",)}),
    "task reward": (
        ("LlamaForCausalLM", "llama"),
        {"task": "reward"},
        {"tasks": ("token_embed",), "pooling_type": "ALL", "normalize": False},
    ),
    "task score on classes": (("BertForSequenceClassification", "bert"), {"task": "score"}, {"tasks": ("classify",)}),
    "task score on an embedding": (("BertModel", "bert"), {"task": "score"}, {"tasks": ("embed", "token_embed")}),
    "classes are dropped to embed": (
        ("BertForSequenceClassification", "bert"),
        {"convert": "embed"},
        {"tasks": ("embed", "token_embed"), "num_labels": 0},
    ),
    "a pooling type": (
        ("BertModel", "bert"),
        {"pooler_config": PoolerConfig(pooling_type="MEAN", normalize=False, dimensions=8)},
        {"pooling_type": "MEAN", "normalize": False, "dimensions": 8},
    ),
    "no activation": (
        ("BertForSequenceClassification", "bert"),
        {"pooler_config": PoolerConfig(softmax=False)},
        {"activation": "none"},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_user_says_what_a_model_is_for(name: str, write: Write) -> None:
    names, options, expected = OPTIONS[name]
    pooling = resolve(write(*names), **options)
    assert pooling is not None
    assert settled(pooling, expected) == expected


@pytest.mark.parametrize("options", [{}, {"task": "generate"}, {"runner": "generate"}, {"convert": "none"}])
def test_a_model_with_a_vocabulary_generates(options: dict[str, Any], write: Write) -> None:
    assert resolve(write("LlamaForCausalLM", "llama"), **options) is None


MEAN = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
DENSE = {"in_features": 32, "out_features": 8, "bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
FOLDERS: dict[str, tuple[tuple[str, str], dict[str, Any], dict[str, Any]]] = {
    "older files": (
        ("BertModel", "bert"),
        {
            "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")),
            "1_Pooling/config.json": MEAN,
            "sentence_bert_config.json": {"max_seq_length": 50, "do_lower_case": True},
            "config_sentence_transformers.json": {
                "prompts": {"query": "q: ", "passage": "p: "},
                "default_prompt_name": "query",
                "similarity_fn_name": "dot",
            },
        },
        {
            "pooling_type": "MEAN",
            "normalize": True,
            "lower_case": True,
            "prompts": (("query", "q: "), ("passage", "p: ")),
            "default_prompt": "query",
            "similarity": "dot",
        },
    ),
    "newer files": (
        ("BertModel", "bert"),
        {
            "modules.json": [
                {
                    "idx": 0,
                    "name": "0",
                    "path": "",
                    "type": "sentence_transformers.base.modules.transformer.Transformer",
                },
                {
                    "idx": 1,
                    "name": "1",
                    "path": "1_Pooling",
                    "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
                },
            ],
            "1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True},
        },
        {"pooling_type": "LAST", "normalize": False, "concatenated": (), "width": 32},
    ),
    "joined": (
        ("BertModel", "bert"),
        {
            "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling")),
            "1_Pooling/config.json": {**MEAN, "pooling_mode_max_tokens": True, "pooling_mode_lasttoken": True},
        },
        {"pooling_type": "MAX", "concatenated": ("MEAN", "LAST"), "width": 96},
    ),
    "projected": (
        ("BertModel", "bert"),
        {
            "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")),
            "1_Pooling/config.json": MEAN,
            "2_Dense/config.json": DENSE,
        },
        {"width": 8},
    ),
    "a colbert": (
        ("ModernBertModel", "modernbert"),
        {"modules.json": modules(("Transformer", ""), ("Dense.Dense", "1_Dense")), "1_Dense/config.json": DENSE},
        {"tasks": ("token_embed",), "pooling_type": "ALL", "width": 8},
    ),
    "a decoder with pooling": (
        ("Qwen3ForCausalLM", "qwen3"),
        {
            "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")),
            "1_Pooling/config.json": {"pooling_mode_lasttoken": True},
        },
        {"tasks": ("embed", "token_embed"), "pooling_type": "LAST"},
    ),
    "a decoder that scores with two tokens": (
        ("Qwen3ForCausalLM", "qwen3"),
        {
            "modules.json": modules(("Transformer", ""), ("LogitScore", "1_LogitScore")),
            "1_LogitScore/config.json": {"true_token_id": 7, "false_token_id": 5},
            "config_sentence_transformers.json": {"activation_fn": "torch.nn.modules.linear.Identity"},
        },
        {"tasks": ("classify",), "label_tokens": (5, 7), "label_difference": True, "activation": "none"},
    ),
    "a decoder that scores with one token": (
        ("Qwen3ForCausalLM", "qwen3"),
        {
            "modules.json": modules(("Transformer", ""), ("LogitScore", "1_LogitScore")),
            "1_LogitScore/config.json": {"true_token_id": 7, "false_token_id": None},
        },
        {"label_tokens": (7,), "label_difference": False, "num_labels": 1, "activation": "sigmoid"},
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_sentence_transformers_is_read(name: str, write: Write) -> None:
    names, files, expected = FOLDERS[name]
    extra = {"cls_token_id": 0, "sep_token_id": 2} if names[1] == "modernbert" else {}
    pooling = resolve(write(*names, files, **extra))
    assert pooling is not None
    assert settled(pooling, expected) == expected


REFUSED: dict[str, tuple[tuple[str, str], dict[str, Any], dict[str, Any], str]] = {
    "to generate without a vocabulary": (
        ("BertModel", "bert"),
        {},
        {"task": "generate"},
        "BertModel has no vocabulary to generate from",
    ),
    "to classify without classes": (
        ("BertModel", "bert"),
        {},
        {"task": "classify"},
        "use a checkpoint of BertForSequenceClassification, or task='embed'",
    ),
    "two words that disagree": (
        ("LlamaForCausalLM", "llama"),
        {},
        {"task": "embed", "runner": "generate"},
        "task='embed' means runner='pooling', but runner='generate' is given",
    ),
    "a pooling type of tokens for a vector": (
        ("BertModel", "bert"),
        {},
        {"pooler_config": PoolerConfig(pooling_type="ALL")},
        "pooling_type='ALL' does not fit embed; use CLS, LAST or MEAN",
    ),
    "pieces of what is no embedding": (
        ("BertForSequenceClassification", "bert"),
        {},
        {"pooler_config": PoolerConfig(enable_chunked_processing=True)},
        "enable_chunked_processing is for models that embed",
    ),
    "another type in the place of several": (
        ("BertModel", "bert"),
        FOLDERS["joined"][1],
        {"pooler_config": PoolerConfig(pooling_type="CLS")},
        "can't replace the types that this model joins, MAX, MEAN, LAST",
    ),
    "a module of another kind": (
        ("BertModel", "bert"),
        {"modules.json": modules(("Transformer", ""), ("WordWeights", "1_WordWeights"))},
        {},
        "a module of the kind 'WordWeights'; only Transformer, Pooling",
    ),
    "a pooling mode of another kind": (
        ("BertModel", "bert"),
        {
            "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling")),
            "1_Pooling/config.json": {"pooling_mode_whitening": True},
        },
        {},
        "pooling mode 'pooling_mode_whitening' is not supported; cls, max",
    ),
    "a module that isn't there": (
        ("BertModel", "bert"),
        {"modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling"))},
        {},
        "1_Pooling/config.json, which modules.json speaks of, is not there",
    ),
    "prompts that don't count": (
        ("BertModel", "bert"),
        {
            "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling")),
            "1_Pooling/config.json": {**MEAN, "include_prompt": False},
            "config_sentence_transformers.json": {"prompts": {"query": "q: "}},
        },
        {},
        "include_prompt=false",
    ),
    "a projection behind the norm": (
        ("BertModel", "bert"),
        {
            "modules.json": modules(("Pooling", "1_Pooling"), ("Normalize", "2_N"), ("Dense", "3_Dense")),
            "1_Pooling/config.json": MEAN,
            "3_Dense/config.json": DENSE,
        },
        {},
        "a Dense behind Normalize is not supported",
    ),
    "a path out of the folder": (
        ("BertModel", "bert"),
        {"modules.json": modules(("Transformer", "../other"))},
        {},
        "'../other', which is not a folder of its own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(name: str, write: Write) -> None:
    names, files, options, message = REFUSED[name]
    folder = write(*names, files)
    with pytest.raises((ConfigError, ModelError), match=message.replace("(", r"\(")):
        resolve(folder, **options)


@pytest.mark.parametrize(
    ("names", "fields", "files", "expected"),
    [
        (("BertModel", "bert"), {"max_position_embeddings": 64}, {}, 64),
        (("BertModel", "bert"), {"max_position_embeddings": 64}, {"sentence_bert_config.json": {}}, 64),
        (("RobertaModel", "roberta"), {"max_position_embeddings": 66}, {}, 64),
        (("MPNetModel", "mpnet"), {"max_position_embeddings": 66}, {}, 64),
        (("NewModel", "new"), {"max_position_embeddings": 64, "rope_scaling": {"type": "ntk", "factor": 8.0}}, {}, 64),
        (("NomicBertModel", "nomic_bert"), {"n_positions": 48}, {}, 48),
    ],
)
def test_a_prompt_may_be_as_long_as_the_model_was_made_for(
    names: tuple[str, str], fields: dict[str, Any], files: dict[str, Any], expected: int, write: Write
) -> None:
    folder = write(*names, files, **fields)
    assert native_length(read_config(folder), folder) == expected


def test_sentence_transformers_may_shorten_prompts(write: Write) -> None:
    files = {
        "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling")),
        "1_Pooling/config.json": MEAN,
        "sentence_xlm-roberta_config.json": {"max_seq_length": 20},
    }
    folder = write("BertModel", "bert", files)
    assert native_length(read_config(folder), folder) == 20


def test_a_gemma3_names_its_extended_length(write: Write) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    folder = write("Gemma3ForCausalLM", "gemma3_text", rope_parameters=ropes, max_position_embeddings=131072)
    assert native_length(read_config(folder), folder) == 131072
