"""Arrays as they go over the wire: JSON, base64, bytes.

JSON is written row by row: a thread that writes a large answer lets others run in between.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from vllm.entrypoints.serve.http import Reply, encode
from vllm.entrypoints.serve.pooling.protocol import Dtype, EmbeddingRequest, Endianness
from vllm.errors import RequestError

_BYTES = b"application/octet-stream"
_MOST_METADATA = 48 * 1024  # bytes; clients take no longer headers


def as_json(data: np.ndarray) -> msgspec.Raw:
    """Return numbers as JSON: [N], or [n, N]."""
    if data.ndim == 1:
        return msgspec.Raw(encode(data.tolist()))
    return msgspec.Raw(b"[" + b",".join([encode(row.tolist()) for row in data]) + b"]")


def as_bytes(data: np.ndarray, dtype: Dtype = "float32", endianness: Endianness = "native") -> bytes:
    """Return numbers one after the other.  Raises ValueError if one is too large for float16."""
    order = {"native": "=", "little": "<", "big": ">"}[endianness]
    if dtype == "bfloat16":
        return _bfloat16(data).astype(f"{order}u2").tobytes()
    with np.errstate(over="ignore"):
        found = data.astype(f"{order}f{4 if dtype == 'float32' else 2}")
    if dtype == "float16" and not np.isfinite(found).all():
        raise ValueError("a number is too large for float16; ask for float32")
    return found.tobytes()


def as_base64(data: np.ndarray, dtype: Dtype = "float32", endianness: Endianness = "native") -> str:
    """Return `as_bytes` as a text."""
    return base64.b64encode(as_bytes(data, dtype, endianness)).decode()


def _bfloat16(data: np.ndarray) -> np.ndarray:
    """The upper half of float32, rounded to the nearest, ties to even.  -> uint16"""
    bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _unit(data: np.ndarray) -> np.ndarray:
    """An embedding at length 1, so that its numbers are from -1 to 1."""
    return data / max(float(np.linalg.norm(data)), 1e-12)


def _bits(data: np.ndarray) -> np.ndarray:
    """Eight signs to a byte, the first one highest; 1 is positive.  -> uint8"""
    return np.packbits(data > 0)


BY_TYPE: dict[str, Callable[[np.ndarray], msgspec.Raw | str]] = {
    "float": as_json,
    "int8": lambda data: as_json(np.rint(_unit(data) * 127).astype(np.int8)),
    "uint8": lambda data: as_json((np.rint(_unit(data) * 127) + 128).astype(np.uint8)),
    "binary": lambda data: as_json((_bits(data).astype(np.int16) - 128).astype(np.int8)),
    "ubinary": lambda data: as_json(_bits(data)),
    "base64": lambda data: as_base64(data, "float32", "little"),
}
"""How an embedding is written in each of Cohere's types."""


def check_form(body: EmbeddingRequest) -> None:
    """Raise RequestError for a form of numbers that text can't have."""
    if body.encoding_format in (None, "float"):
        for field, usual in (("embed_dtype", "float32"), ("endianness", "native")):
            if getattr(body, field) not in (None, usual):
                raise RequestError(f"{field} is for encoding_format base64, bytes and bytes_only", field)


def written(data: np.ndarray, body: EmbeddingRequest) -> Any:
    """Return numbers in the form that a body asks for, JSON or base64."""
    if body.encoding_format != "base64":
        return as_json(data)
    with _told("embed_dtype"):
        return as_base64(data, body.embed_dtype or "float32", body.endianness or "native")


def binary(arrays: list[np.ndarray], body: EmbeddingRequest, head: Any) -> Reply:
    """Return an answer of bytes, whose header `metadata` says where each result is.  `head` has all but the data."""
    dtype, endianness = body.embed_dtype or "float32", body.endianness or "native"
    with _told("embed_dtype"):
        parts = [as_bytes(data, dtype, endianness) for data in arrays]
    if body.encoding_format == "bytes_only":
        return Reply(b"".join(parts), content_type=_BYTES)
    entries, start = [], 0
    for index, (data, part) in enumerate(zip(arrays, parts, strict=True)):
        entries.append(
            {
                "index": index,
                "embed_dtype": dtype,
                "endianness": sys.byteorder if endianness == "native" else endianness,
                "start": start,
                "end": start + len(part),
                "shape": list(data.shape),
            }
        )
        start += len(part)
    facts = {"id": head.id, "created": head.created, "model": head.model, "data": entries, "usage": head.usage}
    metadata = json.dumps(msgspec.to_builtins(facts)).encode()  # ASCII, as headers must be
    if len(metadata) > _MOST_METADATA:
        raise RequestError(
            f"{len(arrays):,} inputs are too many for encoding_format='bytes', whose header describes each; send fewer, "
            "or ask for bytes_only",
            "encoding_format",
        )
    return Reply(b"".join(parts), content_type=_BYTES, headers=[(b"metadata", metadata)])


@contextmanager
def _told(field: str) -> Iterator[None]:
    """Turn a ValueError about numbers into an error of the request."""
    try:
        yield
    except ValueError as error:
        raise RequestError(f"{field}: {error}", field) from None
