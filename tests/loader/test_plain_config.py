"""A configuration that is read without transformers is the one that transformers reads."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import configurations
from vllm.loader.config import read_config
from vllm.loader.plain_config import _DERIVED, plain_config

WHERE = Path("/models/one")
TINY = {"vocab_size": 60000, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6}
SIZES = {
    "gpt2": {"vocab_size": 60000, "n_embd": 64, "n_head": 4, "n_layer": 6},
    "distilbert": {"vocab_size": 60000, "dim": 64, "n_heads": 4, "n_layers": 6},
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# config.json files as they are published, shortened by what they share with others
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3ForCausalLM": {"model_type": "qwen3", "head_dim": 128, "rope_scaling": None, "rope_theta": 1000000},
    "Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", "num_experts": 128, "mlp_only_layers": [], "rope_theta": 1e6},
    "LlamaForCausalLM": {
        "model_type": "llama",
        "eos_token_id": [128001, 128008],
        "max_position_embeddings": 131072,
        "pretraining_tp": 1,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    },
    "MistralForCausalLM": {"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": None},
    "MixtralForCausalLM": {"model_type": "mixtral", "num_local_experts": 8, "router_aux_loss_coef": 0.02},
    "GemmaForCausalLM": {"model_type": "gemma", "head_dim": 256, "hidden_act": "gelu_pytorch_tanh"},
    "Gemma2ForCausalLM": {"model_type": "gemma2", "query_pre_attn_scalar": 224, "cache_implementation": "hybrid"},
    "Gemma3ForCausalLM": {"model_type": "gemma3_text", "rope_local_base_freq": 10000, "rope_theta": 1000000},
    "Gemma3ForConditionalGeneration": {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "_name_or_path": "gpt2"},
    "GPTNeoXForCausalLM": {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000},
    "OPTForCausalLM": {"model_type": "opt", "_remove_final_layer_norm": False, "prefix": "</s>", "ffn_dim": 3072},
    "Phi3ForCausalLM": {"model_type": "phi3", "original_max_position_embeddings": 4096, "sliding_window": 2047},
    "BertModel": {
        "model_type": "bert",
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
    },
    "BertForSequenceClassification": {
        "model_type": "bert",
        "id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"},
    },
    "CamembertModel": {"model_type": "camembert", "output_past": True, "max_position_embeddings": 514},
    "DistilBertModel": {"model_type": "distilbert", "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False},
    "ElectraModel": {"model_type": "electra", "embedding_size": 128, "summary_activation": "gelu"},
    "MPNetModel": {"model_type": "mpnet", "relative_attention_num_buckets": 32, "pad_token_id": 1},
    "RobertaModel": {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1},
    "XLMRobertaModel": {"model_type": "xlm-roberta", "output_past": True, "pad_token_id": 1, "vocab_size": 250002},
}


class _Complaint(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What transformers says meanwhile, also for the hundredth time."""
    from transformers.utils import logging as theirs

    listener, logger = _Complaint(), theirs.get_logger("transformers")
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    logger.addHandler(listener)
    try:
        yield listener.said
    finally:
        logger.removeHandler(listener)


def _by_transformers(content: dict[str, Any]) -> tuple[Any, list[str]]:
    from transformers import CONFIG_MAPPING

    with _heard() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CONFIG_MAPPING[content["model_type"]].from_dict(
            {**copy.deepcopy(content), "name_or_path": str(WHERE)}
        ), said


def _public(config: Any) -> dict[str, Any]:
    hidden = {"_content", "_original", "_output_attentions", "_post_init_done", "ignore_keys_at_rope_validation"}
    internal = {name for name in vars(config) if name.endswith("_implementation_internal")}
    values = {name: value for name, value in vars(config).items() if name not in hidden | internal}
    if values.pop("dtype_name", None) is not None or "dtype" not in values:  # ours becomes torch's when it is asked for
        values["dtype"] = config.dtype
    return values


def _exact(value: Any) -> Any:
    """Something that is equal only for equal values of equal types: 1, 1.0 and True are three things."""
    if isinstance(value, dict):
        return {key: _exact(entry) for key, entry in value.items()}
    return [_exact(entry) for entry in value] if isinstance(value, list) else (type(value), value)


def _same(left: Any, right: Any) -> bool:
    return _exact(_public(left)) == _exact(_public(right))


