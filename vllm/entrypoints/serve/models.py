"""GET /v1/models: what is served, loaded or not."""

from __future__ import annotations

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import json_reply
from vllm.entrypoints.serve.protocol import ModelCard, ModelList
from vllm.entrypoints.serve.route import Answer, Route
from vllm.entrypoints.serve.served import ServedModel


async def models(call: Call) -> Answer:
    """List every model under each of its names."""
    return json_reply(ModelList([_card(call, model, name) for model in call.models() for name in model.names]))


async def model(call: Call) -> Answer:
    """Describe one model."""
    name = call.parameters["model"]
    return json_reply(_card(call, call.server.model_named(name), name))


def _card(call: Call, model: ServedModel, name: str) -> ModelCard:
    config = model.known().model_config
    root = config.model or model.names[0]
    return ModelCard(id=name, created=call.server.created, root=root, max_model_len=config.max_model_len)


ROUTES = [
    Route("GET", "/v1/models", models, "List the models that are served.", reply=ModelList),
    Route("GET", "/v1/models/{model...}", model, "Describe a model.", reply=ModelCard),
]
