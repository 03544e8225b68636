"""What the endpoints of speech take and give."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
HARMLESS = frozenset(("chunking_strategy", "include[]", "stream_include_usage", "stream_continuous_usage_stats"))


class SpeechRequest(Struct, kw_only=True):
    """POST /v1/audio/transcriptions and /v1/audio/translations, a form."""

    file: bytes
    model: str | None = None
    language: str | None = None
    """Of the sound, as ISO 639-1 has it; by default English"""
    prompt: str | None = None
    response_format: Format = "json"
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.0
    stream: bool = False
    seed: int | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Of each window"""
    timestamp_granularities: list[Literal["segment"]] = field(default_factory=list, name="timestamp_granularities[]")
    request_id: str | None = None
    priority: int | None = None


class SpeechUsage(Struct):
    seconds: int
    type: Literal["duration"] = "duration"


class Transcription(Struct):
    text: str
    usage: SpeechUsage


class Segment(Struct):
    """What was said in one window of the sound."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float = 0.0


class VerboseTranscription(Struct):
    task: str
    language: str
    duration: float
    text: str
    segments: list[Segment]
    usage: SpeechUsage


class TextDelta(Struct):
    delta: str
    type: Literal["transcript.text.delta"] = "transcript.text.delta"


class TextDone(Struct):
    text: str
    usage: SpeechUsage
    type: Literal["transcript.text.done"] = "transcript.text.done"
