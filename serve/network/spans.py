"""Traces of requests for OpenTelemetry: a span for the request, and for each completion spans of its parts."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

import coconut_ds
from serve.engine.jobs import Times
from serve.network.stopping import within

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from serve.api.records import Record

FLUSH_S = 2.0
"""Seconds that sending the last traces may take when the server stops."""


class Spans:
    """Turns records of requests into spans."""

    def __init__(self, processor: "SpanProcessor | None" = None) -> None:
        """``processor``: gets the spans; None: sends them to the collector that OpenTelemetry's variables name."""
        if processor is None:
            # Imported here because tests keep the spans in memory.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            processor = BatchSpanProcessor(OTLPSpanExporter())
        resource = Resource.create()
        # Unless one of OpenTelemetry's variables names the service.
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "coconut-ds"}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("serve", coconut_ds.__version__)

    def record(self, record: "Record") -> None:
        """Reports a request that has ended. If the client sent a ``traceparent``, the span belongs to its trace."""
        shift = time.time() - time.perf_counter()
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in record.headers}
        fields = {f"coconut.{name}": value for name, value in record.fields().items() if value is not None}
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            propagate.extract(sent),
            SpanKind.SERVER,
            {"http.request.method": record.method, "url.path": record.path, **fields},
            start_time=_nanoseconds(record.began + shift),
        )
        if record.status is not None:
            span.set_attribute("http.response.status_code", record.status)
        if record.status is None or record.status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        for index, times in enumerate(record.times):
            for name, begins, ends in parts_of(times):
                part = self._tracer.start_span(
                    name, inside, attributes={"index": index}, start_time=_nanoseconds(begins + shift)
                )
                part.end(_nanoseconds(ends + shift))
        span.end(_nanoseconds(record.ended + shift))

    def close(self) -> None:
        """Sends what has not been sent, within ``FLUSH_S`` seconds."""
        within(FLUSH_S, self._provider.shutdown)


def parts_of(times: Times) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of each part of a completion, in seconds of ``time.perf_counter``."""
    begins = times.submitted
    for name, ends in (
        ("queue", times.started),
        ("prefill", times.encoded),
        ("thoughts", times.thought),
        ("text", times.done),
    ):
        # A part that there was not has no time: a completion without thoughts, for example.
        if ends > begins:
            yield name, begins, ends
            begins = ends


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
