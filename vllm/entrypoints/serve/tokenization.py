"""POST /tokenize and /detokenize: between text and token ids, without running the model; GET /tokenizer_info."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import json_reply
from vllm.entrypoints.serve.protocol import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from vllm.entrypoints.serve.rendering import render, size_of
from vllm.entrypoints.serve.route import Answer, Route
from vllm.errors import RequestError
from vllm.inputs.chat_template import choose_template
from vllm.inputs.prompts import Prompt
from vllm.inputs.tokenizer import Tokenizer
from vllm.inputs.tokenizer_files import read_json


async def tokenize(call: Call) -> Answer:
    """Return the token ids of a prompt, or of what the chat template makes of messages."""
    body: TokenizeRequest = call.body
    tokenizer = _tokenizer(call)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", "prompt")
    is_chat = body.messages is not None
    prompt = await render(call, body.messages) if body.messages is not None else Prompt(body.prompt)
    special = not is_chat if body.add_special_tokens is None else body.add_special_tokens
    prompt = dataclasses.replace(prompt, add_special_tokens=special)
    tokens = await call.server.work(size_of(call, [prompt]), call.engine.preparer.tokens, prompt)
    names = [tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
    return json_reply(Tokens(len(tokens), call.engine.model_config.max_model_len, tokens, names))


async def detokenize(call: Call) -> Answer:
    """Return the text of token ids, special ones included."""
    body: DetokenizeRequest = call.body
    tokenizer = _tokenizer(call)
    size = call.engine.model_config.vocab_size
    for token in body.tokens:
        if token >= size:
            raise RequestError(f"tokens holds {token}, but the vocabulary has {size:,} entries", "tokens")
    text = await call.server.work(len(call.raw), tokenizer.decode, body.tokens, False)
    return json_reply(Detokenized(text))


async def info(call: Call) -> Answer:
    """Return what tokenizer_config.json says, but for the places of files, with the chat template that is in use."""
    call.choose(call.models()[0].names[0])
    call.engine = call.model.known()
    tokenizer, renderer = _tokenizer(call), call.model.renderer
    folder = call.engine.model_config.tokenizer
    config = read_json(Path(folder) / "tokenizer_config.json") if folder is not None else {}
    told = {name: value for name, value in config.items() if not name.endswith(_PLACES)}
    template = None
    if renderer.default is not None or renderer.templates:
        template = choose_template(renderer.model, renderer.templates, renderer.default, has_tools=False)
    own = {"chat_template": template, "vocab_size": tokenizer.vocab_size}
    return json_reply({"tokenizer_class": None, **told, **tokenizer.special_tokens, **own})


def _tokenizer(call: Call) -> Tokenizer:
    tokenizer = call.engine.tokenizer
    if tokenizer is None:
        raise RequestError("the engine runs without a tokenizer (skip_tokenizer_init)", "model")
    return tokenizer


_PLACES = ("_file", "name_or_path", "_dir")

ROUTES = [
    Route("POST", "/tokenize", tokenize, "Turn text into token ids.", body=TokenizeRequest, reply=Tokens),
    Route("POST", "/detokenize", detokenize, "Turn token ids into text.", body=DetokenizeRequest, reply=Detokenized),
]
INFO_ROUTES = [
    Route("GET", "/tokenizer_info", info, "How the tokenizer of a model (?model=NAME) is set up.", reply=dict[str, Any])
]
