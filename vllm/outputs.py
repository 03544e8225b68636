"""What the user gets: `RequestOutput` with its `CompletionOutput`s, the results of beam search, and of pooling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar


@dataclass(slots=True)
class Logprob:
    """The log-probability of one token at one position; `rank` 1 is the most likely."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None

    def __float__(self) -> float:
        return self.logprob


PositionLogprobs = dict[int, Logprob]
"""Token id → Logprob at one position; the chosen token first, then the most likely ones in order."""


@dataclass
class CompletionOutput:
    """One output of a request."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    """None while running, then "stop", "length", "abort" or "error"."""
    stop_reason: int | str | None = None
    """The stop string or stop token that ended the output; None for the model's own end token."""
    lora_request: Any = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """Seconds on the engine's monotonic clock."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass
class RequestOutput:
    """A request's outputs so far; `finished` when no more will come."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[PositionLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    lora_request: Any = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cached_tokens: int | None = None
    """Prompt tokens taken from the prefix cache."""


@dataclass
class BeamSearchSequence:
    """One beam.  `tokens` and `text` include the prompt."""

    tokens: list[int]
    logprobs: list[PositionLogprobs]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None


@dataclass
class BeamSearchOutput:
    """The best beams of one prompt, best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)


@dataclass(eq=False)  # comparing tensors gives tensors
class PoolingOutput:
    """What a pooling model made of a prompt."""

    data: Any
    """A torch tensor, float32 on the host: [N], or [n, N] with a row for every token."""


@dataclass
class EmbeddingOutput:
    """A prompt's embedding."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass
class ClassificationOutput:
    """Probabilities of classes, or their logits where no activation is applied."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass
class ScoringOutput:
    """How well two texts go together."""

    score: float


_Pooled = TypeVar("_Pooled", PoolingOutput, EmbeddingOutput, ClassificationOutput, ScoringOutput)


@dataclass
class PoolingRequestOutput(Generic[_Pooled]):
    """The result of a prompt; there is one, and it is final."""

    request_id: str
    outputs: _Pooled
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    error: str | None = None


@dataclass
class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """An embedding, and the prompt it is of."""


@dataclass
class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """Probabilities of classes, and the prompt they are for."""


@dataclass
class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """A score, and the prompt of the two texts."""
