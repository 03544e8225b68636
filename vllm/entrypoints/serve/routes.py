"""All routes of the server.  A further family of endpoints is one more line."""

from __future__ import annotations

from vllm.entrypoints.serve import chat, completions, documentation, invocations, metrics, models, probes, tokenization
from vllm.entrypoints.serve.anthropic import endpoints as anthropic
from vllm.entrypoints.serve.audio import endpoints as audio
from vllm.entrypoints.serve.pooling import classify, cohere, embeddings, pooling, scoring
from vllm.entrypoints.serve.responses import endpoints as responses
from vllm.entrypoints.serve.route import Route
from vllm.entrypoints.serve.settings import ServerArgs


def routes(settings: ServerArgs) -> list[Route]:
    """Return the routes that a server with these settings has."""
    return [
        *probes.ROUTES,
        *metrics.ROUTES,
        *models.ROUTES,
        *completions.ROUTES,
        *chat.ROUTES,
        *responses.routes(settings),
        *anthropic.ROUTES,
        *audio.ROUTES,
        *embeddings.ROUTES,
        *pooling.ROUTES,
        *classify.ROUTES,
        *scoring.ROUTES,
        *cohere.ROUTES,
        *tokenization.ROUTES,
        *(tokenization.INFO_ROUTES if settings.enable_tokenizer_info_endpoint else []),
        *invocations.ROUTES,
        *documentation.ROUTES,
        *([] if settings.disable_ui or not documentation.CHAT_PAGE.is_file() else documentation.CHAT_ROUTES),
    ]
