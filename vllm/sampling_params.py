"""How one request wants its tokens chosen: `SamplingParams` and `BeamSearchParams`.

Field names, defaults and meanings are those of the interface people know, in both of its eras.  Every value is checked
when the object is made, so that a mistake shows at the line that made it.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from vllm.errors import RequestError
from vllm.names import take_names

MAX_N = 128
MAX_STOP_STRINGS = 64
MAX_LENGTH_PENALTY = 32  # a length to this power, and its inverse, is a finite float for every length there is

LogitsProcessor = Callable[..., Any]
"""`f(output_token_ids, logits)` or `f(prompt_token_ids, output_token_ids, logits)` → logits, one row, [V] float32."""


class RequestOutputKind(enum.IntEnum):
    """What each RequestOutput of a running request carries."""

    CUMULATIVE = 0  # everything so far
    DELTA = 1  # what is new since the last one
    FINAL_ONLY = 2  # nothing until the request is finished


_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "guided_decoding": (None,),
    "structured_outputs": (None,),
    "prompt_logprob_token_ids": (None,),
    "prompt_logprob_start": (None, 0),
    "logprob_token_ids": (None,),
    "flat_logprobs": (False, None),
    "stream_interval": (None, 1),
    "watermarking": (None, False),
    "thinking_token_budget": (None,),
    "repetition_detection": (None,),
    "routed_experts_prompt_start": (None, 0),
    "trace_decode_token_ids": (None,),
}
"""Names of the interface whose feature is not built yet, with the values that mean "not used"."""

_WITHOUT_EFFECT = {
    "skip_clone": "parameters are never changed",
    "output_text_buffer_length": "text is held back as needed",
}


@take_names(_UNSUPPORTED, _WITHOUT_EFFECT)
@dataclass
class SamplingParams:
    """Sampling parameters of one request.  Probabilities and penalties follow the OpenAI API where it has them.

    Raises RequestError, a ValueError, for a value out of range, and TypeError (a wrong type or name) on construction.
    """

    n: int = 1
    """Number of outputs to return for the prompt."""
    best_of: int | None = None
    """Number of outputs to generate; the `n` with the highest cumulative log-probability are returned."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that occurs in the output so far; in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the output so far; in [-2, 2]."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens seen in prompt or output are divided by it, negative ones multiplied; > 0."""
    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches it; in (0, 1]."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 and -1 keep all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one; in [0, 1]."""
    seed: int | None = None
    """With a seed the request draws the same tokens whatever runs beside it."""
    stop: str | list[str] | None = None
    """Strings that end the output; they are not part of it unless `include_stop_str_in_output`."""
    stop_token_ids: list[int] | None = None
    """Tokens that end the output, beside the model's own end token."""
    bad_words: list[str] | None = None
    """Words that are never produced."""
    ignore_eos: bool = False
    """Go on after the model's end token."""
    max_tokens: int | None = 16
    """Number of output tokens at most; None: as many as the context length has room for."""
    min_tokens: int = 0
    """Number of output tokens before an end token or a stop string may end the output."""
    logprobs: int | None = None
    """Return the log-probabilities of this many most likely tokens and of the chosen one; -1: of all."""
    prompt_logprobs: int | None = None
    """The same for every prompt token."""
    detokenize: bool = True
    """Return text beside token ids."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    spaces_between_special_tokens: bool = True
    """Taken because clients give it; tokenizers of today write special tokens in one way only."""
    include_stop_str_in_output: bool = False
    """Keep the stop string at the end of the text."""
    logit_bias: dict[int, float] | None = None
    """Added to the logits of these tokens; clamped to [-100, 100]."""
    allowed_token_ids: list[int] | None = None
    """If given, no other token is produced."""
    truncate_prompt_tokens: int | None = None
    """Keep only the last this many prompt tokens; -1: as many as the context length allows."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    """What the outputs of a running request carry."""
    logits_processors: list[Any] | None = None  # of LogitsProcessor, which is no type that a message can have
    """Python callables applied to the logits of this request alone; only in the process of the engine."""
    skip_reading_prefix_cache: bool | None = None
    """Compute the prompt anew; by default only when `prompt_logprobs` is asked for."""
    extra_args: dict[str, Any] | None = None
    """Free-form values for user extensions; not read by the engine."""

    def __post_init__(self) -> None:
        self._normalize()
        self._check_counts()
        self._check_numbers()
        self._check_tokens()

    @property
    def num_samples(self) -> int:
        """The number of sequences that are generated: `best_of` if given, else `n`."""
        return self.best_of or self.n

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_TEMPERATURE

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list, whatever it was given as."""
        return self.stop if isinstance(self.stop, list) else []

    @property
    def num_logprobs(self) -> int | None:
        """What the sampler must return: `best_of` ranks by log-probability, so it needs them even if not asked."""
        ranked = self.best_of is not None and self.best_of > self.n
        return 0 if self.logprobs is None and ranked else self.logprobs

    def clone(self) -> SamplingParams:
        """Return a copy; callables and containers are shared."""
        return SamplingParams(**{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_optional(cls, **given: Any) -> SamplingParams:
        """Build from keyword arguments of which None means "the default"."""
        return cls(**{name: value for name, value in given.items() if value is not None})

    def _normalize(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
            value = getattr(self, name)
            if value is not None:
                _check_list(name, value, str if name in ("stop", "bad_words") else int)
                setattr(self, name, list(value))
        if self.logits_processors is not None:
            if not hasattr(self.logits_processors, "__iter__"):
                raise TypeError(f"logits_processors must be a list, got {self.logits_processors!r}")
            self.logits_processors = list(self.logits_processors)
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, dict):
                raise TypeError(f"logit_bias must be a dict from token ids to numbers, got {self.logit_bias!r}")
            self.logit_bias = {_token_id("logit_bias", k): _bias(v) for k, v in self.logit_bias.items()}
        if self.logprobs is True:
            self.logprobs = 1
        if self.prompt_logprobs is True:
            self.prompt_logprobs = 1
        self.output_kind = RequestOutputKind(self.output_kind)

    def _check_counts(self) -> None:
        for name in (
            "n",
            "best_of",
            "top_k",
            "max_tokens",
            "min_tokens",
            "logprobs",
            "prompt_logprobs",
            "seed",
            "truncate_prompt_tokens",
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        _require(1 <= self.n <= MAX_N, "n", self.n, f"between 1 and {MAX_N}")
        if self.best_of is not None:
            _require(self.n <= self.best_of <= MAX_N, "best_of", self.best_of, f"between n={self.n} and {MAX_N}")
        _require(self.top_k >= -1, "top_k", self.top_k, "at least 1, or 0 or -1 for no limit")
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
            _require(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                self.min_tokens,
                f"at most max_tokens={self.max_tokens}",
            )
        _require(self.min_tokens >= 0, "min_tokens", self.min_tokens, "at least 0")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(value is None or value >= -1, name, value, "at least 0, or -1 for the whole vocabulary")
        if self.truncate_prompt_tokens is not None:
            _require(
                self.truncate_prompt_tokens == -1 or self.truncate_prompt_tokens >= 1,
                "truncate_prompt_tokens",
                self.truncate_prompt_tokens,
                "at least 1, or -1 for the context length",
            )
        if self.seed is not None:
            _require(-(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
        if self.seed == -1:  # the era's way to say "no seed"
            self.seed = None

    def _check_numbers(self) -> None:
        for name in ("presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            _require(math.isfinite(value), name, value, "finite")
            setattr(self, name, float(value))
        _require(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", self.presence_penalty, "in [-2, 2]")
        _require(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", self.frequency_penalty, "in [-2, 2]")
        _require(self.repetition_penalty > 0.0, "repetition_penalty", self.repetition_penalty, "greater than 0")
        _require(self.temperature >= 0.0, "temperature", self.temperature, "at least 0")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]")
        _require(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "in [0, 1]")
        if self.greedy and self.num_samples > 1:
            raise RequestError(
                f"n={self.n}, best_of={self.best_of} with temperature={self.temperature}: greedy sampling gives the "
                f"same output {self.num_samples} times; use n=1 or a temperature above 0",
                "n",
            )

    def _check_tokens(self) -> None:
        _require(
            len(self.stop_strings) <= MAX_STOP_STRINGS,
            "stop",
            len(self.stop_strings),
            f"at most {MAX_STOP_STRINGS} strings",
        )
        for name in ("stop", "bad_words"):
            if "" in (getattr(self, name) or ()):
                raise RequestError(f"{name} must not hold an empty string", name)
        if self.stop_strings and not self.detokenize:
            raise RequestError("stop strings need detokenize=True; use stop_token_ids instead", "stop")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids must not be empty: no token could be produced", "allowed_token_ids")
        for name in ("stop_token_ids", "allowed_token_ids"):
            for token in getattr(self, name) or ():
                _token_id(name, token)


_GREEDY_TEMPERATURE = 1e-5  # below it exp() of scaled logits overflows, and the outcome is the argmax anyway


@take_names({"structured_outputs": (None,), "watermarking": (None, False)})
@dataclass
class BeamSearchParams:
    """Beam search: keep the `beam_width` best continuations, and return the best finished ones.

    A beam's score is its cumulative log-probability over its number of generated tokens to the power `length_penalty`.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    """Above 0, log-probabilities are taken from logits divided by it."""
    length_penalty: float = 1.0
    """In [-32, 32]; above 0 favours long outputs."""
    include_stop_str_in_output: bool = False
    """Keep the end token's text at the end of a finished beam."""
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            _require(value >= 1, name, value, "at least 1")
        _require(self.beam_width <= MAX_N, "beam_width", self.beam_width, f"at most {MAX_N}")
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0.0, "temperature", self.temperature, "at least 0"
        )
        _require(
            abs(self.length_penalty) <= MAX_LENGTH_PENALTY,
            "length_penalty",
            self.length_penalty,
            f"in [-{MAX_LENGTH_PENALTY}, {MAX_LENGTH_PENALTY}]",
        )


def _require(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise RequestError(f"{name} must be {wanted}, got {value}", name)


def _check_list(name: str, value: Any, kind: type) -> None:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must be a list, got {value!r}")
    for item in value:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise TypeError(f"{name} must hold {kind.__name__} values, got {item!r}")


_DIGITS = re.compile("-?[0-9]{1,19}")  # more would be no id, and int() refuses thousands of them


def _token_id(name: str, value: Any) -> int:
    token = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value  # JSON keys are strings
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"{name} must hold token ids, got {value!r}")
    _require(token >= 0, name, value, "made of token ids of at least 0")
    return token


def _bias(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RequestError(f"logit_bias must hold finite numbers, got {value!r}", "logit_bias")
    return max(-100.0, min(100.0, float(value)))
