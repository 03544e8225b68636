"""Write down what transformers' configuration classes declare, for the model types that `loader/plain_config.py` reads.

python tools/configurations.py        rewrites vllm/assets/configurations.json
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "vllm" / "assets" / "configurations.json"
MODEL_TYPES = (
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "gemma",
    "gemma2",
    "gpt2",
    "llama",
    "mistral",
    "mixtral",
    "mpnet",
    "opt",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "roberta",
    "xlm-roberta",
)
# What the base class declares is annotated with names that only type checkers see.
_BASE = {
    "transformers_version": ["str", "null"],
    "architectures": ["list[str]", "null"],
    "output_hidden_states": ["bool"],
    "return_dict": ["bool"],
    "dtype": ["str", "null"],
    "chunk_size_feed_forward": ["int"],
    "is_encoder_decoder": ["bool"],
    "id2label": ["null", "dict"],
    "label2id": ["null", "dict"],
    "problem_type": ["null"],
}


def declared() -> dict[str, Any]:
    """Return the content of the file."""
    from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

    known = {model_type: _of_class(CONFIG_MAPPING[model_type]) for model_type in MODEL_TYPES}
    names = {name for model_type in MODEL_TYPES for name in dir(CONFIG_MAPPING[model_type])}
    fields = {name for entry in known.values() for name in entry["fields"]}
    assert set(_BASE) == {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {
        "members": sorted(name for name in names - fields if not name.startswith("__")),
        "generation": sorted(GenerationConfig._get_default_generation_params()),
        "types": known,
    }


def _of_class(config_class: Any) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(config_class):
        kinds = _BASE.get(field.name) or sorted({_kind(part) for part in _parts(field.type)})
        fields[field.name] = [field.default, *kinds]
    return {"rope_theta": config_class.default_theta, "aliases": config_class.attribute_map, "fields": fields}


def _parts(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _kind(part: Any) -> str:
    if part is type(None):
        return "null"
    if typing.get_origin(part) is list:
        return f"list[{typing.get_args(part)[0].__name__}]"
    return "dict" if part.__name__ == "RopeParameters" else part.__name__


def written(content: dict[str, Any]) -> str:
    """Return the file's text: a line per field."""
    parts = [f'"{name}": {json.dumps(content[name])}' for name in ("members", "generation")]
    blocks = []
    for model_type, entry in content["types"].items():
        fields = ",\n      ".join(f'"{name}": {json.dumps(value)}' for name, value in entry["fields"].items())
        head = f'"rope_theta": {entry["rope_theta"]}, "aliases": {json.dumps(entry["aliases"])}'
        blocks.append(f'  "{model_type}": {{{head}, "fields": {{\n      {fields}\n  }}}}')
    return "{\n" + ",\n".join([*parts, '"types": {\n' + ",\n".join(blocks) + "\n}"]) + "\n}\n"


if __name__ == "__main__":
    TARGET.write_text(written(declared()), encoding="utf-8")
