"""Where answers come from: a model in this process, or a server.  Both give text as it grows."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Generator, Iterator
from typing import Any, Protocol

from vllm import env
from vllm.config import DEFAULT_MODEL, EngineArgs
from vllm.entrypoints.cli.options import add_engine_options, add_model, engine_options, flag_of, refuse_engine_options
from vllm.errors import ConfigError, EngineDeadError

Message = dict[str, str]

_SAMPLING = {
    "max_tokens": (int, "output tokens at most (default: what the context has room for)"),
    "temperature": (float, "0 is greedy (default: the model's)"),
    "top_p": (float, "keep the likeliest tokens that have this share of the probability"),
    "top_k": (int, "keep this many of the likeliest tokens"),
    "min_p": (float, "drop tokens less likely than this share of the likeliest"),
    "repetition_penalty": (float, "above 1 makes repetition less likely"),
}
"""Sampling parameters that chats can change: name → type and help."""


class Source(Protocol):
    """Something that answers.  Closing an iterator before its end stops the answer."""

    name: str

    def chat(self, messages: list[Message], sampling: dict[str, Any]) -> Generator[str, None, None]:
        """Answer a conversation, piece by piece."""

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Generator[str, None, None]:
        """Continue a text, piece by piece."""

    def close(self) -> None:
        """Free what it holds."""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the model or the server, sampling parameters, and the engine's options."""
    add_model(parser)
    server = parser.add_argument_group("server")
    server.add_argument("--url", help="ask this server instead of loading a model, as http://127.0.0.1:8000")
    server.add_argument("--api-key", help="the server's key (default: VLLM_API_KEY, else OPENAI_API_KEY)")
    server.add_argument("--model-name", help="name of a model that the server has (default: its first)")
    sampling = parser.add_argument_group("sampling")
    for name, (kind, text) in _SAMPLING.items():
        sampling.add_argument(flag_of(name), type=kind, default=argparse.SUPPRESS, help=text)
    add_engine_options(parser)


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the sampling parameters that were given.  Raises RequestError for one that cannot work."""
    return check_sampling({name: getattr(options, name) for name in _SAMPLING if hasattr(options, name)})


def sampling_value(name: str, text: str) -> Any:
    """Return the value of a sampling parameter given as text.  Raises KeyError and ValueError."""
    return _SAMPLING[name][0](text)


def sampling_names() -> list[str]:
    return list(_SAMPLING)


def check_sampling(sampling: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters if a request may have them; else raise RequestError."""
    from vllm.sampling_params import SamplingParams

    SamplingParams(**sampling)
    return sampling


def open_source(options: argparse.Namespace) -> Source:
    """Load the model, or find the server, that the options ask for."""
    if options.url is None:
        for name in ("model_name", "api_key"):
            if getattr(options, name) is not None:
                raise ConfigError(f"{flag_of(name)} is for a server; give its address with --url")
        return LocalModel(EngineArgs(**engine_options(options)))
    refuse_engine_options(options)
    return ServedModel(options.url, options.api_key, options.model_name)


class LocalModel:
    """A model in this process."""

    def __init__(self, args: EngineArgs) -> None:
        from vllm.engine.llm_engine import LLMEngine

        self.engine = LLMEngine.from_engine_args(args, progress=True)
        self.name = "the tiny model inside" if args.model == DEFAULT_MODEL else args.model
        self._renderer = self.engine.chat_renderer()
        self._ids = itertools.count()

    def chat(self, messages: list[Message], sampling: dict[str, Any]) -> Generator[str, None, None]:
        from vllm.inputs.chat import ChatOptions

        (prompt,) = self._renderer.prompts(messages, ChatOptions())
        return self._answer(prompt, sampling)

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Generator[str, None, None]:
        from vllm.inputs.prompts import Prompt

        return self._answer(Prompt(prompt), sampling)

    def close(self) -> None:
        self.engine.close()

    def _answer(self, prompt: Any, sampling: dict[str, Any]) -> Generator[str, None, None]:
        from vllm.outputs import RequestOutput
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        settings = {"max_tokens": None, **self.engine.model_config.default_sampling, **sampling}
        params = SamplingParams(**settings, output_kind=RequestOutputKind.DELTA)
        (request,) = self.engine.preparer.prepare([prompt], params, request_ids=[str(next(self._ids))])
        self.engine.add(request)
        try:
            while self.engine.has_work:
                for output in self.engine.step():
                    assert isinstance(output, RequestOutput), "a model to talk to generates"
                    completion = output.outputs[0]
                    if completion.finish_reason == "error":
                        raise EngineDeadError(str(completion.stop_reason))
                    yield completion.text
        except KeyboardInterrupt:
            self.engine.restart()
            raise
        finally:
            self.engine.abort_request(request.id)


class ServedModel:
    """A model of a server."""

    def __init__(self, url: str, api_key: str | None = None, name: str | None = None) -> None:
        from vllm.entrypoints.client import Client

        self._client = Client(url, api_key or env.client_api_key())
        self.name = name or self._client.models()[0]["id"]

    def chat(self, messages: list[Message], sampling: dict[str, Any]) -> Generator[str, None, None]:
        for choice in self._choices("/v1/chat/completions", {"messages": messages, **sampling}):
            yield choice.get("delta", {}).get("content") or ""

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Generator[str, None, None]:
        for choice in self._choices("/v1/completions", {"prompt": prompt, **sampling}):
            yield choice.get("text") or ""

    def close(self) -> None:
        """There is nothing to free: a connection lives as long as its answer."""

    def _choices(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for event in self._client.stream(path, {"model": self.name, "stream": True, **body}):
            yield from event.get("choices") or []
