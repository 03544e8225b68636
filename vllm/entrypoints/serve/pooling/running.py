"""From a body to what the engine pools: prompts, parameters, all of a call's requests side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from msgspec import UNSET

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.generation import priority_of, together
from vllm.entrypoints.serve.pooling.protocol import PooledRequest, PooledUsage, PromptsRequest
from vllm.entrypoints.serve.protocol import PromptTokensDetails
from vllm.entrypoints.serve.rendering import render, size_of
from vllm.errors import RequestError
from vllm.inputs.pooling import Pieces, Pooled, named_text, with_text_before
from vllm.inputs.prompts import Prompt, parse_prompts
from vllm.messages import EngineRequest
from vllm.pooling_params import Pooling, PoolingParams, PoolingTask

T = TypeVar("T")

_PARAMS = ("truncate_prompt_tokens", "dimensions", "normalize", "use_activation", "softmax", "activation")


def pooling_of(call: Call) -> Pooling:
    """Return how the model pools; a route's purpose is what sees to it that it does."""
    pooling = call.engine.model_config.pooling
    assert pooling is not None
    return pooling


def params_of(body: Any) -> PoolingParams:
    """Return the parameters that a body has.  Raises RequestError."""
    return PoolingParams(**{name: getattr(body, name) for name in _PARAMS if getattr(body, name, None) is not None})


async def prompts_of(call: Call) -> list[Prompt]:
    """Return the prompts of a body with input or messages.  Raises RequestError."""
    body: PromptsRequest = call.body
    if (body.input is None) == (body.messages is None):
        raise RequestError("give either input or messages", "input")
    if body.messages is not None:
        body.add_generation_prompt = bool(body.add_generation_prompt)
        return dressed([await render(call, body.messages)], body, special=bool(body.add_special_tokens))
    if body.input == []:
        raise RequestError("input is an empty list; give at least one text", "input")
    if isinstance(body.input, list) and not isinstance(body.input[0], int):
        check_count(call, len(body.input), "input")
    with named("input"):
        prompts = parse_prompts(body.input)  # type: ignore[arg-type]
    return dressed(prompts, body, special=body.add_special_tokens is not False)


def dressed(prompts: Sequence[Prompt], body: PooledRequest, special: bool) -> list[Prompt]:
    """Return prompts with what the body says of all of them.  Raises RequestError."""
    if body.cache_salt == "":
        raise RequestError("cache_salt is empty; leave it out or give a text", "cache_salt")
    said = {"cache_salt": body.cache_salt, "add_special_tokens": special, "truncation_side": body.truncation_side}
    return [dataclasses.replace(prompt, **said) for prompt in prompts]  # type: ignore[arg-type]


def check_count(call: Call, count: int, field: str) -> None:
    """Raise RequestError for too many texts."""
    if count > call.settings.max_inputs:
        raise RequestError(f"{field}: {count:,} texts are more than max_inputs={call.settings.max_inputs}", field)


def with_names(prompts: list[Prompt], call: Call) -> list[Prompt]:
    """Put before what is embedded the text that the body names, or the model's default."""
    texts, name = pooling_of(call).texts, call.body.prompt_name
    if name is not None:
        named_text(name, texts)  # says what is wrong with it
    if call.body.messages is not None:
        if name is not None:
            raise RequestError("prompt_name is for input; what goes before messages is the template's", "prompt_name")
        return prompts
    return with_text_before(prompts, texts, *([] if name is None else [name]))


@contextmanager
def named(field: str) -> Iterator[None]:
    """Have errors about a prompt name the field that it came in."""
    try:
        yield
    except TypeError as error:
        raise RequestError(str(error), field) from None
    except RequestError as error:
        if error.param in ("prompt", "prompt_token_ids"):
            raise RequestError(str(error), field) from None
        raise


async def pool(
    call: Call, prompts: Sequence[Prompt], params: PoolingParams, task: PoolingTask | None, field: str = "input"
) -> list[Pooled]:
    """Pool prompts; return what came out, in order.  `field` is where they came in.  Raises RequestError, HttpError."""
    with named(field):
        requests = await call.server.work(
            size_of(call, prompts),
            call.engine.preparer.prepare_pooling,
            prompts,
            params,
            task=task,
            pooling=pooling_of(call),
            priority=[priority_of(call)] * len(prompts),
        )
    return await run(call, requests)


async def run(call: Call, requests: Sequence[EngineRequest]) -> list[Pooled]:
    """Run a call's requests side by side; the first error ends all.  Raises HttpError for one that failed."""
    engine = call.engine
    pieces = Pieces(requests, engine.model_config.max_model_len, pooling_of(call))
    outputs = pieces.join(await together([engine.encode(request) for request in pieces.requests]))
    for position, output in enumerate(outputs):
        if output.error is not None:
            raise HttpError(500, f"the engine failed on prompt {position} of this request: {output.error}")
    if call.facts is not None:
        call.facts["num_prompts"] = len(outputs)
        call.facts["prompt_tokens"] = sum(len(output.prompt_token_ids) for output in outputs)
    return outputs


def usage_of(call: Call, outputs: Sequence[Pooled]) -> PooledUsage:
    """Return what a call's prompts took."""
    count = sum(len(output.prompt_token_ids) for output in outputs)
    if not call.settings.enable_prompt_tokens_details:
        return PooledUsage(count, count, UNSET)
    cached = sum(output.num_cached_tokens for output in outputs)
    return PooledUsage(count, count, PromptTokensDetails(cached))


async def write(call: Call, outputs: Sequence[Pooled], function: Callable[..., T], *args: Any) -> T:
    """Run a function that writes outputs down: in a thread, if there are many numbers."""
    size = sum(output.outputs.data.nbytes for output in outputs)
    return await call.server.work(size, function, *args)


def now() -> int:
    """Seconds since 1970, as answers carry them."""
    return int(time.time())
