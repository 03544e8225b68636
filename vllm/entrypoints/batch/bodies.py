"""From a line's body to a prompt with its parameters, and from an output to a response's body."""

from __future__ import annotations

import time
import uuid
from dataclasses import fields
from typing import Any

from vllm.entrypoints.batch.lines import Line
from vllm.errors import RequestError, did_you_mean
from vllm.inputs.chat import ChatOptions, ChatRenderer
from vllm.inputs.prompts import Prompt, parse_prompts
from vllm.outputs import CompletionOutput, Logprob, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

_SAMPLING = {option.name for option in fields(SamplingParams)} - {"output_kind", "logits_processors", "detokenize"}
_CHAT = {"chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents", "chat_template"}
_SILENT = {"model", "messages", "prompt", "user", "metadata", "store", "stream", "stream_options", "service_tier"}
"""Fields with another place, or that cannot change an answer."""
_COMPLETION_TOKENS = 16  # a completion's length by default, as OpenAI has it; a chat's answer ends by itself


def prompt_and_params(line: Line, renderer: ChatRenderer, defaults: dict[str, Any]) -> tuple[Prompt, SamplingParams]:
    """Return what a line asks for.  Raises RequestError or TypeError for a field that cannot work or is unknown."""
    body = {name: value for name, value in line.body.items() if value is not None}
    is_chat = line.url.startswith("/v1/chat/")
    sampling: dict[str, Any] = {"max_tokens": None if is_chat else _COMPLETION_TOKENS, **defaults}
    if is_chat:
        sampling |= _chat_sampling(body)
    elif body.pop("suffix", None) or body.pop("echo", None):
        raise RequestError("suffix and echo are not supported in batches; leave them out")
    for name in ("tools", "tool_choice", "functions", "response_format", "structured_outputs"):
        if body.pop(name, None) not in (None, "none", [], {"type": "text"}):
            raise RequestError(f"{name} is not supported in batches; leave it out", name)
    known = _SAMPLING | _SILENT | (_CHAT if is_chat else set())
    for name, value in body.items():
        if name not in known:
            raise RequestError(f"unknown field {name!r}.{did_you_mean(name, known)}", name)
        if name in _SAMPLING:
            sampling[name] = value
    params = SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)
    return _prompt(body, is_chat, renderer), params


def body_of(line: Line, output: RequestOutput, model: str) -> dict[str, Any]:
    """Return the response's body, as the server would answer."""
    is_chat = line.url.startswith("/v1/chat/")
    prompt = len(output.prompt_token_ids or [])
    completion = sum(len(one.token_ids) for one in output.outputs)
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(one, is_chat, line.body.get("top_logprobs") or 0) for one in output.outputs],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def _chat_sampling(body: dict[str, Any]) -> dict[str, Any]:
    """Take out of the body what chats spell in their own way."""
    found: dict[str, Any] = {}
    longest = body.pop("max_completion_tokens", None)
    if longest is not None:
        found["max_tokens"] = longest
    top = body.pop("top_logprobs", None)
    wanted = body.pop("logprobs", False)
    if not isinstance(wanted, bool):
        raise RequestError(
            f"logprobs must be true or false in a chat, got {wanted!r}; top_logprobs is the number", "logprobs"
        )
    if top is not None and not wanted:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    if wanted:
        found["logprobs"] = top or 0
    return found


def _prompt(body: dict[str, Any], is_chat: bool, renderer: ChatRenderer) -> Prompt:
    name = "messages" if is_chat else "prompt"
    if name not in body:
        raise RequestError(f"the body has no {name!r}", name)
    if is_chat:
        options = ChatOptions(**{option: body[option] for option in _CHAT if option in body})
        prompts = renderer.prompts(body["messages"], options)
    else:
        prompts = parse_prompts(body["prompt"])
    if len(prompts) != 1:
        raise RequestError(f"{name} holds {len(prompts)} prompts; write a line for each", name)
    return prompts[0]


def _choice(output: CompletionOutput, is_chat: bool, num_top: int) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": output.index}
    if is_chat:
        choice |= {
            "message": {"role": "assistant", "content": output.text},
            "logprobs": _chat_logprobs(output, num_top),
        }
    else:
        choice |= {"text": output.text, "logprobs": _completion_logprobs(output)}
    return choice | {"finish_reason": output.finish_reason, "stop_reason": output.stop_reason}


def _chat_logprobs(output: CompletionOutput, num_top: int) -> dict[str, Any] | None:
    if output.logprobs is None:
        return None
    content = []
    for position in output.logprobs:
        entries = list(position.values())  # the chosen token first, whatever its rank
        top = sorted((entry for entry in entries if (entry.rank or 0) <= num_top), key=lambda entry: entry.rank or 0)
        content.append({**_named(entries[0]), "top_logprobs": [_named(entry) for entry in top]})
    return {"content": content}


def _named(entry: Logprob) -> dict[str, Any]:
    text = entry.decoded_token or ""
    return {"token": text, "logprob": entry.logprob, "bytes": list(text.encode())}


def _completion_logprobs(output: CompletionOutput) -> dict[str, Any] | None:
    if output.logprobs is None:
        return None
    chosen = [next(iter(position.values())) for position in output.logprobs]
    texts = [entry.decoded_token or "" for entry in chosen]
    starts = [sum(map(len, texts[:index])) for index in range(len(texts))]
    tops = [{entry.decoded_token or "": entry.logprob for entry in position.values()} for position in output.logprobs]
    return {
        "tokens": texts,
        "token_logprobs": [entry.logprob for entry in chosen],
        "top_logprobs": tops,
        "text_offset": starts,
    }
