"""What a request's sampling parameters may ask of a particular model: token ids it has, log-probabilities it may return.

Needs no torch, so the side that receives requests can refuse one before it costs anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from vllm.errors import RequestError
from vllm.sampling_params import LogitsProcessor, SamplingParams


def check_request(params: SamplingParams, *, vocab_size: int, max_logprobs: int) -> None:
    """Raise RequestError if `params` name tokens outside the vocabulary or ask for more than `max_logprobs` (-1: any).

    A stop token outside the vocabulary is allowed: lists of them are made for several models, and it never comes.
    """
    for name in ("allowed_token_ids", "logit_bias"):
        check_ids(name, getattr(params, name) or (), vocab_size)
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


def check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise RequestError if a token id lies outside the vocabulary."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"{name} holds token id {token}, but the model's vocabulary has {vocab_size:,} entries; "
                f"give ids from 0 to {vocab_size - 1}",
                name,
            )


def _check_count(name: str, wanted: int | None, vocab_size: int, max_logprobs: int) -> None:
    if wanted is None:
        return
    if wanted > vocab_size:
        raise RequestError(f"{name}={wanted} is more than the vocabulary of {vocab_size:,} entries", name)
    count = vocab_size if wanted == -1 else wanted
    if max_logprobs != -1 and count > max_logprobs:
        what = f"the whole vocabulary, {count:,} entries," if wanted == -1 else f"{count:,}"
        raise RequestError(
            f"{name}={wanted} asks for {what} per position, but max_logprobs={max_logprobs}; ask for fewer, "
            "or raise max_logprobs",
            name,
        )
