"""Traces: a span for every request that computes, sent to an OpenTelemetry collector (the extra `otel`).

A request that brings the header `traceparent` becomes part of its caller's trace.  Names of attributes are those of
OpenTelemetry's conventions for generative models where they have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ConfigError
from vllm.version import __version__

_ATTRIBUTES = {
    "request_id": "gen_ai.request.id",
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.prompt_tokens",
    "completion_tokens": "gen_ai.usage.completion_tokens",
    "n": "gen_ai.request.n",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
}
"""What is known of a call → the attribute of its span."""
_CARRIERS = (b"traceparent", b"tracestate")


class Tracing:
    """Makes spans and sends them, from a thread of its own."""

    def __init__(self, endpoint: str, service: str) -> None:
        """`endpoint`: where a collector takes traces over HTTP, as http://host:4318/v1/traces.  Raises ConfigError."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"otlp_traces_endpoint needs OpenTelemetry ({error.name} is missing); pip install 'vllm[otel]'"
            ) from None
        resource = Resource.create({"service.name": "vllm", "service.version": __version__, "vllm.model": service})
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self.provider.get_tracer("vllm", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        route: str,
        headers: Mapping[bytes, bytes],
        facts: Mapping[str, Any],
        span: tuple[int, int],
        error: str | None,
    ) -> None:
        """Write down a request that has ended.

        `facts` is what its line in the log says, `span` its begin and end in nanoseconds since 1970, `error` what its
        client was told if it ended badly.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name.decode(): headers[name].decode("latin-1") for name in _CARRIERS if name in headers}
        made = self._tracer.start_span(
            f"POST {route}", self._propagator.extract(carrier), SpanKind.SERVER, start_time=span[0]
        )
        made.set_attribute("http.route", route)
        for name, attribute in _ATTRIBUTES.items():
            if facts.get(name) is not None:
                made.set_attribute(attribute, facts[name])
        if error is not None:
            made.set_status(Status(StatusCode.ERROR, error))
        made.end(end_time=span[1])

    def close(self) -> None:
        """Send what has not been sent."""
        self.provider.shutdown()
