"""The blocking client, and the reader of events."""

from __future__ import annotations

import doctest
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vllm.entrypoints.sse
from tests.entrypoints.fake_openai import FakeOpenAI
from vllm.entrypoints.client import Client, ServerError, base_url
from vllm.entrypoints.sse import EventReader
from vllm.errors import ConfigError


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=5), st.data())
def test_events_do_not_depend_on_how_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    stream = "".join(f": comment{end}event: x{end}data: {text}{end}{end}" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    reader = EventReader()
    assert [event.decode() for piece in pieces for event in reader.feed(piece)] == texts


def test_data_of_several_lines_is_one_event() -> None:
    assert EventReader().feed(b"data: a\ndata:b\n\nid: 1\n\n") == [b"a\nb"]


def test_the_example_of_the_reader_is_true() -> None:
    failed, attempted = doctest.testmod(vllm.entrypoints.sse)
    assert attempted and not failed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://a:1/v1", "http://a:1"),
        ("a:1", "http://a:1"),
        ("https://a/x/v1/", "https://a/x"),
        ("http://[::1]:8", "http://[::1]:8"),
    ],
)
def test_addresses_are_taken_with_and_without_their_end(given: str, expected: str) -> None:
    assert base_url(given) == expected


@pytest.mark.parametrize("url", ["", "ftp://a", "http://", "http://a:b", "http://a:0"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a server"):
        base_url(url)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_stream_is_read_to_its_end(chunked: bool) -> None:
    with FakeOpenAI() as server:
        server.chunked = chunked
        client = Client(server.url)
        assert [card["id"] for card in client.models()] == ["first", "second"]
        events = list(client.stream("/v1/completions", {"model": "first", "stream": True}))
    assert [event["choices"][0]["text"] for event in events] == server.words


def test_a_stream_that_breaks_is_an_error() -> None:
    with FakeOpenAI() as server:
        server.broken, server.chunked = True, False
        with pytest.raises(ServerError, match="in the middle of an answer"):
            list(Client(server.url).stream("/v1/completions", {"model": "first", "stream": True}))


def test_an_error_of_the_server_says_what_the_server_said() -> None:
    with FakeOpenAI() as server:
        server.refuse = lambda body: (429, "too many", {"Retry-After": "7"})
        with pytest.raises(ServerError, match="^too many$") as caught:
            Client(server.url).post("/v1/completions", {})
    assert (caught.value.status, caught.value.retry_after) == (429, 7.0)


@pytest.fixture
def babbler() -> Iterator[str]:
    """A server that speaks something else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-nothing\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_what_is_no_server_of_ours_is_one_error(babbler: str) -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        Client(babbler).models()
