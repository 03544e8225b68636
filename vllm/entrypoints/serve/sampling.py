"""From a request's fields to sampling parameters, within the server's limits."""

from __future__ import annotations

import functools
import math
from collections.abc import Sized
from operator import attrgetter
from typing import Any

from vllm.entrypoints.serve.engine import Model
from vllm.entrypoints.serve.errors import in_words_of
from vllm.entrypoints.serve.protocol import SamplingRequest
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import RequestError
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

_SHARED = (
    "n",
    "best_of",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "bad_words",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "logit_bias",
    "allowed_token_ids",
    "truncate_prompt_tokens",
)
_values = attrgetter(*_SHARED)
_BEAM_FIELDS = {
    "n", "best_of", "temperature", "max_tokens", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens",
    "spaces_between_special_tokens", "seed", "top_p", "top_k", "min_p",
}  # fmt: skip
"""What a beam search takes; those that only matter to draws are the defaults of clients and do no harm."""


class Sampling:
    """Makes the parameters of one model's requests.

    Most requests of a client have equal parameters, and checking them takes 14 µs where all the rest of a small request
    takes 25 (Zen 4, Python 3.11); so those that can be compared are kept and shared.
    """

    def __init__(self, model: Model, settings: ServerArgs) -> None:
        self.defaults = dict(model.default_sampling)
        self.model = model
        self.settings = settings
        self._kept = functools.lru_cache(maxsize=256)(self._make)

    def params(
        self, body: SamplingRequest, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingParams | BeamSearchParams:
        """Return the parameters of a request.  Raises RequestError that names the field."""
        self._check_limits(body)
        if body.use_beam_search:
            if prompt_logprobs is not None:
                raise RequestError("log-probabilities of the prompt are not part of a beam search", "prompt_logprobs")
            return self._beam(body, max_tokens)
        kind = RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY
        extra = (max_tokens, logprobs, prompt_logprobs, kind)
        try:
            return self._kept(_values(body), extra)
        except TypeError:  # a list or a dict can't be compared
            return self._make(_values(body), extra)

    def _make(self, values: tuple[Any, ...], extra: tuple[Any, ...]) -> SamplingParams:
        given = self.defaults | {name: value for name, value in zip(_SHARED, values, strict=True) if value is not None}
        given["max_tokens"], given["logprobs"], given["prompt_logprobs"], given["output_kind"] = extra
        try:
            return SamplingParams(**given)
        except TypeError as error:
            raise RequestError(str(error), str(error).split(maxsplit=1)[0]) from None

    def _beam(self, body: SamplingRequest, max_tokens: int | None) -> BeamSearchParams:
        for name in {*_SHARED} - _BEAM_FIELDS:
            if getattr(body, name) not in (None, 0, [], {}) and (name, getattr(body, name)) != (
                "repetition_penalty",
                1,
            ):
                raise RequestError(f"{name} is not part of a beam search; leave it out", name)
        name = "n" if body.best_of is None else "best_of"
        width = getattr(body, name)
        with in_words_of({"beam_width": name}):
            return BeamSearchParams(
                beam_width=1 if width is None else width,
                max_tokens=self.model.max_model_len if max_tokens is None else max_tokens,
                ignore_eos=bool(body.ignore_eos),
                temperature=_finite("temperature", body.temperature, 0.0),
                length_penalty=_finite("length_penalty", body.length_penalty, 1.0),
                include_stop_str_in_output=bool(body.include_stop_str_in_output),
                skip_special_tokens=body.skip_special_tokens is not False,
            )

    def _check_limits(self, body: SamplingRequest) -> None:
        settings, vocabulary = self.settings, self.model.vocab_size
        if (body.n or 1) > settings.max_n or (body.best_of or 1) > settings.max_n:
            name = "n" if (body.n or 1) > settings.max_n else "best_of"
            raise RequestError(f"{name}={getattr(body, name)} is more than max_n={settings.max_n}", name)
        if body.stop:
            stop = [body.stop] if isinstance(body.stop, str) else body.stop
            _check_size("stop", stop, settings.max_stop_strings, f"max_stop_strings={settings.max_stop_strings}")
            for text in stop:
                if len(text) > settings.max_stop_length:
                    raise RequestError(
                        f"stop holds a string of {len(text):,} characters, more than max_stop_length="
                        f"{settings.max_stop_length}",
                        "stop",
                    )
        for name in ("stop_token_ids", "bad_words", "allowed_token_ids", "logit_bias"):
            value = getattr(body, name)
            if value:
                _check_size(name, value, vocabulary, f"the vocabulary of {vocabulary:,}")


def _check_size(name: str, value: Sized, most: int, what: str) -> None:
    if len(value) > most:
        raise RequestError(f"{name} holds {len(value):,} entries, more than {what}", name)


def _finite(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not math.isfinite(value):
        raise RequestError(f"{name} must be finite, got {value}", name)
    return value
