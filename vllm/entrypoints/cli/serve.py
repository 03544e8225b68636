"""`vllm serve [MODEL] [--model MODEL ...]`: models over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.config import EngineArgs
from vllm.entrypoints.cli.config_file import arguments_in
from vllm.entrypoints.cli.options import (
    Repeated,
    add_engine_options,
    add_options,
    add_silent_options,
    engine_options,
    flag_of,
    json_object,
)
from vllm.entrypoints.cli.parser import Parser
from vllm.entrypoints.serve.lineup import OWN, Options, line_up
from vllm.entrypoints.serve.settings import SERVER_UNSUPPORTED, SERVER_WITHOUT_EFFECT, ServerArgs
from vllm.errors import ConfigError

EPILOG = """examples:
  vllm serve Qwen/Qwen3-0.6B --port 8000 --api-key SECRET
  vllm serve ./my-model --max-model-len 8192 --quantization int8
  vllm serve Qwen/Qwen3-0.6B --model BAAI/bge-small-en-v1.5 --unload-after 600
  vllm serve Qwen/Qwen3-0.6B --model '{"model": "BAAI/bge-small-en-v1.5", "served_model_name": "small", "dtype": "float32"}'
  vllm serve --config server.yaml
"""

GROUPS = {
    "address": ("host", "port", "uds", "root_path"),
    "models": ("served_model_name", "unload_after"),
    "protection": (
        *("api_key", "allowed_origins", "allowed_methods", "allowed_headers", "allow_credentials", "ssl_keyfile"),
        *("ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"),
    ),
    "answers": (
        *("chat_template_content_format", "trust_request_chat_template", "response_role", "return_tokens_as_token_ids"),
        *("enable_prompt_tokens_details", "enable_force_include_usage", "enable_per_request_metrics"),
        *("enable_tokenizer_info_endpoint", "disable_ui"),
    ),
    "limits": (
        *("max_concurrent_requests", "max_num_queued_reqs", "max_body_bytes", "max_header_bytes", "max_headers"),
        *("max_prompts", "max_inputs", "max_n", "max_stop_strings", "max_stop_length", "request_timeout"),
        *("shutdown_timeout", "keep_alive_timeout", "header_timeout", "body_timeout", "send_timeout"),
    ),
    "logging": ("enable_log_requests", "max_log_len", "log_format", "otlp_traces_endpoint"),
}
"""The server's options as help shows them."""
_NAMING = ("model", "model_tag")
"""What names models, beside the options that they share."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "folder or Hub name; none: the tiny model inside"
    parser.add_argument("model_tag", metavar="MODEL", nargs="?", default=argparse.SUPPRESS, help=text)
    parser.add_argument(
        "--model",
        action=Repeated,
        type=_entry,
        default=argparse.SUPPRESS,
        help="the same as a flag, which may be repeated to serve several models, each under its own name; as a JSON "
        "object with `model` and its own options where these differ from what the other flags say",
    )
    known = _server_fields()
    add_options(parser, ServerArgs, set(), {name: title for title, names in GROUPS.items() for name in names}, "server")
    add_engine_options(parser, without=known)
    add_silent_options(parser, _server_names(), {*known, *(flag.dest for flag in parser._actions)})


def run(options: argparse.Namespace) -> int:
    from vllm.entrypoints.serve.server import run_server

    shared, models = split(options)
    if not models:
        _refuse_swallowed_model(shared.server)
        _say_what_there_is(shared.engine.get("download_dir"))
    return run_server(line_up(shared, models or [Options({}, {})]), ServerArgs(**shared.server))


def split(options: argparse.Namespace) -> tuple[Options, list[Options]]:
    """Return what was given for all models, and what for each.  Raises ConfigError for what one can't have for itself."""
    tag = getattr(options, "model_tag", None)
    entries = [*([] if tag is None else [tag]), *getattr(options, "model", [])]
    rest = argparse.Namespace(**{name: value for name, value in vars(options).items() if name not in _NAMING})
    return _options_of(rest), [_own(entry) for entry in entries]


def _entry(text: str) -> str | dict[str, Any]:
    """Read a value of --model: a name, or a JSON object."""
    return json_object(text) if text.startswith("{") else text


def _own(entry: str | dict[str, Any]) -> Options:
    """Return what was given for one model.  Its options are read as flags are."""
    if isinstance(entry, str):
        return Options({"model": entry}, {})
    name = entry.get("model", "")
    if not isinstance(name, str):
        raise ConfigError(f"--model: the model of {entry!r} must be a folder or a name")
    parser = Parser("vllm serve")
    add_arguments(parser)
    own = _options_of(parser.parse_args(arguments_in(entry, f"--model {name}", parser, without=("model",))))
    for option in own.server:
        if option not in OWN:
            raise ConfigError(f"--model {name}: {flag_of(option)} is for the whole server; give it beside the models")
    return Options({"model": name, **own.engine}, own.server)


def _options_of(options: argparse.Namespace) -> Options:
    """Sort options by whose they are.  A name that both the engine and the server have goes to both."""
    given = vars(options)
    server = {name: given[name] for name in [*_server_fields(), *_server_names()] if name in given}
    fields = {option.name for option in dataclasses.fields(EngineArgs)}
    engine = {name: value for name, value in engine_options(options).items() if name in fields or name not in server}
    return Options(engine, server)


def _server_fields() -> list[str]:
    return [option.name for option in dataclasses.fields(ServerArgs)]


def _server_names() -> list[str]:
    """Names that ServerArgs takes beside its fields."""
    return [*SERVER_UNSUPPORTED, *SERVER_WITHOUT_EFFECT]


def _refuse_swallowed_model(server: Mapping[str, Any]) -> None:
    """Raise ConfigError where the model may have been taken for one more value of a flag before it."""
    for name, value in server.items():
        if isinstance(value, list) and len(value) > 1:
            raise ConfigError(
                f"no model is named, and {flag_of(name)} has {len(value)} values; name the model first, or with --model"
            )


def _say_what_there_is(download_dir: str | None) -> None:
    from huggingface_hub import constants

    from vllm.loader.huggingface import cached_models

    cache = Path(download_dir or constants.HF_HUB_CACHE).expanduser()
    names = cached_models(cache)
    print(
        "No model is named: the tiny one inside the package is served, which is good for trying out only.",
        file=sys.stderr,
    )
    if names:
        lines = "\n".join(f"  vllm serve {name}" for name in names)
        print(f"Models in {cache}:\n{lines}", file=sys.stderr)
    else:
        print(f"There are no models in {cache}; `vllm serve OWNER/NAME` downloads one.", file=sys.stderr)
