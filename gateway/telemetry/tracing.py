"""Traces: OpenTelemetry spans with allowed attributes only, exported over OTLP when an endpoint is configured.

A span here is never made *current*: an answer streams through an async generator that several tasks may
drive, and OpenTelemetry's context tokens cannot cross tasks.  Parents are passed instead.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from gateway.telemetry.names import ERROR_TYPE, SERVICE_NAME, SPAN_ATTRIBUTES
from gateway.telemetry.redact import REDACTED, error_shape, safe_code, safe_fields


class OpenSpan:
    """A started span.  As a context manager it ends itself and records an exception by type alone."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def set(self, attributes: dict[str, Any]) -> None:
        """Add attributes; names outside `names.SPAN_ATTRIBUTES` and unset values are dropped."""
        if not self._span.is_recording():
            return
        for name, value in safe_fields(attributes, SPAN_ATTRIBUTES).items():
            if value is not None:
                self._span.set_attribute(name, value)

    def fail(self, error_type: str) -> None:
        """Mark the span as failed, with a low-cardinality reason."""
        self._span.set_attribute(ERROR_TYPE, safe_code(error_type))
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        self._span.end()

    @property
    def context(self) -> Context:
        return set_span_in_context(self._span, Context())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.fail(error_shape(error)["error_type"])
        self.end()


class Tracing:
    """The tracer of one process, and its exporter."""

    def __init__(self, provider: TracerProvider, tracer: Tracer) -> None:
        self._provider = provider
        self._tracer = tracer

    @classmethod
    def start(cls, resource: Resource, exporter: SpanExporter | None) -> Tracing:
        """Without an exporter no span is recorded, so that tracing costs next to nothing."""
        provider = TracerProvider(
            resource=resource, sampler=ALWAYS_ON if exporter else ALWAYS_OFF, shutdown_on_exit=False
        )
        if exporter is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider, provider.get_tracer(SERVICE_NAME))

    def span(
        self,
        name: str,
        attributes: dict[str, Any] | None = None,
        *,
        parent: OpenSpan | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> OpenSpan:
        """Start a span under ``parent``, or a new trace."""
        context = parent.context if parent is not None else Context()
        safe_name = " ".join(safe_code(part) for part in name.split(" ", 1)) or REDACTED
        opened = OpenSpan(self._tracer.start_span(safe_name, context=context, kind=kind))
        opened.set(attributes or {})
        return opened

    def flush(self, timeout_s: float) -> None:
        self._provider.force_flush(int(timeout_s * 1000))

    def shutdown(self) -> None:
        self._provider.shutdown()
