"""The load generator's HTTP: any cut of an answer gives the same body, and what is broken is seen."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.entrypoints.fake_openai import FakeOpenAI
from vllm.entrypoints.bench.connections import AnswerReader, BrokenAnswerError, Pool

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def read(answer: bytes, cuts: list[int], ends: bool = False) -> tuple[AnswerReader, bytes]:
    reader, body = AnswerReader(), b""
    bounds = [0, *sorted(cuts), len(answer)]
    for a, b in zip(bounds, bounds[1:], strict=False):
        if b > a:
            body += reader.feed(answer[a:b])
    if ends:
        reader.end()
    return reader, body


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=4), st.data())
def test_chunks_may_be_cut_anywhere(chunks: list[bytes], data: st.DataObject) -> None:
    trailer = data.draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
    extension = data.draw(st.sampled_from([b"", b";name=value"]))
    body = b"".join(b"%X%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    answer = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailer + b"\r\n"
    cuts = data.draw(st.lists(st.integers(0, len(answer)), max_size=8))
    reader, found = read(answer, cuts)
    assert (found, reader.status, reader.done, reader.keeps_alive) == (b"".join(chunks), 200, True, True)


@given(st.binary(max_size=30), st.data())
def test_a_body_of_known_length_may_be_cut_anywhere(body: bytes, data: st.DataObject) -> None:
    answer = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    reader, found = read(answer, data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    assert (found, reader.done, reader.keeps_alive) == (body, True, True)


def test_a_body_without_a_length_lasts_until_the_end() -> None:
    reader, found = read(HEAD + b"\r\nall of it", [], ends=True)
    assert (found, reader.done, reader.keeps_alive) == (b"all of it", True, False)


def test_a_connection_that_is_to_close_is_not_used_again() -> None:
    reader, _ = read(HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n", [])
    assert reader.done and not reader.keeps_alive


def test_an_interim_answer_is_passed_over() -> None:
    reader, found = read(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok", [30])
    assert (found, reader.status) == (b"ok", 200)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-x\r\n\r\n", "no answer in HTTP/1.1"),
        (b"HTTP/1.1 twohundred\r\n\r\n", "no answer in HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "no size of a chunk"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", "in the middle"),
        (HEAD + b"Content-Length: 5\r\n\r\nabc", "in the middle"),
        (HEAD, "in the middle"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000, "longer than"),
    ],
)
def test_what_is_broken_is_said(answer: bytes, message: str) -> None:
    with pytest.raises(BrokenAnswerError, match=message):
        read(answer, [], ends=True)


def test_connections_are_used_again_and_opened_anew_when_the_server_closed_them() -> None:
    async def ask(pool: Pool) -> None:
        pieces: list[bytes] = []
        assert await pool.post("/v1/completions", b'{"model": "x"}', pieces.append) == 200
        assert b"Hello there!" in b"".join(pieces)

    async def main(server: FakeOpenAI) -> None:
        pool = Pool(server.url, {}, 5)
        for _ in range(3):
            await ask(pool)
        assert server.num_connections == 1
        ((_, writer),) = pool._idle
        writer.transport.abort()
        await ask(pool)
        assert server.num_connections == 2
        pool.close()

    with FakeOpenAI() as server:
        asyncio.run(main(server))
