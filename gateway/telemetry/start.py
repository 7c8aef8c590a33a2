"""Starts logs, traces and metrics together, and stops them together."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self, TextIO

from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter
from structlog.typing import FilteringBoundLogger

from gateway.settings import TelemetrySettings
from gateway.telemetry.logging import make_logger, route_libraries
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.names import SERVICE_NAME
from gateway.telemetry.tracing import Tracing

FLUSH_WITHIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Everything an operator sees, held in one object: build it once, hand its parts down."""

    log: FilteringBoundLogger
    tracing: Tracing
    metrics: Metrics
    _undo_routing: Callable[[], None]

    @classmethod
    def start(
        cls, settings: TelemetrySettings, *, stream: TextIO | None = None, exporter: SpanExporter | None = None
    ) -> Self:
        """Start logging to ``stream`` (stderr), and to OTLP when an endpoint is configured.

        ``exporter`` takes the spans in place of OTLP.  The standard library's and structlog's process-wide
        configuration are set here, and nowhere else.
        """
        sink = stream if stream is not None else sys.stderr
        resource = Resource.create({"service.name": SERVICE_NAME, "service.version": _version()})
        readers: tuple[MetricReader, ...] = ()
        if settings.otlp_endpoint is not None:
            exporter, readers = _otlp(settings.otlp_endpoint.rstrip("/"), exporter)
        return cls(
            log=make_logger(settings.log_level, settings.log_format, sink),
            tracing=Tracing.start(resource, exporter),
            metrics=Metrics(resource, readers),
            _undo_routing=route_libraries(settings.log_level, settings.log_format, sink),
        )

    def shutdown(self) -> None:
        """Send what is waiting (at most 3 s), stop exporters, give the standard library its handlers back."""
        self.tracing.flush(FLUSH_WITHIN_S)
        self.tracing.shutdown()
        self.metrics.shutdown()
        self._undo_routing()


def _otlp(base_url: str, exporter: SpanExporter | None) -> tuple[SpanExporter, tuple[MetricReader, ...]]:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    options: dict[str, Any] = {"timeout": FLUSH_WITHIN_S}
    spans = exporter or OTLPSpanExporter(endpoint=f"{base_url}/v1/traces", **options)
    numbers = OTLPMetricExporter(endpoint=f"{base_url}/v1/metrics", **options)
    return spans, (PeriodicExportingMetricReader(numbers),)


def _version() -> str:
    try:
        return importlib.metadata.version(SERVICE_NAME)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
