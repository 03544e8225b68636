"""An engine that runs and serves large language models.

Names are loaded on first use, so that `import vllm` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vllm.garbage import no_collections
from vllm.version import __version__, __version_tuple__

_HOME = {
    "LLM": "vllm.entrypoints.llm",
    "EngineArgs": "vllm.config",
    "LLMEngine": "vllm.engine.llm_engine",
    "ModelRegistry": "vllm.models.registry",
    "PromptType": "vllm.inputs.prompts",
    "TextPrompt": "vllm.inputs.prompts",
    "TokensPrompt": "vllm.inputs.prompts",
    "SamplingParams": "vllm.sampling_params",
    "PoolingParams": "vllm.pooling_params",
    "BeamSearchParams": "vllm.sampling_params",
    "RequestOutput": "vllm.outputs",
    "CompletionOutput": "vllm.outputs",
    "PoolingOutput": "vllm.outputs",
    "PoolingRequestOutput": "vllm.outputs",
    "EmbeddingOutput": "vllm.outputs",
    "EmbeddingRequestOutput": "vllm.outputs",
    "ClassificationOutput": "vllm.outputs",
    "ClassificationRequestOutput": "vllm.outputs",
    "ScoringOutput": "vllm.outputs",
    "ScoringRequestOutput": "vllm.outputs",
}

__all__ = ["__version__", "__version_tuple__", *_HOME]

if TYPE_CHECKING:
    from vllm.config import EngineArgs
    from vllm.engine.llm_engine import LLMEngine
    from vllm.entrypoints.llm import LLM
    from vllm.inputs.prompts import PromptType, TextPrompt, TokensPrompt
    from vllm.models.registry import ModelRegistry
    from vllm.outputs import (
        ClassificationOutput,
        ClassificationRequestOutput,
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolingOutput,
        PoolingRequestOutput,
        RequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import BeamSearchParams, SamplingParams


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vllm' has no attribute {name!r}")
    with no_collections():
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
