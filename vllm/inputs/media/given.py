"""Media that are given as objects: pictures, arrays, tensors, lists of them.

{"image": picture}      {"image": [picture, picture]}      {"video": frames}      {"audio": (samples, rate)}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from vllm.errors import RequestError, did_you_mean
from vllm.inputs.media.item import MODALITIES, MediaItem, Modality, Sound

_FIELD = "multi_modal_data"


def items_of(data: Any, uuids: Any, where: str) -> tuple[MediaItem, ...]:
    """Return what `multi_modal_data` holds, with the names that `multi_modal_uuids` gives.

    `where` names the prompt in errors.  Raises RequestError or TypeError for what is no such medium.
    """
    if data is None:
        return ()
    if not isinstance(data, Mapping):
        raise TypeError(f"{where}: {_FIELD!r} must be a dict such as {{'image': picture}}, got {_show(data)}")
    if uuids is not None and not isinstance(uuids, Mapping):
        raise TypeError(
            f"{where}: 'multi_modal_uuids' must be a dict such as {{'image': ['name']}}, got {_show(uuids)}"
        )
    items: list[MediaItem] = []
    for key, value in data.items():
        if key not in MODALITIES:
            raise RequestError(
                f"{where}: {_FIELD} has {key!r}; it takes {', '.join(MODALITIES)}.{did_you_mean(str(key), MODALITIES)}",
                _FIELD,
            )
        if value is None:
            continue
        modality = cast("Modality", key)
        several = _SEVERAL[modality](value)
        names = _names((uuids or {}).get(key), len(several), where)
        for index, (one, name) in enumerate(zip(several, names, strict=True)):
            items.append(MediaItem(modality, _checked(modality, one, f"{where}: {key} {index}"), name))
    return tuple(items)


def _names(uuids: Any, count: int, where: str) -> list[str | None]:
    listed: list[str | None] = [uuids] if isinstance(uuids, str) else list(uuids or [None] * count)
    if len(listed) != count:
        raise RequestError(
            f"{where}: {count} media but {len(listed)} multi_modal_uuids; give one for each", "multi_modal_uuids"
        )
    return listed


def _images(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(value) if getattr(value, "ndim", 0) == 4 or _is_embedding(value, 3) else [value]


def _videos(value: Any) -> list[Any]:
    if isinstance(value, list) and value and not _is_picture(value[0]):
        return value
    return list(value) if getattr(value, "ndim", 0) == 5 or _is_embedding(value, 3) else [value]


def _sounds(value: Any) -> list[Any]:
    if isinstance(value, list) and value and not isinstance(value[0], (int, float)):
        return value
    return [value]


_SEVERAL = {"image": _images, "video": _videos, "audio": _sounds}
"""Modality → the list of what was given, one or many."""


def _checked(modality: Modality, value: Any, where: str) -> Any:
    """Return one medium as a `MediaItem` holds it."""
    if _is_embedding(value, 2) or (modality != "video" and _is_embedding(value, 3)):
        return value.flatten(0, -2)
    if modality == "image":
        return _picture(value, where)
    return _video(value, where) if modality == "video" else _sound(value, where)


def _picture(value: Any, where: str) -> Any:
    from PIL import Image

    if isinstance(value, Image.Image):
        return value if value.mode == "RGB" else on_white(value)
    pixels = _pixels(value, where)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise RequestError(
            f"{where} has the shape {pixels.shape}; give a PIL image, or pixels [height, width, 3]", _FIELD
        )
    return Image.fromarray(pixels)


def on_white(picture: Any) -> Any:
    """Return a picture in RGB; what is transparent becomes white."""
    from PIL import Image

    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")


def _video(value: Any, where: str) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        value = value[0]  # with facts about the file that it is from
    frames = [_picture(frame, f"{where}, frame {number}") for number, frame in enumerate(_listed(value, where))]
    if not frames:
        raise RequestError(f"{where} has no frames", _FIELD)
    if len({frame.size for frame in frames}) > 1:
        raise RequestError(f"{where} has frames of different sizes; give frames of one size", _FIELD)
    return np.stack([np.asarray(frame) for frame in frames])


def _listed(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, (list, tuple)):
        return value
    pixels = _pixels(value, where)
    if pixels.ndim != 4:
        raise RequestError(f"{where} has the shape {pixels.shape}; give frames [count, height, width, 3]", _FIELD)
    return list(pixels)


def _pixels(value: Any, where: str) -> np.ndarray:
    """Return whole numbers from 0 to 255; fractions are taken for shares of 255."""
    pixels = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f" and pixels.size and pixels.min() >= 0.0 and pixels.max() <= 1.0:
        return (pixels * 255.0).round().astype(np.uint8)
    if pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
        return pixels.astype(np.uint8)
    raise RequestError(
        f"{where} holds {pixels.dtype} that are no pixels; give integers from 0 to 255, or fractions from 0 to 1",
        _FIELD,
    )


def _sound(value: Any, where: str) -> Sound:
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and np.ndim(value[1]) == 0):
        raise RequestError(f"{where} is {_show(value)}; give (samples, samples per second)", _FIELD)
    samples = np.asarray(value[0].cpu() if hasattr(value[0], "cpu") else value[0], dtype=np.float32)
    rate = int(value[1])
    if samples.ndim == 2:  # channels, whichever way they lie
        samples = samples.mean(axis=int(samples.shape[1] <= samples.shape[0]))
    if samples.ndim != 1 or not samples.size or rate <= 0 or not np.isfinite(samples).all():
        raise RequestError(f"{where}: samples {samples.shape} at {rate} per second are no sound", _FIELD)
    return Sound(samples, rate)


def _is_embedding(value: Any, ndim: int) -> bool:
    """Whether it is a float tensor of torch of so many dimensions: what a tower has made of a medium."""
    return (
        hasattr(value, "is_floating_point")
        and value.is_floating_point()
        and value.ndim == ndim
        and value.shape[-1] != 3
    )


def _is_picture(value: Any) -> bool:
    return hasattr(value, "getbands") or getattr(value, "ndim", 0) == 3


def _show(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
