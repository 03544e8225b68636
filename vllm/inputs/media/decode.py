"""From the bytes of a file to a picture, a sound or a video's frames.

What a file is shows in its bytes; names and announced types are not believed.
"""

from __future__ import annotations

import base64
import binascii
import io
import wave
from typing import Any

import numpy as np

from vllm.errors import ConfigError, RequestError
from vllm.inputs.media.given import on_white
from vllm.inputs.media.item import Sound

MAX_PIXELS = 100_000_000
"""Of a picture, or of a video's frames together: 300 MB once decoded.  A file of a few kilobytes can claim more."""
MAX_SAMPLES = 100_000_000
"""Of a sound: half an hour of two channels at 48 kHz is more than any model hears at once."""
NUM_FRAMES = 32


def picture_of(data: bytes, where: str) -> Any:
    """Return a PIL image in RGB, the way up its camera says.  Raises RequestError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as found:
            _check_pixels(found.width * found.height, f"{found.width} x {found.height}", where)
            found.load()
            picture = ImageOps.exif_transpose(found)
    except RequestError:
        raise
    except Image.DecompressionBombError:
        raise RequestError(f"{where} has more than {MAX_PIXELS:,} pixels; send a smaller one", "messages") from None
    except Exception as error:  # decoders raise whatever they find
        reason = "its format is not known" if isinstance(error, Image.UnidentifiedImageError) else "it is damaged"
        raise RequestError(f"{where} can't be read as an image: {reason}", "messages") from error
    return picture if picture.mode == "RGB" else on_white(picture)


def sound_of(data: bytes, where: str) -> Sound:
    """Return a sound, its channels mixed.  WAV is read here, other formats by soundfile.  Raises RequestError."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        try:
            return _wav(data, where)
        except (wave.Error, EOFError, ValueError):
            pass  # a kind of WAV that the standard library does not read
    try:
        import soundfile
    except ImportError:
        raise ConfigError(f"{where} is no plain WAV; other formats need soundfile (pip install vllm[audio])") from None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_samples(file.frames * file.channels, where)
            samples = file.read(dtype="float32", always_2d=True)
            return Sound(np.ascontiguousarray(samples.mean(axis=1)), file.samplerate)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"{where} can't be read as a sound: it is damaged, or its format is not known", "messages"
        ) from error


def _wav(data: bytes, where: str) -> Sound:
    with wave.open(io.BytesIO(data)) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        _check_samples(file.getnframes() * channels, where)
        raw = file.readframes(file.getnframes())
    if not raw or rate <= 0:
        raise RequestError(f"{where} has no samples", "messages")
    if width == 1:  # the only one without a sign
        samples = (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 128.0) / 128.0
    elif width == 3:
        parts = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        whole = np.zeros((len(parts), 4), dtype=np.uint8)
        whole[:, 1:] = parts
        samples = whole.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    else:
        samples = np.frombuffer(raw, dtype=f"<i{width}").astype(np.float32) / 2.0 ** (8 * width - 1)
    return Sound(np.ascontiguousarray(samples.reshape(-1, channels).mean(axis=1)), rate)


def frames_of(data: bytes, where: str, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Return frames of a video, evenly spread over it.  -> [N, H, W, 3] uint8.  Raises RequestError."""
    try:
        import av
    except ImportError:
        raise ConfigError(f"{where}: videos need PyAV (pip install vllm[video])") from None
    try:
        opened: Any = av.open(io.BytesIO(data))
        with opened as file:
            stream = file.streams.video[0]
            _check_pixels(stream.width * stream.height * num_frames, f"{stream.width} x {stream.height}", where)
            total = stream.frames or sum(1 for _ in file.decode(stream))
            wanted = set(np.linspace(0, max(0, total - 1), min(num_frames, max(1, total))).round().astype(int).tolist())
            file.seek(0)
            found = [
                frame.to_ndarray(format="rgb24") for index, frame in enumerate(file.decode(stream)) if index in wanted
            ]
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"{where} can't be read as a video: it is damaged, or its format is not known", "messages"
        ) from error
    if not found:
        raise RequestError(f"{where} has no frames", "messages")
    return np.stack(found)


def embedding_of(text: str, where: str) -> Any:
    """Return a tensor of floats that was written by torch.save and then as base64.  -> [n, D]"""
    import torch

    try:
        tensor = torch.load(io.BytesIO(bytes_of(text, where)), weights_only=True, map_location="cpu")
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"{where} can't be read as a tensor; send the base64 of what torch.save writes", "messages"
        ) from error
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.ndim not in (2, 3):
        raise RequestError(f"{where} is no tensor of floats of the shape [tokens, width]", "messages")
    if not torch.isfinite(tensor).all():
        raise RequestError(f"{where} holds values that are not finite", "messages")
    return tensor.flatten(0, -2)


def bytes_of(text: str, where: str) -> bytes:
    """Return what base64 stands for."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{where} is not base64", "messages") from None


def _check_pixels(count: int, shape: str, where: str) -> None:
    if count > MAX_PIXELS:
        raise RequestError(f"{where} is {shape} pixels, more than {MAX_PIXELS:,}; send a smaller one", "messages")


def _check_samples(count: int, where: str) -> None:
    if count > MAX_SAMPLES:
        raise RequestError(f"{where} has {count:,} samples, more than {MAX_SAMPLES:,}; send a shorter one", "messages")