@pytest.mark.parametrize("architecture", sorted(PUBLISHED))
def test_every_published_configuration_is_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    content = {"architectures": [architecture], **PUBLISHED[architecture]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config, theirs = read_config(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert config.to_dict() | {"_name_or_path": ""} == theirs.to_dict() | {"_name_or_path": ""}
    assert all(getattr(config, name) == value for name, value in _public(theirs).items() if name != "_name_or_path")
    assert all(getattr(config, alias) == getattr(theirs, alias) for alias in theirs.attribute_map)
    assert config.get_text_config().vocab_size == theirs.get_text_config().vocab_size
    assert (plain_config(content, tmp_path) is not None) == (content["model_type"] in _DERIVED)


def test_what_transformers_declares_is_written_down() -> None:
    content, written = configurations.declared(), json.loads(configurations.TARGET.read_text())
    assert written["types"] == content["types"]
    for names in ("members", "generation"):  # what an earlier version has beside them does no harm
        assert set(written[names]) >= set(content[names])
    assert configurations.TARGET.read_text() == configurations.written(written)
    assert set(content["types"]) == set(_DERIVED)


OF_KIND: dict[str, list[Any]] = {
    "null": [None],
    "bool": [True, False],
    "int": [1, 2, 3, 4, 6, 8, 64, 96, 32768, 0, -1],
    "float": [0.0, 0.5, 1.0, 1e-6, 10000.0, 2.5, -0.5],
    "str": ["silu", "gelu", "gelu_pytorch_tanh", "float32", "bfloat16", "torch.int8", "", "x"],
    "list[int]": [[], [1, 2], [0]],
    "list[str]": [["a"], ["full_attention"] * 6, ["sliding_attention", "full_attention"] * 3, ["conv"] * 6, ["a"] * 2],
    "dict": [
        {"rope_type": "default"},
        {"rope_type": "default", "rope_theta": 7.0},
        {"rope_type": "linear", "factor": 2.0},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0},
        LLAMA3,
        {**LLAMA3, "rope_theta": 5e5},
        {**LLAMA3, "factor": 0.5},
        {**LLAMA3, "original_max_position_embeddings": 10**6},
        {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"},
        {"full_attention": {"rope_type": "default"}},
        {"a": 1},
        {"0": "a", "1": "b"},
        {"0": "a", "1": 1},
        {"a": 0},
        {"a": "0", "b": "1"},
        {},
    ],
}
# names that stand in files beside what a class declares, with the kinds of values they mostly have there
BESIDE: dict[str, list[str]] = {
    "rope_theta": ["float", "int"],
    "rope_scaling": ["dict", "null"],
    "torch_dtype": ["str", "null"],
    "_name_or_path": ["str"],
    "name_or_path": ["str"],
    "temperature": ["float"],
    "n_ctx": ["int"],
    "prefix": ["str"],
    "foo": ["int", "list[int]"],
    "foo_token_id": ["int"],
    "head_dim": ["int"],
    "layer_types": ["list[str]"],
    "num_labels": ["int"],
    "partial_rotary_factor": ["float"],
    "rope_type": ["str"],
    "quantization_config": ["dict"],
    "text_config": ["dict"],
    "decoder": ["int"],
    "per_layer_config": ["dict"],
    "_foo": ["int"],
    "auto_map": ["dict"],
    "position_embedding_type": ["str"],
    "sentence_transformers": ["dict"],
}


@st.composite
def _entries(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """A few entries of a config.json; most values are of a kind that fits."""
    declared = json.loads(configurations.TARGET.read_text())["types"][model_type]
    kinds = {name: kinds for name, (_, *kinds) in declared["fields"].items()}
    kinds |= BESIDE | {name: ["int"] for name in declared["aliases"]}
    entries = {}
    for name in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=5, unique=True)):
        fits = draw(st.integers(0, 9)) > 0
        kind = draw(st.sampled_from(kinds[name] if fits else sorted(OF_KIND)))
        entries[name] = draw(st.sampled_from(OF_KIND[kind]))
    return entries


@settings(max_examples=600)
@given(data=st.data())
def test_whatever_a_file_says_it_is_read_as_transformers_reads_it_or_left_to_it(data: st.DataObject) -> None:
    model_type = data.draw(st.sampled_from(sorted(_DERIVED)))
    sizes = SIZES.get(model_type, TINY)
    content = {"model_type": model_type, "architectures": ["X"], **sizes}
    content |= data.draw(_entries(model_type))
    config = plain_config(copy.deepcopy(content), WHERE)
    if config is None:
        return
    theirs, said = _by_transformers(content)  # it raises nothing
    assert _same(config, theirs)
    assert said == []


@settings(max_examples=100)
@given(data=st.data())
def test_what_a_class_declares_is_read_without_transformers(data: st.DataObject) -> None:
    model_type = data.draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
    content = {"model_type": model_type, "architectures": ["X"], **TINY, "max_position_embeddings": 4096}
    content |= data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "num_key_value_heads": st.sampled_from([1, 2, 4]),
                "rope_theta": st.sampled_from([1e4, 5e5, 10000]),
                "rope_scaling": st.sampled_from([None, LLAMA3]),
                "torch_dtype": st.sampled_from(["bfloat16", "float16", None]),
                "tie_word_embeddings": st.booleans(),
                "eos_token_id": st.sampled_from([2, [2, 3], None]),
                "transformers_version": st.just("4.40.0"),
            },
        )
    )
    config = plain_config(content, WHERE)
    assert config is not None
    assert _same(config, _by_transformers(content)[0])


def test_what_only_transformers_can_do_is_asked_of_it(tmp_path: Path) -> None:
    content = {"architectures": ["Qwen2ForCausalLM"], **PUBLISHED["Qwen2ForCausalLM"]}
    config, theirs = plain_config(content, WHERE), _by_transformers(content)[0]
    assert config is not None and config.dtype is torch.bfloat16
    assert config.to_json_string() == theirs.to_json_string() and repr(config) == repr(theirs)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 896
    assert not hasattr(config, "quantization_config") and getattr(config, "n_positions", None) is None
    assert _same(copy.deepcopy(config), config)


def test_a_configuration_of_the_usual_kind_needs_no_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["X"], **PUBLISHED["Qwen2ForCausalLM"]}))
    code = (
        "import sys; from pathlib import Path; from vllm.loader.config import read_config\n"
        f"print(read_config(Path({str(tmp_path)!r})).hidden_size, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["896", "False"]
