"""Speech to text.  A sound is cut into windows of the length that the model hears at once, and each is a request.

45 s  ─▶  [0, 30) [30, 45)  ─▶  two requests, side by side  ─▶  their texts, one after another
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vllm.entrypoints.serve.audio.forms import decode_form
from vllm.entrypoints.serve.audio.protocol import (
    HARMLESS,
    Segment,
    SpeechRequest,
    SpeechUsage,
    TextDelta,
    TextDone,
    Transcription,
    VerboseTranscription,
)
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.generation import finals, prepare
from vllm.entrypoints.serve.http import DONE, EventStream, Reply, encode, json_reply
from vllm.entrypoints.serve.route import Answer, Route
from vllm.errors import RequestError
from vllm.inputs.media.decode import sound_of
from vllm.inputs.media.item import MediaItem, Sound
from vllm.inputs.prompts import Prompt
from vllm.messages import EngineRequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

Task = Literal["transcribe", "translate"]
MAX_SECONDS = 4 * 3600.0
"""Of a sound: at 16,000 samples per second a quarter of a gigabyte once decoded"""


@dataclass(frozen=True, slots=True)
class Windows:
    """A sound that is cut."""

    parts: list[Sound]
    seconds: float
    length: float
    """Seconds of a window"""

    @classmethod
    def of(cls, sound: Sound, length: float) -> Windows:
        """Raises RequestError for a sound that is too long."""
        seconds = len(sound.samples) / sound.rate
        if seconds > MAX_SECONDS:
            raise RequestError(f"file: is {seconds:,.0f} seconds long; at most {MAX_SECONDS:,.0f} are heard", "file")
        size = int(length * sound.rate)
        parts = [Sound(sound.samples[at : at + size], sound.rate) for at in range(0, len(sound.samples), size)]
        return cls(parts, seconds, length)

    def span(self, index: int) -> tuple[float, float]:
        """Return where a window begins and ends, in seconds."""
        return index * self.length, min(self.seconds, (index + 1) * self.length)


async def transcribe(call: Call) -> Answer:
    """Write down what is said."""
    return await _answer(call, "transcribe")


async def translate(call: Call) -> Answer:
    """Write down in English what is said in another language."""
    return await _answer(call, "translate")


async def _answer(call: Call, task: Task) -> Answer:
    body: SpeechRequest = call.body
    call.id(body.request_id)
    preparer = call.engine.preparer
    if preparer.encoder is None or preparer.encoder.reads != "audio" or preparer.media is None:
        raise HttpError(404, f"{call.model_name} is no model of speech, which this endpoint is for", "model")
    if body.stream and body.response_format != "json":
        raise RequestError("stream: only the format json is streamed", "stream")
    if not body.file:
        raise RequestError("file: is empty; send a sound", "file")
    sound = await asyncio.to_thread(sound_of, body.file, "file")
    windows = Windows.of(sound, await asyncio.to_thread(preparer.media.window_seconds))
    requests = await _prepare(call, body, task, windows)
    usage = SpeechUsage(int(-(-windows.seconds // 1)))
    if body.stream:
        return EventStream(_events(call, requests, usage))
    outputs = await finals(call.engine, requests)
    return _written(body, task, windows, outputs, usage)


async def _prepare(call: Call, body: SpeechRequest, task: Task, windows: Windows) -> list[EngineRequest]:
    begin = _beginning(call, body, task)
    room = call.engine.model_config.max_model_len - len(begin)
    if room < 1:
        raise RequestError("prompt: leaves no room for what is heard; shorten it", "prompt")
    params = SamplingParams(
        temperature=body.temperature,
        seed=body.seed,
        max_tokens=min(room, body.max_completion_tokens or room),
        min_tokens=1,
        logprobs=0 if body.response_format == "verbose_json" else None,
        logit_bias=dict.fromkeys(_never(call), -100.0) or None,
    )
    prompts = [Prompt(token_ids=begin, media=(MediaItem("audio", part),)) for part in windows.parts]
    return await prepare(call, prompts, params)


def _beginning(call: Call, body: SpeechRequest, task: Task) -> list[int]:
    """Return the tokens that tell the decoder what it is to do.  Raises RequestError for a language it doesn't know."""
    tokenizer, encoder = call.engine.tokenizer, call.engine.preparer.encoder
    if tokenizer is None or encoder is None:
        raise RequestError("the engine runs without a tokenizer (skip_tokenizer_init)", "model")

    def token(text: str) -> list[int]:
        found = tokenizer.encode(text, False)
        return found if len(found) == 1 else []

    language = body.language or "en"
    words = [token(f"<|{language}|>"), token(f"<|{task}|>"), token("<|notimestamps|>")]
    if body.language and token("<|en|>") and not words[0]:
        raise RequestError(f"language: {language[:20]!r} is none that the model knows; give one as 'en'", "language")
    before = token("<|startofprev|>")
    heard = [*before, *tokenizer.encode(" " + body.prompt.strip(), False)] if body.prompt and before else []
    return [*heard, encoder.start[0], *(one for word in words for one in word)]


