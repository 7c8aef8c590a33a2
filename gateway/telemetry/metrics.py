"""Metrics: Prometheus series of our own and OpenTelemetry's GenAI histograms, on one page.

Times are seconds.  Every label is bounded: closed vocabularies where the house has one, else the first 64
values seen; whatever comes later counts as ``other``, so that no client can fill the memory with series.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from gateway.telemetry import names
from gateway.telemetry.redact import REDACTED, safe_code

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
MAX_LABEL_VALUES: Final = 64
TURN_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
JUDGE_BUCKETS_S: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOKEN_BUCKETS: Final = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536)
VOCABULARIES: Final[dict[str, frozenset[str]]] = {
    "mode": frozenset({"assistant", "therapeutic"}),
    "decision": frozenset({"allow", "guide", "replace", "refuse", "none"}),
    "action": frozenset({"allow", "guide", "replace", "refuse"}),
    "severity": frozenset({"0", "1", "2", "3", "4"}),
    "state": frozenset({"ran", "cached", "unavailable", "skipped"}),
    "route": frozenset({"digest", "queue", "page", "page_two"}),
}


class Labels:
    """Keeps label values codes, and few."""

    def __init__(self, limit: int = MAX_LABEL_VALUES) -> None:
        self._limit = limit
        self._seen: dict[str, set[str]] = {}

    def bound(self, label: str, value: object) -> str:
        """``value`` as it may stand in a series, or ``other``."""
        text = str(value)
        if (vocabulary := VOCABULARIES.get(label)) is not None:
            return text if text in vocabulary else OTHER
        seen = self._seen.setdefault(label, set())
        if text in seen:
            return text
        if len(seen) >= self._limit or not text or safe_code(text) in (REDACTED, "") or len(text) > MAX_LABEL_VALUES:
            return OTHER
        seen.add(text)
        return text


class Metrics:
    """What the gateway counts.  One instance per process, with a registry of its own."""

    def __init__(self, resource: Resource | None = None, readers: tuple[MetricReader, ...] = ()) -> None:
        """``readers`` receive the GenAI histograms beside `render` (an OTLP exporter, say)."""
        self._registry = CollectorRegistry()
        self._labels = Labels()
        ProcessCollector(registry=self._registry)
        self._declare()
        self._provider = MeterProvider(
            metric_readers=(PrometheusMetricReader(registry=self._registry, scope_info_enabled=False), *readers),
            resource=resource or Resource.create({"service.name": names.SERVICE_NAME}),
            shutdown_on_exit=False,
        )
        self._declare_gen_ai()

    def _declare(self) -> None:
        self._turns = self._counter(names.TURNS, "Turns answered, by mode, decision and the stage that decided.")
        self._turn_duration = self._histogram(names.TURN_DURATION, "From request to last byte.", TURN_BUCKETS_S)
        self._first_token = self._histogram(
            names.TIME_TO_FIRST_TOKEN, "From request to the first judged text.", TURN_BUCKETS_S
        )
        self._overhead = self._histogram(names.SAFETY_OVERHEAD, "Time that judging added to a turn.", JUDGE_BUCKETS_S)
        self._detector_duration = self._histogram(
            names.DETECTOR_DURATION, "One verdict of one detector.", JUDGE_BUCKETS_S
        )
        self._detector_results = self._counter(names.DETECTOR_RESULTS, "Verdicts asked for, by how they came back.")
        self._interventions = self._counter(names.INTERVENTIONS, "Answers that the policy gave in place of the model.")
        self._escalations = self._counter(names.ESCALATIONS, "People brought in, by route.")
        self._streams = self._gauge(names.STREAMS_OPEN, "Answers streaming now.")
        self._disconnects = self._counter(names.CLIENT_DISCONNECTS, "Clients that left before the end.")
        self._backend_errors = self._counter(names.BACKEND_ERRORS, "Failures of the language model.")
        self._store_errors = self._counter(names.STORE_ERRORS, "Failures of the database: each wants a person to look.")
        self._event_bus = self._counter(names.EVENT_BUS, "Hints between gateways: connected, lost, dropped, refused.")
        self._policy_info = self._gauge(names.POLICY_INFO, "The policy in force: 1 at its version.")
        self._reload_failures = self._counter(
            names.POLICY_RELOAD_FAILURES, "Policy files refused; the earlier policy stayed in force."
        )
        self._http_errors = self._counter(names.HTTP_ERRORS, "Error responses, by status and code.")

    def _declare_gen_ai(self) -> None:
        meter = self._provider.get_meter(names.SERVICE_NAME)
        self._gen_ai_tokens = meter.create_histogram(
            names.GEN_AI_TOKEN_USAGE,
            unit="{token}",
            description="Tokens of a turn, by type.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )
        self._gen_ai_request = meter.create_histogram(
            names.GEN_AI_SERVER_REQUEST_DURATION,
            unit="s",
            description="Duration of a chat request.",
            explicit_bucket_boundaries_advisory=TURN_BUCKETS_S,
        )
        self._gen_ai_first_token = meter.create_histogram(
            names.GEN_AI_SERVER_FIRST_TOKEN,
            unit="s",
            description="Time to the first token that reached the client.",
            explicit_bucket_boundaries_advisory=TURN_BUCKETS_S,
        )

    # --- what happens in a turn ---

    def turn(self, mode: str, decision: str, stage: str, duration_s: float) -> None:
        """One turn is over; ``stage`` is where its last decision was made."""
        self._turns.labels(
            self._labels.bound("mode", mode),
            self._labels.bound("decision", decision),
            self._labels.bound("stage", stage),
        ).inc()
        self._turn_duration.labels(self._labels.bound("mode", mode)).observe(duration_s)
        self._gen_ai_request.record(duration_s, {names.OPERATION_NAME: "chat"})

    def time_to_first_token(self, duration_s: float) -> None:
        self._first_token.observe(duration_s)
        self._gen_ai_first_token.record(duration_s, {names.OPERATION_NAME: "chat"})

    def safety_overhead(self, stage: str, duration_s: float) -> None:
        self._overhead.labels(self._labels.bound("stage", stage)).observe(duration_s)

    def detector(self, name: str, duration_s: float, state: str) -> None:
        """One detector was asked; only a verdict that ran counts toward its times."""
        detector = self._labels.bound("detector", name)
        self._detector_results.labels(detector, self._labels.bound("state", state)).inc()
        if state in ("ran", "unavailable"):
            self._detector_duration.labels(detector).observe(duration_s)

    def intervention(self, stage: str, severity: int, action: str) -> None:
        self._interventions.labels(
            self._labels.bound("stage", stage),
            self._labels.bound("severity", severity),
            self._labels.bound("action", action),
        ).inc()

    def escalation(self, route: str) -> None:
        self._escalations.labels(self._labels.bound("route", route)).inc()

    def tokens(self, input: int, output: int, model: str) -> None:  # noqa: A002 - OpenTelemetry's words
        """Tokens of one turn as the backend counted them."""
        attributes = {names.OPERATION_NAME: "chat", names.REQUEST_MODEL: self._labels.bound("model", model)}
        self._gen_ai_tokens.record(input, {**attributes, names.TOKEN_TYPE: "input"})
        self._gen_ai_tokens.record(output, {**attributes, names.TOKEN_TYPE: "output"})

    # --- what happens around it ---

    def stream_open(self) -> None:
        self._streams.inc()

    def stream_closed(self) -> None:
        self._streams.dec()

    def client_disconnect(self, phase: str) -> None:
        self._disconnects.labels(self._labels.bound("phase", phase)).inc()

    def backend_error(self, kind: str) -> None:
        self._backend_errors.labels(self._labels.bound("kind", kind)).inc()

    def store_error(self, operation: str, kind: str) -> None:
        self._store_errors.labels(self._labels.bound("operation", operation), self._labels.bound("kind", kind)).inc()

    def http_error(self, status: int, code: str) -> None:
        self._http_errors.labels(self._labels.bound("status", status), self._labels.bound("code", code)).inc()

    def event_bus(self, direction: str, happening: str) -> None:
        self._event_bus.labels(
            self._labels.bound("operation", direction), self._labels.bound("happening", happening)
        ).inc()

    def policy_loaded(self, version: str) -> None:
        """The policy in force changed: exactly one version stands at 1."""
        self._policy_info.clear()
        self._policy_info.labels(safe_code(version)).set(1)

    def policy_reload_failed(self) -> None:
        self._reload_failures.inc()

    # --- the page ---

    def render(self) -> bytes:
        """The Prometheus text page, `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def shutdown(self) -> None:
        self._provider.shutdown()

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, names.METRIC_LABELS[name], registry=self._registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, names.METRIC_LABELS[name], registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets_s: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, names.METRIC_LABELS[name], registry=self._registry, buckets=buckets_s)
