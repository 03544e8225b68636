"""The chat page, in a browser as a user has it, against a server that speaks just enough."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import vllm

PAGE = Path(vllm.__file__).parent / "entrypoints" / "serve" / "ui" / "index.html"
MOST_BYTES = 15 * 1024
KEY = "open sesame"
MARKDOWN = (
    "Here is **bold** and `code`, <b>no tag</b>.\n\n```python\nprint('<script>alert(1)</script>')\n```\n\n- one\n- *two*\n\n"
    "[a page](https://example.com) and [a trap](javascript:alert(1))"
)


class FakeServer(ThreadingHTTPServer):
    """Serves the page, one model, and answers that the last message chooses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.key: str | None = None
        self.is_loading = False
        self.aborted = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.refuses():
            pass
        elif self.server.is_loading:
            self.error(503, "the model is still loading; try again")
        else:
            cards = [{"id": "tiny", "max_model_len": 2048}, {"id": "other", "max_model_len": 2048}]
            self.answer(200, json.dumps({"object": "list", "data": cards}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refuses():
            return
        self.server.requests.append(body)
        asked = body["messages"][-1]["content"]
        if asked == "fail":
            return self.error(400, "<i>temperature</i> must be at most 2")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        try:
            for piece in self.pieces(asked):
                self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            if asked == "break":
                return None
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 42, "total_tokens": 45}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.aborted.set()
        return None

    def pieces(self, asked: str) -> Iterator[str]:
        if asked == "for ever":
            while True:
                yield "on and "
                time.sleep(0.01)
        text = MARKDOWN if asked == "markdown" else f"You said: {asked}"
        for piece in re.findall(r"(?s).{1,5}", text):
            yield piece
            time.sleep(0.002)  # so that the page sees more than one

    def refuses(self) -> bool:
        key = self.server.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.error(401, "a key is needed")
        return True

    def error(self, status: int, message: str) -> None:
        body = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
        self.answer(status, json.dumps(body).encode(), "application/json")

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def event(self, body: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser and is not installed")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("there is no Chromium with its chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


class Page:
    """The page as a user sees and touches it."""

    def __init__(self, browser: Any, server: FakeServer) -> None:
        self.browser = browser
        self.server = server
        browser.get(f"http://127.0.0.1:{server.server_port}/")

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def wait(self, ready: Callable[[], Any]) -> Any:
        end = time.monotonic() + 10
        while not (value := ready()):
            assert time.monotonic() < end, self.one("body").text
            time.sleep(0.02)
        return value

    def write(self, text: str, end: str = "\ue007") -> None:  # the Enter key
        self.one("#input").send_keys(text + end)

    def answered(self, text: str) -> Any:
        """Say something; return the answer when it is whole."""
        self.write(text)
        return self.wait(lambda: not self.all(".busy") and self.all("article") and self.all("article")[-1])

    def set(self, element: str, value: str) -> None:
        self.browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input')); arguments[0].dispatchEvent(new Event('change'))",
            self.one(element),
            value,
        )

    def complaints(self) -> list[str]:
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]


@pytest.fixture
def page(browser: Any, server: FakeServer) -> Page:
    browser.get_log("browser")  # what an earlier page has said
    opened = Page(browser, server)
    opened.wait(lambda: "Enter sends" in opened.one("#status").text)
    return opened


def test_the_page_is_small_and_needs_nothing_else() -> None:
    content = PAGE.read_text()
    assert len(content.encode()) <= MOST_BYTES
    assert not re.search(r"""(src|href)=["']?https?:""", content)
    assert "innerHTML" not in content and "insertAdjacentHTML" not in content


def test_only_the_script_of_the_page_may_run() -> None:
    content = PAGE.read_text()
    (script,) = re.findall(r'<script type="module">(.*?)</script>', content, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in content, f"the script has changed: its hash is sha256-{digest}"


def test_an_answer_grows_and_is_measured(page: Page) -> None:
    answer = page.answered("Hello")
    assert answer.text.startswith("You said: Hello")
    assert re.search(r"42 tokens · [\d.]+ tokens/s · first after \d+ ms", page.one("#status").text)
    request = page.server.requests[-1]
    assert request["model"] == "tiny" and request["stream"] is True
    assert "temperature" not in request and "max_tokens" not in request
    assert page.complaints() == []


def test_the_conversation_goes_on(page: Page) -> None:
    page.answered("one")
    page.answered("two")
    roles = [(message["role"], message["content"]) for message in page.server.requests[-1]["messages"]]
    assert roles == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]
    page.one("#restart").click()
    page.answered("three")
    assert [message["content"] for message in page.server.requests[-1]["messages"]] == ["three"]