def _never(call: Call) -> Sequence[int]:
    """Return the tokens that the model's generation config wants never to be written."""
    stored = getattr(call.engine.model_config, "generation_config", {}).get("suppress_tokens") or ()
    return [token for token in stored if isinstance(token, int) and 0 <= token < call.engine.model_config.vocab_size]


def _written(
    body: SpeechRequest, task: Task, windows: Windows, outputs: Sequence[RequestOutput], usage: SpeechUsage
) -> Reply:
    """Return the answer in the form that is asked for."""
    texts = [output.outputs[0].text or "" for output in outputs]
    whole = "".join(texts).strip()
    if body.response_format == "json":
        return json_reply(Transcription(whole, usage))
    if body.response_format == "verbose_json":
        segments = [_segment(body, windows, index, output) for index, output in enumerate(outputs)]
        language = "en" if task == "translate" else body.language or "en"
        return json_reply(VerboseTranscription(task, language, windows.seconds, whole, segments, usage))
    if body.response_format == "text":
        return _plain(whole + "\n")
    mark = "," if body.response_format == "srt" else "."
    blocks = []
    for index, text in enumerate(texts):
        start, end = (_clock(second, mark) for second in windows.span(index))
        number = f"{index + 1}\n" if body.response_format == "srt" else ""
        blocks.append(f"{number}{start} --> {end}\n{text.strip()}\n")
    return _plain(("" if body.response_format == "srt" else "WEBVTT\n\n") + "\n".join(blocks))


def _segment(body: SpeechRequest, windows: Windows, index: int, output: RequestOutput) -> Segment:
    completion = output.outputs[0]
    text = completion.text or ""
    start, end = windows.span(index)
    chances = [next(iter(step.values())).logprob for step in completion.logprobs or ()]
    data = text.encode()
    ratio = len(data) / len(zlib.compress(data)) if data else 0.0
    mean = float(np.mean(chances)) if chances else 0.0
    tokens = list(completion.token_ids)
    return Segment(index, int(start * 100), start, end, text, tokens, body.temperature, mean, ratio)


def _clock(seconds: float, mark: str) -> str:
    whole = round(seconds * 1000)
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _plain(text: str) -> Reply:
    return Reply(text.encode(), content_type=b"text/plain; charset=utf-8")


async def _events(call: Call, requests: Sequence[EngineRequest], usage: SpeechUsage) -> AsyncGenerator[bytes, None]:
    """Yield what is heard, window after window."""
    whole = ""
    for request in requests:
        (output,) = await finals(call.engine, [request])
        text = output.outputs[0].text or ""
        whole += text
        yield _event(TextDelta(text if whole != text else text.lstrip()))
    yield _event(TextDone(whole.strip(), usage)) + DONE


def _event(event: Any) -> bytes:
    return b"data: " + encode(event) + b"\n\n"


def decode(raw: bytes, content_type: bytes) -> SpeechRequest:
    """Return a request's form."""
    return decode_form(raw, content_type, SpeechRequest, HARMLESS)


ROUTES = [
    Route(
        "POST",
        f"/v1/audio/{name}",
        handler,
        summary,
        body=SpeechRequest,
        form=decode,
        reply=(Transcription, VerboseTranscription),
        purpose="generate",
        computes=True,
    )
    for name, handler, summary in (
        ("transcriptions", transcribe, "Write down what is said in a sound."),
        ("translations", translate, "Write down in English what is said in a sound."),
    )
]
