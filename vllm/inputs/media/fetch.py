"""Media by their addresses: http(s), data, and files of one folder that the server may read.

A sender chooses the address, and the server's network sees more than the sender's.  So the address that is connected to is
checked, not only its name, and a redirect's anew; private ones are for hosts that are allowed by name.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import concurrent.futures
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import numpy as np

from vllm import env
from vllm.errors import ConfigError, RequestError
from vllm.inputs.media.decode import embedding_of, frames_of, picture_of, sound_of
from vllm.inputs.media.item import MediaItem
from vllm.messages import Modality

MAX_BYTES: Mapping[Modality, int] = {"image": 64 << 20, "audio": 64 << 20, "video": 512 << 20}
"""Of a file: beyond what cameras and phones write, and less than what would hurt"""
MAX_DECODED = 2 << 30
"""Bytes of all media of a conversation, once they are decoded"""
_AT_A_TIME = 8
_MAX_REDIRECTS = 3


@dataclass(frozen=True, slots=True)
class Source:
    """A medium of a message that is yet to be had."""

    modality: Modality
    url: str = ""
    embedding: str = ""
    """A tensor, in place of a url"""
    given: Any = None
    """The medium itself, in place of a url"""
    uuid: str | None = None
    where: str = "the medium"
    """What errors call it"""


@dataclass(frozen=True, slots=True)
class Reach:
    """Which addresses may be fetched from."""

    folder: Path | None = None
    """Whose files may be read"""
    hosts: frozenset[str] = frozenset()
    """Where there are any, no others"""

    @classmethod
    def of(cls, folder: str, hosts: Iterable[str]) -> Reach:
        """Raises ConfigError for a folder that is not there."""
        path = Path(folder).resolve() if folder else None
        if path is not None and not path.is_dir():
            raise ConfigError(f"allowed_local_media_path={folder!r} is no folder")
        return cls(path, frozenset(host.lower() for host in hosts))


class Fetcher:
    """Fetches and decodes media."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach

    def now(self, sources: Sequence[Source], options: Mapping[str, Any]) -> list[MediaItem]:
        """Fetch, and wait for it.  Raises RequestError."""
        if all(source.given is not None for source in sources):
            return [self._item(source, source.given) for source in sources]
        with concurrent.futures.ThreadPoolExecutor(1) as thread:  # the caller may be within a loop of its own
            return thread.submit(asyncio.run, self.fetch(sources, options)).result()

    async def fetch(self, sources: Sequence[Source], options: Mapping[str, Any]) -> list[MediaItem]:
        """Fetch some at a time and decode in threads.  `options`: modality → how to read it.  Raises RequestError."""
        turn, size = asyncio.Semaphore(_AT_A_TIME), 0

        async def one(source: Source) -> MediaItem:
            nonlocal size
            async with turn:
                item = await self._fetch(source, options)
            size += _num_bytes(item.data)
            if size > MAX_DECODED:
                raise RequestError(
                    f"{source.where}: all media together have more than {MAX_DECODED >> 30} GiB once decoded; send fewer",
                    "messages",
                )
            return item

        tasks = [asyncio.create_task(one(source)) for source in sources]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _fetch(self, source: Source, options: Mapping[str, Any]) -> MediaItem:
        if source.given is not None:
            return self._item(source, source.given)
        if source.embedding:
            return self._item(source, await asyncio.to_thread(embedding_of, source.embedding, source.where))
        seconds = env.media_timeout(source.modality)
        try:
            async with asyncio.timeout(seconds):
                data, kind = await self._read(source)
        except TimeoutError:
            raise RequestError(f"{source.where} could not be fetched within {seconds:g} seconds", "messages") from None
        return self._item(source, await asyncio.to_thread(_decoded, source, data, kind, options))

    def _item(self, source: Source, data: Any) -> MediaItem:
        return MediaItem(source.modality, data, source.uuid)

    async def _read(self, source: Source) -> tuple[bytes, str]:
        """Return the bytes behind an address, and what kind they are said to be."""
        scheme = source.url.partition(":")[0].lower()
        if scheme == "data":
            return _data(source)
        if scheme == "file":
            return await asyncio.to_thread(self._file, source), ""
        if scheme in ("http", "https"):
            return await self._download(source), ""
        raise RequestError(f"{source.where}: an address must begin with http:, https:, data: or file:", "messages")

    def _file(self, source: Source) -> bytes:
        folder = self.reach.folder
        refusal = RequestError(
            f"{source.where}: files can be read only below the folder that the server allows (allowed_local_media_path)",
            "messages",
        )
        parts = urlsplit(source.url)
        if folder is None or parts.netloc not in ("", "localhost"):
            raise refusal
        path = Path(unquote(parts.path)).resolve()
        if not path.is_relative_to(folder):
            raise refusal
        if not path.is_file():
            raise RequestError(f"{source.where}: there is no such file", "messages")
        if path.stat().st_size > MAX_BYTES[source.modality]:
            raise _too_large(source)
        return path.read_bytes()

    async def _download(self, source: Source) -> bytes:
        import httpcore

        url = source.url
        async with httpcore.AsyncConnectionPool(network_backend=_guarded(self.reach, source.where)) as pool:
            for _ in range(_MAX_REDIRECTS + 1):
                host = self._checked_host(url, source)
                try:
                    async with pool.stream("GET", url, headers={"Host": host, "User-Agent": "vllm"}) as answer:
                        headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
                        if answer.status in (301, 302, 303, 307, 308) and b"location" in headers:
                            if not env.media_redirects():
                                raise RequestError(
                                    f"{source.where}: the address redirects, which is not allowed", "messages"
                                )
                            url = urljoin(url, headers[b"location"])
                            continue
                        if answer.status != 200:
                            raise RequestError(f"{source.where}: the address answered {answer.status}", "messages")
                        return await _counted(answer, headers, source)
                except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
                    raise RequestError(f"{source.where} could not be fetched from {host}", "messages") from error
        raise RequestError(f"{source.where}: the address redirects more than {_MAX_REDIRECTS} times", "messages")

    def _checked_host(self, url: str, source: Source) -> str:
        """Return the host of an address, with its port.  Raises RequestError if it may not be asked."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https") or not url.isascii() or not url.isprintable():
            raise RequestError(f"{source.where}: {url[:100]!r} is no address", "messages")
        if self.reach.hosts and host not in self.reach.hosts:
            raise RequestError(
                f"{source.where}: {host} is none of the hosts that the server allows (allowed_media_domains)",
                "messages",
            )
        return parts.netloc.rpartition("@")[2]


def _num_bytes(data: Any) -> int:
    """Return the memory that a medium takes."""
    if hasattr(data, "getbands"):
        return 3 * int(data.width) * int(data.height)
    return int(getattr(getattr(data, "samples", data), "nbytes", 0))


def _guarded(reach: Reach, where: str) -> Any:
    """Return what connects to hosts, and looks at the address that it connects to."""
    import httpcore

    class Guarded(httpcore.AsyncNetworkBackend):
        def __init__(self) -> None:
            self._inner = httpcore.AnyIOBackend()

        async def connect_tcp(self, host: str, port: int, *others: Any, **options: Any) -> Any:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
            if host.lower() not in reach.hosts and not all(map(is_public, addresses)):
                raise RequestError(
                    f"{where}: {host} is a private address; the server must allow it by name (allowed_media_domains)",
                    "messages",
                )
            return await self._inner.connect_tcp(addresses[0], port, *others, **options)

        async def connect_unix_socket(self, path: str, *_: Any, **__: Any) -> Any:
            raise OSError("no sockets of the machine")

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    return Guarded()


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and of nothing that is nearer."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            found = inner
    return found.is_global and not found.is_multicast


async def _counted(answer: Any, headers: Mapping[bytes, str], source: Source) -> bytes:
    """Return an answer's body, counted while it comes."""
    most = MAX_BYTES[source.modality]
    announced = headers.get(b"content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(source)
    parts, size = [], 0
    async for part in answer.aiter_stream():
        size += len(part)
        if size > most:
            raise _too_large(source)
        parts.append(part)
    return b"".join(parts)


def _too_large(source: Source) -> RequestError:
    most = MAX_BYTES[source.modality] >> 20
    return RequestError(f"{source.where} has more than {most} MiB; send a smaller one", "messages")


def _data(source: Source) -> tuple[bytes, str]:
    """Return the bytes of a data: address, and their type."""
    head, comma, body = source.url.partition(",")
    if not comma:
        raise RequestError(f"{source.where}: a data: address has a comma before its content", "messages")
    kind = head[5:].partition(";")[0].lower()
    if kind == "video/jpeg":  # frames, one after another
        return body.encode(), kind
    if not head.endswith(";base64"):
        return unquote_to_bytes(body), kind
    try:
        return base64.b64decode(unquote(body) if "%" in body else body, validate=True), kind
    except (binascii.Error, ValueError):
        raise RequestError(f"{source.where} is not base64", "messages") from None


def _decoded(source: Source, data: bytes, kind: str, options: Mapping[str, Any]) -> Any:
    where = source.where
    if len(data) > MAX_BYTES[source.modality]:
        raise _too_large(source)
    if source.modality == "image":
        return picture_of(data, where)
    if source.modality == "audio":
        return sound_of(data, where)
    if kind == "video/jpeg":
        pieces = [piece for piece in data.decode().split(",") if piece]
        frames = [picture_of(_frame(piece, where), f"{where}, frame {number}") for number, piece in enumerate(pieces)]
        if not frames or len({frame.size for frame in frames}) > 1:
            raise RequestError(f"{where} must have frames of one size", "messages")
        return np.stack([np.asarray(frame) for frame in frames])
    count = (options.get("video") or {}).get("num_frames", 32)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1024:
        raise RequestError("media_io_kwargs: video.num_frames must be an integer from 1 to 1024", "media_io_kwargs")
    return frames_of(data, where, count)


def _frame(piece: str, where: str) -> bytes:
    try:
        return base64.b64decode(piece, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{where} has a frame that is not base64", "messages") from None
