"""/v1/audio/transcriptions and translations: a sound of two windows says what transformers hears, in every form."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import transformers

from tests.checkpoints import spread
from tests.entrypoints.serve.serving import Serving, starting

WORDS = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>"]
WORDS += ["<|startofprev|>"]
LENGTH = 8
RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: dict[str, Path]) -> Path:
    place = tmp_path_factory.mktemp("whisper")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folders["byte level"])
    tokenizer.add_special_tokens({"additional_special_tokens": WORDS})
    tokenizer.save_pretrained(place)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_target_positions=64,
        pad_token_id=1, bos_token_id=0, eos_token_id=0, architectures=["WhisperForConditionalGeneration"],
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(WORDS[0]),
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = spread(transformers.WhisperForConditionalGeneration(config))
        model.generation_config.suppress_tokens = [5, 6, 7]
        model.save_pretrained(place)
    transformers.WhisperFeatureExtractor(feature_size=16).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with starting(
        str(folder), "--dtype", "float32", "--served-model-name", "scribe", "--task", "transcription"
    ) as running:
        running.read_until("ready in")
        yield running


def samples() -> np.ndarray:
    time = np.arange(45 * RATE) / RATE
    return (np.sin(time * 900 * (1 + time / 30)) * 20000).astype(np.int16)


def sound() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples().tobytes())
    return out.getvalue()


@pytest.fixture(scope="module")
def heard(folder: Path) -> list[str]:
    """What transformers hears in each window."""
    model: Any = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    begin = tokenizer.convert_tokens_to_ids([WORDS[0], WORDS[1], WORDS[3], WORDS[5]])
    texts = []
    floats = samples().astype(np.float32) / 2**15
    for first in (0, 30 * RATE):
        features = extractor(floats[first : first + 30 * RATE], sampling_rate=RATE, return_tensors="pt").input_features
        ids = torch.tensor([begin])
        with torch.inference_mode():
            for step in range(LENGTH):
                logits = model(input_features=features, decoder_input_ids=ids).logits[0, -1]
                logits[[5, 6, 7, *([0] if step == 0 else [])]] = -torch.inf
                ids = torch.cat((ids, logits.argmax().view(1, 1)), dim=1)
                if ids[0, -1] == 0:
                    break
        texts.append(tokenizer.decode(ids[0, len(begin) :], skip_special_tokens=True))
    return texts


def ask(server: Serving, **options: Any) -> Any:
    form = {"model": "scribe", "extra_body": {"max_completion_tokens": LENGTH}, **options}
    return server.openai().audio.transcriptions.create(file=("a.wav", sound()), **form)


def test_two_windows_are_heard(server: Serving, heard: list[str]) -> None:
    answer = ask(server)
    assert answer.text == "".join(heard).strip() and answer.usage.seconds == 45
    verbose = ask(server, response_format="verbose_json")
    assert [segment.text for segment in verbose.segments] == heard and verbose.duration == 45.0
    assert [(segment.start, segment.end) for segment in verbose.segments] == [(0.0, 30.0), (30.0, 45.0)]
    assert ask(server, response_format="text").strip() == answer.text
    assert "00:00:30,000 --> 00:00:45,000" in ask(server, response_format="srt")
    assert ask(server, response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:30.000")
    events = list(ask(server, stream=True))
    assert "".join(event.delta for event in events[:-1]).strip() == events[-1].text == answer.text


def test_other_tasks_languages_and_prompts(server: Serving) -> None:
    plain = ask(server).text
    assert ask(server, language="de").text != plain
    assert ask(server, prompt="the tide").text != plain
    translated = server.openai().audio.translations.create(
        model="scribe", file=("a.wav", sound()), extra_body={"max_completion_tokens": LENGTH}
    )
    assert translated.text != plain


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"language": "xx"}, "language: 'xx'"),
        ({"response_format": "mp3"}, "response_format|Invalid enum"),
        ({"temperature": 9}, "temperature|<= 2"),
        ({"extra_body": {"sound": "a"}}, "there is no field 'sound'"),
        ({"stream": True, "response_format": "text"}, "only the format json"),
    ],
)
def test_what_is_wrong_is_named(server: Serving, form: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(server, **form)


def test_what_is_no_sound_or_no_form(server: Serving) -> None:
    with pytest.raises(openai.BadRequestError, match="can't be read as a sound"):
        server.openai().audio.transcriptions.create(model="scribe", file=("a.wav", b"nothing"))
    url = f"{server.url}/v1/audio/transcriptions"
    assert "multipart/form-data" in httpx.post(url, json={}).json()["error"]["message"]
    assert httpx.post(url, data={"model": "scribe"}, files={"other": b"a"}).status_code == 400
    assert httpx.post(url, files={"model": (None, b"scribe")}).json()["error"]["param"] in ("file", None)
    broken = httpx.post(url, content=b"--", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code == 400
