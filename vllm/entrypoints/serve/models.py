"""GET /v1/models: what is served."""

from __future__ import annotations

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import json_reply
from vllm.entrypoints.serve.protocol import ModelCard, ModelList
from vllm.entrypoints.serve.route import Answer, Route


async def models(call: Call) -> Answer:
    """List the model under each of its names."""
    return json_reply(ModelList([_card(call, name) for name in call.server.names]))


async def model(call: Call) -> Answer:
    """Describe one model."""
    return json_reply(_card(call, call.server.model_named(call.parameters["model"])))


def _card(call: Call, name: str) -> ModelCard:
    server = call.server
    model = server.ready().model_config
    root = model.model or server.names[0]
    return ModelCard(id=name, created=server.created, root=root, max_model_len=model.max_model_len)


ROUTES = [
    Route("GET", "/v1/models", models, "List the models that are served.", reply=ModelList),
    Route("GET", "/v1/models/{model...}", model, "Describe a model.", reply=ModelCard),
]
