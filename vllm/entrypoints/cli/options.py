"""Flags made from dataclasses: a field of EngineArgs or ServerArgs is a flag, spelled --like-this.

Nothing has a default here: what is not given is not there, and the dataclass fills it in.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm.config import UNSUPPORTED, WITHOUT_EFFECT, EngineArgs
from vllm.errors import ConfigError

_SWITCHES = ("enable_", "disable_", "enforce_", "use_", "worker_use_")
"""How the names of options begin that take no value."""

GROUPS = {
    "model": (
        *("revision", "trust_remote_code", "code_revision", "hf_token", "hf_overrides", "download_dir"),
        *("load_format", "model_impl", "dtype", "quantization", "max_model_len"),
    ),
    "devices": ("device", "tensor_parallel_size"),
    "task": ("task", "runner", "convert", "pooler_config", "override_pooler_config"),
    "tokenizer and templates": ("tokenizer", "tokenizer_revision", "skip_tokenizer_init", "chat_template"),
    "sampling": ("generation_config", "override_generation_config", "seed", "max_logprobs", "logprobs_mode"),
    "media": (
        *("limit_mm_per_prompt", "mm_processor_kwargs", "mm_processor_cache_gb"),
        *("allowed_local_media_path", "allowed_media_domains"),
    ),
    "cache": (
        *("block_size", "kv_cache_dtype", "enable_prefix_caching", "gpu_memory_utilization"),
        *("kv_cache_memory_bytes", "num_gpu_blocks_override"),
    ),
    "scheduling": ("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "scheduling_policy"),
}
"""The engine's options as help shows them; what is in no group stands under "engine"."""


def add_engine_options(parser: argparse.ArgumentParser, *, without: Iterable[str] = ()) -> None:
    """Add a flag for every field of EngineArgs but the model and `without`, and --config for all flags of the command."""
    skip = {"model", *without}
    titles = {name: title for title, names in GROUPS.items() for name in names}
    add_options(parser, EngineArgs, skip, titles, "engine")
    add_silent_options(parser, (*UNSUPPORTED, *WITHOUT_EFFECT), skip)
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file whose keys are flags; the command line wins",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Let the model be named by position or by flag."""
    text = "folder or Hub name; none: the tiny model inside"
    parser.add_argument("model_tag", metavar="MODEL", nargs="?", default=argparse.SUPPRESS, help=text)
    parser.add_argument("--model", default=argparse.SUPPRESS, help="the same as a flag")


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the engine's options that were given.  Raises ConfigError where two models are named."""
    names = {option.name for option in dataclasses.fields(EngineArgs)} | {*UNSUPPORTED, *WITHOUT_EFFECT}
    given = {name: value for name, value in vars(options).items() if name in names}
    tag = getattr(options, "model_tag", None)
    if tag is not None and given.setdefault("model", tag) != tag:
        raise ConfigError(f"two models are named, {tag} and --model {given['model']}; name one")
    return given


def refuse_engine_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for options of an engine beside --url."""
    if given := engine_options(options):
        named = ", ".join("the model" if name == "model" else flag_of(name) for name in given)
        raise ConfigError(f"--url asks a server, which has its model and its options already; leave out {named}")


def add_options(
    parser: argparse.ArgumentParser, kind: Any, skip: set[str], titles: Mapping[str, str], rest: str
) -> None:
    """Add a flag for every field of a dataclass made of `vllm.config.option`s.

    `titles` has the help group of a field, `rest` is the group of the others.
    """
    hints = typing.get_type_hints(kind)
    members: dict[str, list[dataclasses.Field[Any]]] = {title: [] for title in [*titles.values(), rest]}
    for option in dataclasses.fields(kind):
        if option.name not in skip:
            members[titles.get(option.name, rest)].append(option)
    for title, options in members.items():
        group = parser.add_argument_group(title)  # help leaves out one that is empty
        for option in options:
            _add_option(group, option, hints[option.name])


def add_silent_options(parser: argparse.ArgumentParser, names: Iterable[str], skip: Iterable[str] = ()) -> None:
    """Add flags that help doesn't show: names of the interface, of which the dataclass says what it does with them."""
    for name in names:
        if name in skip:
            continue
        flag = flag_of(name)
        common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        if name.startswith(_SWITCHES):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        else:
            parser.add_argument(flag, type=_value, **common)


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return f"--{name.replace('_', '-')}"


def _add_option(group: Any, option: dataclasses.Field[Any], hint: Any) -> None:
    kind, many = _scalar(hint)
    common = {"dest": option.name, "default": argparse.SUPPRESS, "help": option.metadata["doc"].replace("%", "%%")}
    if kind is bool:
        group.add_argument(flag_of(option.name), action=argparse.BooleanOptionalAction, **common)
        return
    choices = [choice for choice in option.metadata["choices"] or () if choice is not None] or None
    metavar = None if choices else option.name.upper().rsplit("_", 1)[-1]
    if many:
        common |= {"nargs": "+", "action": _Items}
    group.add_argument(flag_of(option.name), type=kind, choices=choices, metavar=metavar, **common)


class Repeated(argparse.Action):
    """A flag that may be given several times, once for each value."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), values])


class _Items(argparse.Action):
    """Several values; one that is a JSON list stands for its items."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        items: list[Any] = []
        for value in values:
            listed = _value(value) if isinstance(value, str) and value.startswith("[") else value
            items.extend(listed if isinstance(listed, list) else [listed])
        setattr(namespace, self.dest, items)


def _scalar(hint: Any) -> tuple[Any, bool]:
    """Return what a flag's text is turned into, and whether there may be several."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not type(None)]
    origins = [typing.get_origin(kind) or kind for kind in kinds]
    if dict in origins:
        return json_object, False
    many = [kind for kind, origin in zip(kinds, origins, strict=True) if origin in (list, tuple, Sequence)]
    if many:
        inner = [kind for kind in typing.get_args(many[0]) if kind is not Ellipsis]
        return (_scalar(inner[0])[0] if inner else str), True
    return next((kind for kind in (int, float, str) if kind in kinds), kinds[0]), False


def json_object(text: str) -> dict[str, Any]:
    """Turn a flag's text into a dict."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _value(text: str) -> Any:
    """A number or an object where the text is one, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
