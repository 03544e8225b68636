"""The description of the endpoints, the pages, and the small endpoints: probes, models, tokens, invocations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.entrypoints.serve.fakes import FOLDER, TEMPLATE, Client, FakeEngine, tokenizer
from vllm.entrypoints.serve import documentation
from vllm.version import __version__


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_the_description_covers_every_route_and_every_type() -> None:
    client = Client()
    document = client.get("/openapi.json").json
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path.replace("...}", "}")) for route in client.server.routes}
    schemas = document["components"]["schemas"]
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    assert set(schemas) >= {"CompletionRequest", "ChatRequest", "Completion", "ChatCompletion", "ErrorReply"}
    assert schemas["CompletionRequest"]["required"] == ["prompt"]
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    for methods in document["paths"].values():
        for operation in methods.values():
            assert {"200", "400", "401", "429", "500", "503"} <= set(operation["responses"])


def test_the_pages_are_there_unless_they_are_switched_off(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "index.html"
    page.write_text("<h1>chat</h1>")
    monkeypatch.setattr(documentation, "CHAT_PAGE", page)
    assert Client().get("/").body == b"<h1>chat</h1>"
    assert Client(disable_ui=True).get("/").status == 404
    docs = Client(disable_ui=True).get("/docs")
    assert docs.headers["content-type"].startswith("text/html") and b"openapi.json" in docs.body


def test_probes_tell_version_and_load() -> None:
    client = Client()
    assert client.get("/version").json == {"version": __version__}
    assert client.get("/load").json == {"server_load": 0}
    assert client.get("/health").body == client.get("/ping").body == client.post("/ping").body == b""


def test_models_are_listed_under_each_name_and_found_by_it() -> None:
    client = Client(served_model_name=["one", "org/two"])
    cards = client.get("/v1/models").json["data"]
    assert [(card["id"], card["root"], card["max_model_len"]) for card in cards] == [
        ("one", "acme/tiny", 512),
        ("org/two", "acme/tiny", 512),
    ]
    assert client.get("/v1/models/org/two").json == cards[1]
    assert client.get("/v1/models/three").status == 404


def test_text_and_tokens_are_turned_into_each_other() -> None:
    client, ids = Client(), tokenizer().encode("The tide")
    tokens = client.post("/tokenize", {"prompt": "The tide", "return_token_strs": True}).json
    assert tokens == {
        "count": len(ids),
        "max_model_len": 512,
        "tokens": ids,
        "token_strs": [tokenizer().token_text(token) for token in ids],
    }
    assert client.post("/detokenize", {"tokens": ids}).json == {"prompt": "The tide"}
    chat = client.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json
    assert chat["tokens"] == tokenizer().encode("<user>Hi<assistant>", False) and chat["token_strs"] is None
    long = client.post("/tokenize", {"prompt": "tide " * 20_000}).json
    assert long["count"] == len(tokenizer().encode("tide " * 20_000))
    for path, body in [
        ("tokenize", {}),
        ("tokenize", {"prompt": "a", "messages": []}),
        ("detokenize", {"tokens": [9**9]}),
    ]:
        assert client.post(f"/{path}", body).error["code"] == 400
    client.engine.tokenizer = None
    assert "without a tokenizer" in client.post("/tokenize", {"prompt": "a"}).error["message"]


def test_the_tokenizer_is_described_only_with_the_flag() -> None:
    assert Client().get("/tokenizer_info").status == 404
    client = Client(enable_tokenizer_info_endpoint=True)
    told = client.get("/tokenizer_info").json
    stored = json.loads((FOLDER / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == stored["tokenizer_class"] and told["vocab_size"] == tokenizer().vocab_size
    assert told["chat_template"] == TEMPLATE and told["eos_token"] == tokenizer().special_tokens["eos_token"]
    assert str(FOLDER) not in json.dumps(told)
    client = Client(FakeEngine(tokenizer=None), enable_tokenizer_info_endpoint=True)
    assert client.get("/tokenizer_info").json["tokenizer_class"] is None
    client.engine.tokenizer = None
    assert client.get("/tokenizer_info").error["code"] == 400


def test_places_of_files_are_no_part_of_it(tmp_path: Any) -> None:
    places = {"name_or_path": "/secret/a", "vocab_file": "/secret/b", "special_tokens_map_file": "/secret/c"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(places | {"model_max_length": 7}))
    client = Client(FakeEngine(tokenizer=str(tmp_path)), enable_tokenizer_info_endpoint=True)
    answer = client.get("/tokenizer_info")
    assert answer.json["model_max_length"] == 7 and b"secret" not in answer.body


def test_invocations_go_by_what_the_body_has() -> None:
    client = Client()
    assert client.post("/invocations", {"prompt": "a"}).json["object"] == "text_completion"
    chat = client.post("/invocations", {"messages": [{"role": "user", "content": "Hi"}], "stream": True})
    assert chat.events[0]["object"] == "chat.completion.chunk"
    assert client.post("/invocations", {"inputs": "a"}).error["param"] == "messages"
    assert client.post("/invocations", b"[]").error["code"] == client.post("/invocations", b"x").error["code"] == 400
