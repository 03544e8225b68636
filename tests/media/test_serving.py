"""Pictures sent to a server: as data, by address, and what is refused while others are answered."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.entrypoints.serve.serving import Serving, starting
from tests.inputs.media.test_fetch import Answers, as_data, bomb, png, port
from vllm import LLM, SamplingParams
from vllm.errors import RequestError

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}assistant: "
)
PLAIN_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "


@pytest.fixture(scope="module")
def host() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def server(media_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    files = tmp_path_factory.mktemp("files")
    (files / "picture.png").write_bytes(png())
    (files / "template.jinja").write_text(TEMPLATE)
    options = ("--dtype", "float32", "--max-model-len", "512", "--chat-template", str(files / "template.jinja"))
    options += ("--allowed-media-domains", "localhost", "--allowed-local-media-path", str(files))
    options += ("--limit-mm-per-prompt", '{"image": 2}', "--served-model-name", "seer")
    with starting(str(media_checkpoint("llava")), *options) as running:
        running.read_until("ready in")
        running.files = files  # type: ignore[attr-defined]
        yield running


def ask(server: Serving, *urls: str, **options: Any) -> Any:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return server.openai().chat.completions.create(
        model="seer",
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}],
        max_tokens=6,
        temperature=0.0,
        **options,
    )


def test_a_picture_as_data_by_address_and_from_a_file(server: Serving, host: Any) -> None:
    addresses = (as_data(png()), f"http://localhost:{port(host)}/picture", f"file://{server.files}/picture.png")  # type: ignore[attr-defined]
    answers = [ask(server, address) for address in addresses]
    texts = {answer.choices[0].message.content for answer in answers}
    assert len(texts) == 1 and all(answer.usage.prompt_tokens > 16 for answer in answers)
    assert ask(server, as_data(png(color="blue"))).choices[0].message.content not in texts
    two = ask(server, as_data(png()), as_data(png(color="blue")), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in two if chunk.choices)


def test_other_apis_take_pictures_too(server: Serving) -> None:
    expected = ask(server, as_data(png())).choices[0].message.content
    content = [{"type": "input_image", "image_url": as_data(png())}, {"type": "input_text", "text": "What is it?"}]
    body = {
        "model": "seer",
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": 6,
        "temperature": 0.0,
    }
    answer = httpx.post(f"{server.url}/v1/responses", json=body).json()
    assert answer["output"][0]["content"][0]["text"] == expected
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    said = {"model": "seer", "messages": [{"role": "user", "content": blocks}], "max_tokens": 6, "temperature": 0.0}
    assert httpx.post(f"{server.url}/v1/messages", json=said).json()["content"][0]["text"] == expected
    counted = httpx.post(f"{server.url}/v1/messages/count_tokens", json={k: said[k] for k in ("model", "messages")})
    assert counted.json()["input_tokens"] > 16
    tokens = httpx.post(
        f"{server.url}/tokenize",
        json={
            "model": "seer",
            "messages": said["messages"][:0]
            or [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": as_data(png())}}]}],
        },
    ).json()
    assert tokens["count"] > 16


def test_what_must_not_be_fetched_is_refused_while_others_are_answered(server: Serving, host: Any) -> None:
    here = f"127.0.0.1:{port(host)}"
    refused = {
        "file:///etc/passwd": "only below the folder",
        f"http://{here}/picture": "none of the hosts",
        f"http://localhost:{port(host)}/to?http://{here}/picture": "none of the hosts",
        "http://169.254.169.254/latest/meta-data": "none of the hosts",
        as_data(bomb()): "pixels",
        as_data(png(200, 200)[:-40]): "damaged",
        "data:image/png;base64,@": "not base64",
        f"http://localhost:{port(host)}/missing": "answered 404",
    }
    slow = threading.Thread(target=lambda: _ignored(server, f"http://localhost:{port(host)}/slow"))
    slow.start()
    for address, words in refused.items():
        with pytest.raises(openai.BadRequestError) as caught:
            ask(server, address)
        message = caught.value.body["message"]  # type: ignore[index]
        assert words in message and message.startswith("message 0, part 0") and "passwd" not in message
        assert ask(server, as_data(png())).choices
    with pytest.raises(openai.BadRequestError, match="3 image items; at most 2"):
        ask(server, *[as_data(png())] * 3)
    began = time.monotonic()
    large = httpx.post(
        f"{server.url}/v1/chat/completions", content=bytes(200 << 20), headers={"content-type": "application/json"}
    )
    assert large.status_code == 413 and time.monotonic() - began < 10
    slow.join()


def _ignored(server: Serving, address: str) -> None:
    with contextlib.suppress(openai.OpenAIError):
        ask(server, address)


def test_chats_offline(media_checkpoint: Callable[[str], Path]) -> None:
    from PIL import Image

    picture = Image.new("RGB", (6, 4), "red")
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    with LLM(str(media_checkpoint("llava")), dtype="float32", max_model_len=256, kv_cache_memory_bytes=1 << 24) as llm:
        parts = [
            [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": "What is it?"}],
            [{"type": "image_url", "image_url": {"url": as_data(png())}}, {"type": "text", "text": "What is it?"}],
        ]
        chats = [[{"role": "user", "content": content}] for content in parts]
        by_parts = llm.chat(chats, params, use_tqdm=False, chat_template=TEMPLATE)
        assert len({output.outputs[0].text for output in by_parts}) == 1
        (by_text,) = llm.chat(chats[0], params, use_tqdm=False, chat_template=PLAIN_TEMPLATE)
        prompt = {"prompt": "user: <image>\nWhat is it?\nassistant: ", "multi_modal_data": {"image": picture}}
        (plain,) = llm.generate(prompt, params, use_tqdm=False)
        assert by_text.outputs[0].token_ids == plain.outputs[0].token_ids
        ids = llm.get_tokenizer().encode(prompt["prompt"])
        (by_ids,) = llm.generate({**prompt, "prompt_token_ids": ids}, params, use_tqdm=False)
        assert by_ids.prompt_token_ids == plain.prompt_token_ids
        for text, data in (("no place", picture), ("<image> <image>", picture), ("<image>", [picture] * 2)):
            with pytest.raises(RequestError, match="one placeholder for each"):
                llm.generate({"prompt": text, "multi_modal_data": {"image": data}}, params)
        with pytest.raises(RequestError, match="audio media; the model takes image, text"):
            llm.generate({"prompt": "a", "multi_modal_data": {"audio": ([0.0] * 8, 8000)}}, params)
    with LLM("", max_model_len=256) as llm, pytest.raises(RequestError, match="the model takes text only"):
        llm.generate({"prompt": "a", "multi_modal_data": {"image": picture}}, params)
