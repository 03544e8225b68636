"""Media by address: what may be fetched, what is refused, and that nothing of a refused address leaks."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import threading
import time
import wave
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vllm.errors import ConfigError, RequestError
from vllm.inputs.media import decode, fetch
from vllm.inputs.media.fetch import Fetcher, Reach, Source, is_public
from vllm.inputs.media.item import MediaItem, Sound
from vllm.inputs.media.messages import find_media


def png(width: int = 6, height: int = 4, color: str = "red", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), color).save(out, "PNG")
    return out.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG of a few bytes that claims to be square and huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def wav(count: int = 800, rate: int = 8000, width: int = 2, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(count * width * channels))
    return out.getvalue()


class Answers(BaseHTTPRequestHandler):
    """A host of the neighbourhood."""

    def do_GET(self) -> None:
        path = self.path
        self.server.seen.append(path)  # type: ignore[attr-defined]
        if path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", path[4:])
            self.end_headers()
            return
        self.send_response(404 if path == "/missing" else 200)
        if path == "/large":
            self.send_header("Content-Length", str(1 << 30))
        self.end_headers()
        if path == "/picture":
            self.wfile.write(png())
        elif path == "/endless":
            with pytest.MonkeyPatch.context():
                self._pour()
        elif path == "/slow":
            time.sleep(2)

    def _pour(self) -> None:
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def port(host: Any) -> int:
    return int(host.server_address[1])


def fetched(url: str, modality: Any = "image", reach: Reach | None = None, **options: Any) -> MediaItem:
    source = Source(modality, url=url, where="the picture")
    reach = Reach(hosts=frozenset(["localhost"])) if reach is None else reach
    (item,) = Fetcher(reach).now([source], options)
    return item


def as_data(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def refusal(url: str, modality: Any = "image", reach: Reach | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        fetched(url, modality, reach)
    assert str(caught.value).startswith("the picture")
    return str(caught.value)


def test_a_picture_by_address_and_as_data(host: Any) -> None:
    for url in (as_data(png()), f"http://localhost:{port(host)}/picture", f"http://localhost:{port(host)}/to?/picture"):
        picture = fetched(url).data
        assert picture.size == (6, 4) and picture.mode == "RGB" and picture.getpixel((0, 0)) == (255, 0, 0)


def test_files_only_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.png").write_bytes(png())
    (tmp_path / "out.png").write_bytes(png())
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out.png")
    reach = Reach.of(str(tmp_path / "in"), [])
    assert fetched(f"file://{tmp_path}/in/a%20b.png", reach=reach).data.size == (6, 4)
    for path in ("/etc/passwd", f"{tmp_path}/out.png", f"{tmp_path}/in/../out.png", f"{tmp_path}/in/link.png"):
        assert "only below the folder" in refusal(f"file://{path}", reach=reach)
    assert "only below the folder" in refusal("file:///etc/passwd", reach=Reach())
    assert "only below the folder" in refusal(f"file://elsewhere{tmp_path}/in/a%20b.png", reach=reach)
    assert "no such file" in refusal(f"file://{tmp_path}/in/none.png", reach=reach)
    with pytest.raises(ConfigError, match="no folder"):
        Reach.of(str(tmp_path / "none"), [])


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "fc00::1"]
    + ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "100.64.0.1"],
)
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not is_public(address)


def test_addresses_of_the_internet() -> None:
    assert is_public("8.8.8.8") and is_public("2606:4700::1111") and is_public("::ffff:8.8.8.8")


def test_private_hosts_are_asked_only_if_they_are_allowed_by_name(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host.seen.clear()
    here = f"127.0.0.1:{port(host)}"
    assert "private address" in refusal(f"http://{here}/picture", reach=Reach())
    assert "private address" in refusal(f"http://localhost:{port(host)}/picture", reach=Reach())
    assert "none of the hosts" in refusal(f"http://{here}/picture")  # only localhost is
    assert "none of the hosts" in refusal(f"http://localhost@{here}/picture")
    assert host.seen == []
    assert "none of the hosts" in refusal(f"http://localhost:{port(host)}/to?http://{here}/picture")
    assert host.seen == [f"/to?http://{here}/picture"]


def test_a_name_that_leads_to_a_private_address_is_refused(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host.seen.clear()
    real = asyncio.BaseEventLoop.getaddrinfo

    async def rebound(self: Any, name: Any, *args: Any, **options: Any) -> Any:
        return await real(self, "127.0.0.1" if name == "pictures.example" else name, *args, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", rebound)
    assert "private address" in refusal(f"http://pictures.example:{port(host)}/picture", reach=Reach())
    assert host.seen == []


def test_what_hosts_do_wrong(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = f"http://localhost:{port(host)}"
    assert "answered 404" in refusal(f"{base}/missing")
    assert "more than 64 MiB" in refusal(f"{base}/large")
    monkeypatch.setitem(fetch.MAX_BYTES, "image", 1 << 20)  # type: ignore[arg-type]
    assert "more than 1 MiB" in refusal(f"{base}/endless")
    assert "redirects more than 3 times" in refusal(f"{base}/to?{base}/to?{base}/to?{base}/to?{base}/to?{base}/picture")
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "0.3")
    began = time.monotonic()
    assert "within 0.3 seconds" in refusal(f"{base}/slow")
    assert time.monotonic() - began < 1.5
    assert "could not be fetched" in refusal("http://localhost:9/picture")
    monkeypatch.setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    assert "redirects, which is not allowed" in refusal(f"{base}/to?/picture")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gopher://localhost/", "must begin with http:"),
        ("picture.png", "must begin with http:"),
        ("http://", "is no address"),
        ("http://local\nhost/", "is no address"),
        ("http://localhost:port/", "is no address"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,@@@", "is not base64"),
        (as_data(b"not a picture"), "its format is not known"),
        (as_data(png(200, 200)[:-40]), "it is damaged"),
        (as_data(bomb()), "pixels"),
    ],
)
def test_what_is_no_picture_is_refused(url: str, words: str) -> None:
    assert words in refusal(url)


def test_a_truncated_jpeg_is_refused() -> None:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 50.0).save(out, "JPEG")
    assert "it is damaged" in refusal(as_data(out.getvalue()[:-300], "image/jpeg"))


def test_pictures_as_they_are_meant() -> None:
    see_through = decode.picture_of(png(mode="RGBA", color="#00000000"), "it")
    assert see_through.getpixel((0, 0)) == (255, 255, 255)
    grey = decode.picture_of(png(mode="L", color="white"), "it")
    assert grey.mode == "RGB"
    out = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.new("RGB", (6, 4)).save(out, "JPEG", exif=turned)
    assert decode.picture_of(out.getvalue(), "it").size == (4, 6)


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_sounds(width: int, channels: int) -> None:
    sound = fetched(as_data(wav(width=width, channels=channels), "audio/wav"), "audio").data
    assert isinstance(sound, Sound) and sound.rate == 8000 and sound.samples.shape == (800,)
    assert np.abs(sound.samples).max() < 1.1 and sound.samples.dtype == np.float32


def test_other_sounds_and_what_is_none() -> None:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    tone = np.sin(np.arange(1600) / 5).astype(np.float32) / 2
    soundfile.write(out, np.stack((tone, tone), axis=1), 16000, format="FLAC")
    sound = decode.sound_of(out.getvalue(), "it")
    assert sound.rate == 16000 and np.abs(sound.samples - tone).max() < 1e-3
    assert "can't be read as a sound" in refusal(as_data(b"nothing to hear", "audio/wav"), "audio")


def test_videos() -> None:
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for step in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), step * 15, dtype=np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    frames = fetched(as_data(out.getvalue(), "video/mp4"), "video", video={"num_frames": 4}).data
    assert frames.shape == (4, 32, 32, 3) and np.allclose(frames.mean(axis=(1, 2, 3)), [0, 75, 150, 225], atol=12)
    assert "can't be read as a video" in refusal(as_data(b"nothing to see", "video/mp4"), "video")


def test_frames_one_by_one() -> None:
    pieces = ",".join(base64.b64encode(png(color=color)).decode() for color in ("red", "blue"))
    frames = fetched(f"data:video/jpeg;base64,{pieces}", "video").data
    assert frames.shape == (2, 4, 6, 3) and tuple(frames[1, 0, 0]) == (0, 0, 255)


def test_embeddings() -> None:
    out = io.BytesIO()
    torch.save(torch.ones(1, 3, 8), out)
    text = base64.b64encode(out.getvalue()).decode()
    (item,) = Fetcher(Reach()).now([Source("image", embedding=text)], {})
    assert item.data.shape == (3, 8)
    for wrong in ("@", base64.b64encode(b"junk").decode()):
        with pytest.raises(RequestError):
            Fetcher(Reach()).now([Source("image", embedding=wrong)], {})


def test_many_large_pictures_are_refused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_DECODED", 3 * 100 * 100 * 20)
    sources = [Source("image", url=as_data(png(100, 100)), where=f"part {index}") for index in range(40)]
    with pytest.raises(RequestError, match="all media together"):
        Fetcher(Reach()).now(sources, {})
    assert len(Fetcher(Reach()).now(sources[:20], {})) == 20


def test_the_media_of_messages() -> None:
    picture = Image.new("RGB", (2, 2))
    content: list[Any] = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "http://a/b"}, "uuid": "one"},
        {"type": "image_pil", "image_pil": picture},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": "http://a/c"},
    ]
    messages, sources = find_media([{"role": "user", "content": content}, {"role": "user", "content": "b"}])
    assert [part["type"] for part in messages[0]["content"]] == ["text", "image", "image", "audio", "video"]
    assert [source.modality for source in sources] == ["image", "image", "audio", "video"]
    assert sources[0].url == "http://a/b" and sources[0].uuid == "one" and sources[1].given is picture
    with pytest.raises(RequestError, match="message 0, part 0: has no 'image_url'"):
        find_media([{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(RequestError, match="257 media, more than 256"):
        find_media([{"role": "user", "content": [content[1]] * 257}])
