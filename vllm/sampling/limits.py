"""What a request's sampling parameters may ask of a particular model: token ids it has, log-probabilities it may return.

Needs no torch, so the side that receives requests can refuse one before it costs anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from vllm.errors import RequestError
from vllm.sampling_params import LogitsProcessor, SamplingParams


def check_request(params: SamplingParams, *, vocab_size: int, max_logprobs: int) -> None:
    """Raise RequestError if `params` name tokens outside the vocabulary or ask for more than `max_logprobs` (-1: any)."""
    _check_ids("allowed_token_ids", params.allowed_token_ids or (), vocab_size)
    _check_ids("logit_bias", params.logit_bias or (), vocab_size)
    for name, count in (("logprobs", params.num_logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        _check_count(name, count, vocab_size, max_logprobs)
    for processor in params.logits_processors or ():
        num_arguments(processor)


def num_arguments(processor: LogitsProcessor) -> int:
    """Return how many arguments a logits processor takes: 2 (output, logits) or 3 (prompt, output, logits).

    Raises RequestError if it can be called with neither.
    """
    try:
        signature = inspect.signature(processor)
    except ValueError:  # a builtin that does not tell
        return 2
    except TypeError:
        raise RequestError(f"logits_processors must hold callables, got {processor!r}", "logits_processors") from None
    for count in (2, 3):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    raise RequestError(
        f"logits processor {processor_name(processor)}{signature} must take (output_ids, logits) or "
        "(prompt_ids, output_ids, logits)",
        "logits_processors",
    )


def processor_name(processor: LogitsProcessor) -> str:
    """Return how an error message calls a logits processor."""
    return getattr(processor, "__qualname__", None) or type(processor).__qualname__


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise RequestError(f"{name} holds token {outside[0]}; this model's tokens are 0 to {vocab_size - 1}", name)


def _check_count(name: str, count: int | None, vocab_size: int, max_logprobs: int) -> None:
    if count is None or max_logprobs == -1:
        return
    if (vocab_size if count == -1 else count) > max_logprobs:
        raise RequestError(
            f"{name}={count} asks for more than max_logprobs={max_logprobs}; ask for fewer or start the engine "
            "with a higher max_logprobs",
            name,
        )
