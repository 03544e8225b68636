"""Several models behind one server, and models that are unloaded while nobody asks for them."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.checkpoints import save_checkpoint
from tests.entrypoints.pooled import EMBEDS, RERANKS
from tests.entrypoints.serve.fakes import Answer, Client, FakeEngine, FakeLoaded
from tests.entrypoints.serve.serving import starting
from vllm.entrypoints.serve.lineup import Options, line_up
from vllm.entrypoints.serve.server import load
from vllm.errors import ConfigError, ModelError
from vllm.messages import EngineRequest
from vllm.outputs import PoolingRequestOutput, RequestOutput

CHAT: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
EMBED: Any = {"input": "the tide", "model": "embedder"}
RANK: Any = {"query": "q", "documents": ["a", "b"], "model": "reranker"}


def three(**settings: Any) -> Client:
    others = {"embedder": FakeEngine(pooling=EMBEDS, max_model_len=32), "reranker": FakeEngine(pooling=RERANKS)}
    return Client(others=others, **settings)


# ── which model a request is for ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v1/embeddings", EMBED), ("/rerank", RANK), ("/v2/rerank", RANK)],
)
def test_each_model_answers_under_its_own_name(path: str, body: Any) -> None:
    client = three()
    answer = client.post(path, body)
    assert answer.status == 200 and answer.json["model"] == body.get("model", "acme/tiny")
    asked = [model.names[0] for model in client.server.models if model.engine.seen]  # type: ignore[union-attr]
    assert asked == [answer.json["model"]]


def test_a_request_without_a_name_is_for_the_first_model() -> None:
    assert three().post("/v1/chat/completions", CHAT).json["model"] == "acme/tiny"
    refused = three().post("/v1/embeddings", {"input": "x"})
    assert refused.status == 404 and "acme/tiny is a generative model" in refused.error["message"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    answer = three().post("/v1/embeddings", EMBED | {"model": "embeder"})
    assert answer.status == 404 and answer.error["param"] == "model"
    assert "'embeder' does not exist; this server has acme/tiny, embedder, reranker" in answer.error["message"]


def test_a_model_refuses_what_another_is_for() -> None:
    answer = three().post("/v1/chat/completions", CHAT | {"model": "embedder"})
    assert answer.status == 404 and "embedder is a pooling model" in answer.error["message"]
    assert (
        three().post("/v1/chat/completions/batch", {"messages": [CHAT["messages"]], "model": "embedder"}).status == 404
    )


def test_all_models_are_listed_and_each_is_described() -> None:
    client = three()
    assert [card["id"] for card in client.get("/v1/models").json["data"]] == ["acme/tiny", "embedder", "reranker"]
    assert client.get("/v1/models/embedder").json["max_model_len"] == 32
    assert client.get("/v1/models/other").status == 404


def test_text_is_tokenized_by_the_model_that_is_named() -> None:
    client = three(enable_tokenizer_info_endpoint=True)
    body = {"prompt": "the tide"}
    assert client.post("/tokenize", body).json["max_model_len"] == 512
    assert client.post("/tokenize", body | {"model": "embedder"}).json["max_model_len"] == 32
    client.server.models[1].engine.tokenizer = None  # type: ignore[union-attr]
    assert client.get("/tokenizer_info").status == 200
    assert client.get("/tokenizer_info?model=embedder").status == 400


def test_one_model_that_is_not_well_is_named_and_the_others_go_on() -> None:
    client = three()
    client.server.models[1].engine.state = "dead"  # type: ignore[union-attr]
    answer = client.get("/health")
    assert answer.status == 503 and answer.error["message"] == "dead"
    assert client.get("/health?model=reranker").status == 200
    assert client.get("/ping").error["message"] == "embedder: dead"
    assert client.get("/ping?model=embedder").error["message"] == "dead"
    assert client.post("/v1/embeddings", EMBED).status == 503
    assert client.post("/v1/chat/completions", CHAT).status == client.post("/rerank", RANK).status == 200
    assert len(client.get("/v1/models").json["data"]) == 3


def test_without_a_key_health_tells_no_names() -> None:
    client = three()
    client.server.models[1].engine.state = "dead"  # type: ignore[union-attr]
    told = (client.get("/health").body + client.get("/health?model=guess").body).decode()
    assert client.get("/health?model=guess").status == client.get("/ping?model=guess").status == 404
    assert not any(name in told for model in client.server.models for name in model.names)


def test_a_models_queue_is_its_own() -> None:
    async def scene() -> None:
        client = three(max_num_seqs=1, max_num_queued_reqs=0)
        client.engine.pause = 0.05
        first = asyncio.create_task(client.request("POST", "/v1/chat/completions", CHAT))
        await asyncio.sleep(0.02)
        assert (await client.request("GET", "/load")).json == {"server_load": 1}
        assert (await client.request("GET", "/load?model=embedder")).json == {"server_load": 0}
        assert (await client.request("POST", "/v1/chat/completions", CHAT)).status == 429
        assert (await client.request("POST", "/v1/embeddings", EMBED)).status == 200
        assert (await first).status == 200

    asyncio.run(scene())


# ── loading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_are_loaded_one_after_another_and_share_the_memory_that_was_free_at_first() -> None:
    order: list[str] = []

    class Engine(FakeEngine):
        async def start(self) -> None:
            order.append(f"{self.model_config.model} {self.free_bytes}")
            await asyncio.sleep(0)
            order.append(self.model_config.model)

    client = three()
    asyncio.run(load(client.server, lambda args: Engine(model=args.model)))
    assert order == ["acme/tiny None", "acme/tiny", "embedder 1000", "embedder", "reranker 1000", "reranker"]
    assert client.engine.free_bytes is None
    assert all(model.engine.free_bytes == 1000 for model in client.server.models)  # type: ignore[union-attr]
    page = client.get("/metrics").body.decode()
    for name in ("acme/tiny", "embedder", "reranker"):
        assert f'vllm:num_requests_running{{engine="0",model_name="{name}"}} 0.0' in page
        assert 'vllm:cache_config_info{block_size="16",' in page and f'model_name="{name}",num_gpu_blocks="10"' in page


def test_the_only_model_measures_free_memory_each_time() -> None:
    client = Client()
    asyncio.run(load(client.server, lambda args: FakeEngine()))
    assert client.model.engine is not None and client.model.engine.free_bytes is None


def test_a_model_that_cannot_be_loaded_is_named_where_there_are_others() -> None:
    def make(args: Any) -> FakeEngine:
        if args.model == "embedder":
            raise ModelError("no weights")
        return FakeEngine()

    with pytest.raises(ModelError, match="^embedder: no weights$"):
        asyncio.run(load(three().server, make))


def test_models_that_together_plan_more_than_was_free_are_refused() -> None:
    def make(args: Any) -> FakeEngine:
        engine = FakeEngine(model=args.model)
        engine.ready = FakeLoaded(num_bytes=9 * 2**29, free_bytes=2**33)
        return engine

    with pytest.raises(ConfigError, match=r"^embedder: .* 9.0 GiB .* 8.0 GiB were free; lower kv_"):
        asyncio.run(load(three().server, make))
    asyncio.run(load(Client().server, make))


def test_no_model_is_unloaded_while_others_are_loading() -> None:
    class Engine(FakeEngine):
        stopped = False

        async def start(self) -> None:
            await asyncio.sleep(0.1 if self.model_config.model == "reranker" else 0.0)

        async def stop(self, timeout: float) -> None:
            self.stopped = True

    async def scene() -> None:
        client = three(unload_after=0.02)
        await load(client.server, lambda args: Engine(model=args.model))
        engines: Any = [model.engine for model in client.server.models]
        assert not any(engine.stopped for engine in engines)
        await until(lambda: all(engine.stopped for engine in engines))

    asyncio.run(scene())


# ── names and shares ────────────────────────────────────────────────────────────────────────────────────────────────


def lined_up(*models: Any, engine: Any = None, **server: Any) -> list[tuple[tuple[str, ...], float | None]]:
    entries = [Options({"model": one}, {}) if isinstance(one, str) else Options(*one) for one in models]
    made = line_up(Options({"device": "cpu", **(engine or {})}, server), entries)
    return [(one.names, one.engine.gpu_memory_utilization) for one in made]


def test_one_model_is_as_if_there_could_be_no_others() -> None:
    assert lined_up("a", served_model_name=["x", "y"]) == [(("x", "y"), None)]
    assert lined_up(({}, {})) == [(("default",), None)]


def test_several_models_take_no_more_memory_than_one() -> None:
    own = ({"model": "b", "gpu_memory_utilization": 0.3}, {"served_model_name": "x"})
    assert lined_up("a", "b") == [(("a",), 0.25), (("b",), 0.25)]
    assert lined_up("a", own, "c") == [(("a",), pytest.approx(0.1)), (("x",), 0.3), (("c",), pytest.approx(0.1))]
    assert lined_up("a", "b", engine={"gpu_memory_utilization": 0.8}) == [(("a",), 0.4), (("b",), 0.4)]


@pytest.mark.parametrize(
    ("models", "server", "message"),
    [
        (["a", "a"], {}, "two models are called 'a'"),
        (["a", ({"model": "b"}, {"served_model_name": ["c", "a"]})], {}, "two models are called 'a'"),
        (["a", "b"], {"served_model_name": ["x"]}, "is for one model, and 2 are served; give each its own"),
        (["a", ({"model": "b", "gpu_memory_utilization": 0.5}, {})], {}, "adds up to 0.5, which leaves nothing for a"),
        ([({"model": name, "gpu_memory_utilization": 0.6}, {}) for name in "ab"], {}, "adds up to 1.2"),
    ],
)
def test_models_that_do_not_go_together_are_refused(models: Any, server: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lined_up(*models, **server)


# ── unloading ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Sleeper(FakeEngine):
    """An engine that counts its starts and stops, which take their time, and that cannot compute in between."""

    def __init__(self, **model: Any) -> None:
        super().__init__(**model)
        self.log: list[str] = []
        self.seconds = 0.01
        self.broken: str | None = None

    async def start(self) -> None:
        assert self.state != "ready"
        self.state = "loading"
        self.log.append("start")
        await asyncio.sleep(self.seconds)
        if self.broken is not None:
            self.state = "stopping"
            raise ModelError(self.broken)
        self.state = "ready"

    async def stop(self, timeout: float) -> None:
        assert len(self.seen) == len(self.finished) + len(self.aborted), "it was stopped under a request"
        self.state = "stopping"
        self.log.append("stop")
        await asyncio.sleep(self.seconds)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[list[RequestOutput], None]:
        assert self.state == "ready", "a request came to an engine that is not there"
        async for outputs in super().stream(request):
            assert self.state == "ready", "the engine was stopped under a request"
            yield outputs

    async def encode(self, request: EngineRequest) -> PoolingRequestOutput[Any]:
        assert self.state == "ready"
        return await super().encode(request)


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 20))  # type: ignore[arg-type]

    return run


@asynccontextmanager
async def watched(unload_after: float, **settings: Any) -> AsyncIterator[tuple[Client, Sleeper]]:
    engine = Sleeper()
    engine.state = "loading"
    client = Client(unload_after=unload_after, **settings)
    await load(client.server, lambda _: engine)
    try:
        yield client, engine
    finally:
        await client.model.stop(0.0)


async def chat(client: Client, **options: Any) -> Answer:
    return await client.request("POST", "/v1/chat/completions", CHAT, **options)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.002)


def figure(client: Client, state: str) -> str:
    line = f'vllm:engine_sleep_state{{engine="0",model_name="acme/tiny",sleep_state="{state}"}} '
    page = client.server.metrics.page("").body.decode()
    return page.split(line)[1].split("\n")[0]


@in_loop
async def test_an_idle_model_is_unloaded_and_the_next_request_waits_for_it() -> None:
    async with watched(0.03) as (client, engine):
        assert figure(client, "awake") == "1.0"
        await until(lambda: engine.log == ["start", "stop"])
        assert (figure(client, "awake"), figure(client, "discard_all")) == ("0.0", "1.0")
        assert (await client.request("GET", "/health")).status == 200
        assert [card["id"] for card in (await client.request("GET", "/v1/models")).json["data"]] == ["acme/tiny"]
        assert (await client.request("POST", "/tokenize", {"prompt": "a"})).status == 200
        assert engine.log == ["start", "stop"], "what needs no engine starts none"
        assert (await chat(client)).status == 200
        assert engine.log == ["start", "stop", "start"] and figure(client, "awake") == "1.0"
        await until(lambda: engine.log[3:] == ["stop"])


@in_loop
async def test_first_requests_at_once_start_the_engine_once() -> None:
    async with watched(0.02) as (client, engine):
        await until(lambda: client.model.is_unloaded)
        engine.seconds = 0.05
        answers = await asyncio.gather(*(chat(client) for _ in range(16)))
        assert [answer.status for answer in answers] == [200] * 16
        assert engine.log.count("start") == 2


@in_loop
async def test_a_model_with_a_request_is_not_unloaded() -> None:
    async with watched(0.03) as (client, engine):
        engine.pause = 0.05
        assert (await chat(client)).status == 200  # the engine would say if it were stopped
        assert engine.log[-1] == "start"


@in_loop
async def test_the_time_runs_from_the_end_of_the_last_request() -> None:
    async with watched(0.4) as (client, engine):
        for _ in range(5):
            await asyncio.sleep(0.1)
            assert (await chat(client)).status == 200
        assert engine.log == ["start"]


@in_loop
async def test_requests_that_come_while_it_is_unloaded_never_meet_a_stopped_engine() -> None:
    async with watched(0.01) as (client, engine):
        engine.seconds = 0.005

        async def one(number: int) -> int:
            await asyncio.sleep(0.0013 * number)
            return (await chat(client)).status

        for _ in range(4):
            assert set(await asyncio.gather(*(one(number) for number in range(0, 60, 7)))) == {200}
            await asyncio.sleep(0.02)
        assert engine.log.count("stop") >= 3
        assert engine.log == [("start", "stop")[number % 2] for number in range(len(engine.log))]


@in_loop
async def test_a_model_that_cannot_be_loaded_again_says_why_and_is_tried_again() -> None:
    async with watched(0.02) as (client, engine):
        await until(lambda: engine.log == ["start", "stop"])
        engine.broken = "the weights are gone"
        answers = await asyncio.gather(chat(client), chat(client))
        for answer in answers:
            assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
            assert "acme/tiny was unloaded and can't be loaded again: the weights are gone" in answer.error["message"]
        assert engine.log == ["start", "stop", "start"]
        assert (await client.request("GET", "/health")).error["message"] == "the model can't be loaded again"
        engine.broken = None
        assert (await chat(client)).status == 200
        assert (await client.request("GET", "/health")).status == 200


@pytest.mark.parametrize("begun", ["stop", "start"])
@in_loop
async def test_a_server_that_ends_meanwhile_has_nothing_started_after_its_end(begun: str) -> None:
    async with watched(0.02) as (client, engine):
        if begun == "start":
            await until(lambda: engine.log == ["start", "stop"])
        engine.seconds = 0.1
        await until(lambda: client.model.is_unloaded)
        waiting = asyncio.create_task(chat(client))
        await until(lambda: engine.log[-1] == begun)
        await asyncio.sleep(0.01)
        client.app.interrupt()
        assert (await waiting).status == 503
        await client.model.stop(0.0)
        count = len(engine.log)
        await asyncio.sleep(0.15)
        assert engine.log[count:] == [] and engine.log[-1] == "stop" and engine.state == "stopping"


@in_loop
async def test_a_client_that_leaves_takes_nobody_elses_model_away() -> None:
    async with watched(0.02) as (client, engine):
        await until(lambda: engine.log == ["start", "stop"])
        engine.seconds = 0.1
        leaving = asyncio.create_task(chat(client, gone_after=0.03))
        staying = asyncio.create_task(chat(client))
        assert (await leaving).status == 0
        assert (await staying).status == 200 and engine.log.count("start") == 2
        assert client.server.num_running == 0


@in_loop
async def test_a_response_in_the_background_keeps_its_model() -> None:
    async with watched(0.1) as (client, engine):
        engine.pause = 0.05
        body = {"input": "a", "background": True, "max_output_tokens": 16}
        response = (await client.request("POST", "/v1/responses", body)).json
        await until(lambda: len(engine.finished) == 1)
        await asyncio.sleep(0)
        done = await client.request("GET", f"/v1/responses/{response['id']}")
        assert done.json["status"] in ("completed", "incomplete") and engine.log[-1] == "start"


# ── the whole of it ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: dict[str, Path]) -> tuple[Path, Path]:
    """A tiny embedder and a tiny reranker."""
    folder, tokenizer = tmp_path_factory.mktemp("several"), tokenizer_folders["wordpiece"]
    sizes: Any = {"num_key_value_heads": None, "type_vocab_size": 2, "max_position_embeddings": 64}
    embedder = save_checkpoint(folder / "embedder", tokenizer, "bert", head="", **sizes)
    reranker = save_checkpoint(
        folder / "reranker", tokenizer, "bert", head="ForSequenceClassification", num_labels=1, **sizes
    )
    return embedder, reranker


def test_one_process_serves_three_models_of_three_tasks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    embedder, reranker = folders
    file = tmp_path / "server.yaml"
    models = ["", {"model": str(embedder), "served-model-name": "embedder", "unload-after": 1.0, "dtype": "float32"}]
    models.append({"model": str(reranker), "served-model-name": ["reranker", "judge"], "task": "score"})
    file.write_text(json.dumps({"model": models, "max-num-seqs": 8}))
    with starting("--config", str(file)) as running:
        running.read_until("ready in")
        client = running.openai()
        assert [card.id for card in client.models.list()] == ["default", "embedder", "reranker", "judge"]

        def answers() -> tuple[Any, ...]:
            reply = client.chat.completions.create(model="default", temperature=0, **CHAT)
            vector = client.embeddings.create(**EMBED).data[0].embedding
            ranking = httpx.post(f"{running.url}/rerank", json=RANK | {"model": "judge"}, timeout=60).json()
            assert reply.model == "default" and ranking["model"] == "judge"
            return reply.choices[0].message.content, vector, ranking["results"]

        before = answers()
        assert before[0] and len(before[1]) == 48 and len(before[2]) == 2
        end = time.monotonic() + 10
        while len(engines := psutil.Process(running.process.pid).children()) == 3:
            assert time.monotonic() < end, "the embedder was not unloaded"
            time.sleep(0.02)
        generating, _ = sorted(engines, key=psutil.Process.create_time)
        assert httpx.get(f"{running.url}/health").status_code == 200
        generating.kill()
        assert client.embeddings.create(**EMBED).data[0].embedding == before[1], "unharmed, and loaded again"
        assert httpx.post(f"{running.url}/rerank", json=RANK).json()["results"] == before[2]
        running.wait()
        assert answers() == before
