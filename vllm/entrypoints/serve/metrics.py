"""What the server did, in numbers: GET /metrics for Prometheus, and a line in the log every ten seconds while busy.

Names and labels are those that dashboards of vLLM ask for; where two eras named one thing differently, both are there.
Everything is counted when the engine's news comes, so an idle server counts nothing and sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from vllm.engine.output_processor import Output, PooledOutput
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.http import Reply
from vllm.entrypoints.serve.route import Answer, Route
from vllm.logging import get_logger
from vllm.messages import EngineRequest, EngineStats, Event
from vllm.outputs import PoolingRequestOutput, RequestOutput

logger = get_logger(__name__)

LOG_EVERY = 10.0
ENGINE = "0"
"""The label `engine`: a model has one."""
_LABELS = ("model_name", "engine")

# Seconds.  A token takes from a millisecond to some seconds, a request up to an hour.
_TOKEN_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
    40,
)
_FIRST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_REQUEST_SECONDS = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_COUNTS = (1, 2, 5, 10, 20, 50, 100)

GAUGES: dict[str, str] = {
    "num_requests_running": "Sequences that are computed.",
    "num_requests_waiting": "Sequences that wait to be computed.",
    "kv_cache_usage_perc": "Share of the KV cache that sequences hold; 1 is all of it.",
    "gpu_cache_usage_perc": "The same as kv_cache_usage_perc, whatever the device.",
}
COUNTERS: dict[str, str] = {
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "num_preemptions": "Sequences that gave up their place to others and are computed again.",
    "prompt_tokens": "Prompt tokens of requests that have begun to answer.",
    "prompt_tokens_cached": "Of these, tokens taken from the prefix cache.",
    "generation_tokens": "Tokens generated.",
    "engine_restarts": "Times that the engine process died and was started again.",
}
HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "iteration_tokens_total": ("Tokens computed in a step.", _STEP_TOKENS),
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", _FIRST_SECONDS),
    "inter_token_latency_seconds": ("From one token of a sequence to the next.", _TOKEN_SECONDS),
    "time_per_output_token_seconds": ("The same as inter_token_latency_seconds.", _TOKEN_SECONDS),
    "request_time_per_output_token_seconds": ("A request's mean time per token after the first.", _TOKEN_SECONDS),
    "e2e_request_latency_seconds": ("From a request's arrival to its last token.", _REQUEST_SECONDS),
    "request_queue_time_seconds": ("From a request's arrival to its first step.", _REQUEST_SECONDS),
    "request_prefill_time_seconds": ("From a request's first step to its first token.", _REQUEST_SECONDS),
    "request_decode_time_seconds": ("From a request's first token to its last.", _REQUEST_SECONDS),
    "request_inference_time_seconds": ("From a request's first step to its last token.", _REQUEST_SECONDS),
    "request_prompt_tokens": ("Prompt tokens of a request.", _TOKENS),
    "request_generation_tokens": ("Tokens generated for a request.", _TOKENS),
    "request_max_num_generation_tokens": ("Tokens of a request's longest output.", _TOKENS),
    "request_params_n": ("Outputs asked for.", _COUNTS),
    "request_params_max_tokens": ("Tokens asked for at most.", _TOKENS),
}
_OTHERS = ("request_success", "cache_config_info", "engine_sleep_state")
METRICS = [f"vllm:{name}" for name in (*GAUGES, *COUNTERS, *HISTOGRAMS, *_OTHERS)]
"""Every name; counters get `_total` at the end, histograms `_bucket`, `_sum` and `_count`."""


@dataclass(slots=True)
class _Under:
    """A request under way."""

    num_prompt: int
    arrival: float
    lengths: dict[int, int]
    """Tokens generated, by sequence."""
    last: dict[int, float]
    """When each sequence's newest token came."""