def test_settings_are_sent_once_they_are_set(page: Page) -> None:
    page.one("#toggle").click()
    page.set("#system", "Be brief.")
    page.set("#temperature", "0.5")
    page.set("#max_tokens", "7")
    page.set("#model", "other")
    page.answered("Hello")
    request = page.server.requests[-1]
    assert (request["temperature"], request["max_tokens"], request["model"]) == (0.5, 7, "other")
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    page.one("#reset").click()
    page.answered("Hello")
    assert "temperature" not in page.server.requests[-1] and "max_tokens" not in page.server.requests[-1]


def test_markdown_is_shown_and_never_run(page: Page) -> None:
    answer = page.answered("markdown")
    inside = {
        tag: [element.text for element in answer.find_elements("css selector", tag)]
        for tag in ("strong", "em", "li", "pre", "a")
    }
    assert inside == {
        "strong": ["bold"],
        "em": ["two"],
        "li": ["one", "two"],
        "pre": ["print('<script>alert(1)</script>')"],
        "a": ["a page"],
    }
    assert "<b>no tag</b>" in answer.text and "[a trap](javascript:alert(1))" in answer.text


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_answer_can_be_stopped(page: Page, how: str) -> None:
    page.write("for ever")
    page.wait(lambda: "on and on" in page.one("#log").text)
    assert page.one("#send").get_attribute("aria-label") == "Stop"
    if how == "button":
        page.one("#send").click()
    else:
        page.one("#input").send_keys("\ue00c")  # Escape
    page.wait(lambda: not page.all(".busy"))
    assert page.server.aborted.wait(5)
    assert "stopped" in page.all("article")[-1].text
    assert page.answered("and now?").text.startswith("You said: and now?")
    assert page.server.requests[-1]["messages"][1]["content"].startswith("on and on")


def test_an_error_is_shown_as_text_and_can_be_tried_again(page: Page) -> None:
    answer = page.answered("fail")
    assert "<i>temperature</i> must be at most 2" in answer.find_element("css selector", "[role=alert]").text
    page.all("article:last-child .last")[0].click()
    page.wait(lambda: len(page.server.requests) == 2 and not page.all(".busy"))
    assert page.server.requests[0]["messages"] == page.server.requests[1]["messages"]
    assert "connection ended" in page.answered("break").text


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any, server: FakeServer) -> None:
    server.key = KEY
    page = Page(browser, server)
    page.wait(lambda: "wants an API key" in page.one("#status").text)
    assert page.one("#key").is_displayed()
    page.set("#key", KEY)
    page.wait(lambda: "Enter sends" in page.one("#status").text)
    assert page.answered("Hello").text.startswith("You said")
    assert browser.execute_script("return [sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_a_model_that_loads_is_waited_for(browser: Any, server: FakeServer) -> None:
    server.is_loading = True
    page = Page(browser, server)
    page.wait(lambda: "loading" in page.one("#status").text)
    server.is_loading = False
    page.wait(lambda: "Enter sends" in page.one("#status").text)


def test_shift_enter_begins_a_line(page: Page) -> None:
    page.write("first", end="\ue008\ue007\ue008")  # Shift+Enter
    page.answered("second")
    assert page.server.requests[-1]["messages"][-1]["content"] == "first\nsecond"


def test_everything_has_a_name_and_fits_a_phone(page: Page) -> None:
    page.answered("markdown")
    page.one("#toggle").click()
    for element in page.all("button, input, select, textarea"):
        assert element.accessible_name, element.get_attribute("outerHTML")
    size = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wide = "return document.documentElement.scrollWidth"
        assert page.browser.execute_script(wide) <= 360
        page.one("#toggle").click()
        assert page.browser.execute_script(wide) <= 360
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