class Metrics:
    """The figures of all models of a server."""

    def __init__(self) -> None:
        disable_created_metrics()  # else every series has a second one that says when it began
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.gauges = {name: Gauge(f"vllm:{name}", text, _LABELS, registry=registry) for name, text in GAUGES.items()}
        self.counters = {
            name: Counter(f"vllm:{name}", text, _LABELS, registry=registry) for name, text in COUNTERS.items()
        }
        self.histograms = {
            name: Histogram(f"vllm:{name}", text, _LABELS, registry=registry, buckets=buckets)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        labels = (*_LABELS, "finished_reason")
        self.ended = Counter("vllm:request_success", "Requests that ended.", labels, registry=registry)
        labels = (*_LABELS, "sleep_state")
        text = "Whether the model is loaded (awake) or was unloaded (discard_all)."
        self.sleep_state = Gauge("vllm:engine_sleep_state", text, labels, registry=registry)
        self.cache_config = Info("vllm:cache_config", "The KV cache.", _LABELS, registry=registry)

    def page(self, accept: str) -> Reply:
        """Return all figures in the format that is asked for."""
        encode, content_type = choose_encoder(accept)
        return Reply(encode(self.registry), content_type=content_type.encode())


class ModelMetrics:
    """Counts what one model's engine does."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        labels = (model_name, ENGINE)
        self._gauges = {name: made.labels(*labels) for name, made in metrics.gauges.items()}
        self._counters = {name: made.labels(*labels) for name, made in metrics.counters.items()}
        self._histograms = {name: made.labels(*labels) for name, made in metrics.histograms.items()}
        reasons = ("stop", "length", "abort", "error")
        self._ended = {reason: metrics.ended.labels(*labels, reason) for reason in reasons}
        self._sleep_state = {state: metrics.sleep_state.labels(*labels, state) for state in ("awake", "discard_all")}
        self._cache_config = metrics.cache_config.labels(*labels)
        self._under: dict[str, _Under] = {}
        self._stats = EngineStats()
        self._log = _BusyLog(model_name)

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Tell how the engine's cache is made."""
        self._cache_config.info({name: str(value) for name, value in facts.items()})

    def loaded(self, is_loaded: bool) -> None:
        """The model was loaded, or unloaded."""
        self._sleep_state["awake"].set(is_loaded)
        self._sleep_state["discard_all"].set(not is_loaded)
        self._take_stats(EngineStats(), stepped=False)  # an engine that was started again begins at 0

    def added(self, request: EngineRequest) -> None:
        """A request was handed to the engine."""
        params = request.params
        self._under[request.id] = _Under(len(request.token_ids), request.arrival, {}, {})
        self._histograms["request_prompt_tokens"].observe(len(request.token_ids))
        self._histograms["request_params_n"].observe(params.n)
        if params.max_tokens is not None:
            self._histograms["request_params_max_tokens"].observe(params.max_tokens)

    def stepped(self, events: Sequence[Event], outputs: Sequence[Output], stats: EngineStats) -> None:
        """A step brought news."""
        now = time.monotonic()
        num_tokens = self._take_events(events, now)
        num_prompt = self._take_stats(stats, stepped=bool(events))
        for output in outputs:
            if isinstance(output, PoolingRequestOutput):
                self._finish_pooled(output, now)
            elif output.finished:
                self._finish(output)
        self._log.add(now, num_prompt, num_tokens, stats)

    def ended(self, request_id: str, reason: str) -> None:
        """A request ended early."""
        if self._under.pop(request_id, None) is not None:
            self._ended[reason].inc()

    def restarted(self) -> None:
        """The engine died."""
        self._counters["engine_restarts"].inc()
        self._take_stats(EngineStats(), stepped=False)

    def _take_events(self, events: Sequence[Event], now: float) -> int:
        count, observe = 0, self._histograms["inter_token_latency_seconds"].observe
        observe_era = self._histograms["time_per_output_token_seconds"].observe
        for event in events:
            under = self._under.get(event.request_id)
            new = len(event.token_ids)
            if under is None or not new:
                continue
            if not under.lengths:
                self._counters["prompt_tokens"].inc(under.num_prompt)
                self._counters["prompt_tokens_cached"].inc(event.num_cached)
            count += new
            under.lengths[event.index] = under.lengths.get(event.index, 0) + new
            if (last := under.last.get(event.index)) is not None:
                observe((now - last) / new)
                observe_era((now - last) / new)
            under.last[event.index] = now
        if count:
            self._counters["generation_tokens"].inc(count)
        return count

    def _take_stats(self, stats: EngineStats, stepped: bool) -> int:
        """Book the engine's own counts; return the prompt tokens that the step computed."""
        before, self._stats = self._stats, stats
        gauges, counters = self._gauges, self._counters
        gauges["num_requests_running"].set(stats.num_running)
        gauges["num_requests_waiting"].set(stats.num_waiting)
        gauges["kv_cache_usage_perc"].set(stats.cache_usage)
        gauges["gpu_cache_usage_perc"].set(stats.cache_usage)
        for name, new, old in (
            ("num_preemptions", stats.num_preemptions, before.num_preemptions),
            ("prefix_cache_queries", stats.prefix_queries, before.prefix_queries),
            ("prefix_cache_hits", stats.prefix_hits, before.prefix_hits),
        ):
            if new > old:  # an engine that was started again begins at 0
                counters[name].inc(new - old)
        if stepped:
            self._histograms["iteration_tokens_total"].observe(stats.num_step_tokens)
        return stats.num_step_tokens if stepped else 0

    def _finish_pooled(self, output: PooledOutput, now: float) -> None:
        if under := self._under.pop(output.request_id, None):
            self._counters["prompt_tokens"].inc(under.num_prompt)
            self._counters["prompt_tokens_cached"].inc(output.num_cached_tokens)
            self._histograms["e2e_request_latency_seconds"].observe(now - under.arrival)
            self._ended["error" if output.error else "stop"].inc()

    def _finish(self, output: RequestOutput) -> None:
        """A request has its last token."""
        under = self._under.pop(output.request_id, None)
        times = output.metrics
        if under is None or times is None:
            return
        for completion in output.outputs:
            self._ended[completion.finish_reason if completion.finish_reason in self._ended else "stop"].inc()
        histograms, num_tokens = self._histograms, sum(under.lengths.values())
        histograms["request_generation_tokens"].observe(num_tokens)
        histograms["request_max_num_generation_tokens"].observe(max(under.lengths.values(), default=0))
        scheduled, first, last = times.first_scheduled_time, times.first_token_time, times.finished_time
        if scheduled is None or first is None or last is None:
            return
        histograms["time_to_first_token_seconds"].observe(first - times.arrival_time)
        histograms["e2e_request_latency_seconds"].observe(last - times.arrival_time)
        histograms["request_queue_time_seconds"].observe(max(0.0, scheduled - times.arrival_time))
        histograms["request_prefill_time_seconds"].observe(max(0.0, first - scheduled))
        histograms["request_decode_time_seconds"].observe(last - first)
        histograms["request_inference_time_seconds"].observe(max(0.0, last - scheduled))
        longest = max(under.lengths.values(), default=0)
        if longest > 1:
            histograms["request_time_per_output_token_seconds"].observe((last - first) / (longest - 1))


class _BusyLog:
    """Writes a line every ten seconds in which something happened."""

    def __init__(self, model_name: str) -> None:
        self._name = model_name
        self._began: float | None = None
        self._num_step = self._num_new = 0
        self._hits = self._queries = 0

    def add(self, now: float, num_step_tokens: int, num_new: int, stats: EngineStats) -> None:
        if self._began is None or now - self._began > 2 * LOG_EVERY:  # it was idle
            self._began, self._num_step, self._num_new = now, 0, 0
            self._hits, self._queries = stats.prefix_hits, stats.prefix_queries
        self._num_step += num_step_tokens
        self._num_new += num_new
        seconds = now - self._began
        if seconds < LOG_EVERY:
            return
        queries, hits = stats.prefix_queries - self._queries, stats.prefix_hits - self._hits
        logger.info(
            "%s: %d running, %d waiting; %.0f prompt and %.0f output tokens/s; cache %.0f %% in use, %s prefix hits",
            self._name,
            stats.num_running,
            stats.num_waiting,
            max(0, self._num_step - self._num_new) / seconds,
            self._num_new / seconds,
            100 * stats.cache_usage,
            f"{100 * hits / queries:.0f} %" if queries > 0 else "no",
        )
        self._began, self._num_step, self._num_new = now, 0, 0
        self._hits, self._queries = stats.prefix_hits, stats.prefix_queries


async def metrics(call: Call) -> Answer:
    """Answer with all figures."""
    return call.server.metrics.page(call.header(b"accept") or "")


ROUTES = [Route("GET", "/metrics", metrics, "Figures for Prometheus.", needs_model=False)]
