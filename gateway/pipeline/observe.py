"""What operators see of a turn: one wide log line, spans, metrics.  Numbers and names; never a word of a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentelemetry.trace import SpanKind

from backends.api import BackendInfo
from detectors.fusion import DetectorState
from gateway.pipeline.state import Decision, Outcome, Turn
from gateway.telemetry import names
from gateway.telemetry.start import Telemetry
from gateway.telemetry.tracing import OpenSpan

MS: Final = 1_000.0


class Observer:
    """Telemetry in the pipeline's words."""

    def __init__(self, telemetry: Telemetry, backend: BackendInfo) -> None:
        self._telemetry = telemetry
        self._backend = backend

    def turn(self, turn: Turn, monotonic_s: float) -> TurnView:
        """Begin to watch a turn."""
        return TurnView(self._telemetry, self._backend, turn, monotonic_s)

    def escalated(self, decision: Decision) -> None:
        """People are being brought in, and that is on record."""
        if decision.escalation is not None:
            self._telemetry.metrics.escalation(decision.escalation.route)

    def store_failed(self, operation: str, kind: str) -> None:
        """Something that had to be written or read was not."""
        self._telemetry.metrics.store_error(operation, kind)
        self._telemetry.log.error("store_failed", operation=operation, error_kind=kind)

    def turn_broke(self, error: Exception) -> None:
        """A fault of ours in the middle of a turn; the person got care all the same."""
        self._telemetry.metrics.http_error(200, "turn_broke")
        self._telemetry.log.error("turn_broke", exc_info=error)

    def owed(self, count: int) -> None:
        """Findings that wait on disk for the store."""
        self._telemetry.log.error("findings_owed", count=count)

    def backend_failed(self, kind: str) -> None:
        self._telemetry.metrics.backend_error(kind)
        self._telemetry.log.warning("backend_failed", backend=self._backend.kind, error_kind=kind)

    def answer_begun(self) -> None:
        self._telemetry.metrics.stream_open()

    def answer_ended(self) -> None:
        self._telemetry.metrics.stream_closed()

    def policy_reloaded(self, version: str, error: str | None) -> None:
        """A policy file changed on disk; with an ``error`` the earlier policy stayed in force."""
        if error is None:
            self._telemetry.metrics.policy_loaded(version)
            self._telemetry.log.info("policy_loaded", policy_version=version)
        else:
            self._telemetry.metrics.policy_reload_failed()
            self._telemetry.log.error("policy_refused", policy_version=version)

    def render_metrics(self) -> bytes:
        """The page for Prometheus, of type `CONTENT_TYPE`."""
        return self._telemetry.metrics.render()


def detector_observer(telemetry: Telemetry) -> Callable[[str, float, DetectorState], None]:
    """What the panel tells of each verdict: detector, seconds, state."""

    def observe(name: str, duration_s: float, state: DetectorState) -> None:
        telemetry.metrics.detector(name, duration_s, state)
        if state == "unavailable":
            telemetry.log.error("detector_unavailable", name=name, duration_ms=round(duration_s * MS, 1))

    return observe


def bus_observer(telemetry: Telemetry) -> Callable[[str, str], None]:
    """What the event bus tells: direction and happening.  Hints only, so nothing here is worth waking a person."""

    def observe(direction: str, happening: str) -> None:
        telemetry.metrics.event_bus(direction, happening)
        if happening == "connected":
            telemetry.log.info("events_connected", operation=direction)
        elif happening == "lost":
            telemetry.log.warning("events_lost", operation=direction)

    return observe


class TurnView:
    """One turn as operators see it.  Times are monotonic seconds, given by the caller."""

    def __init__(self, telemetry: Telemetry, backend: BackendInfo, turn: Turn, started_s: float) -> None:
        self._telemetry = telemetry
        self._backend = backend
        self._turn = turn
        self._started_s = started_s
        self._decided_s = started_s
        self._first_text_s: float | None = None
        self._span = telemetry.tracing.span(
            names.SPAN_TURN, {names.REQUEST_ID: turn.request_id, names.SAFETY_MODE: turn.mode}
        )
        self._chat: OpenSpan | None = None

    def decided(self, decision: Decision, monotonic_s: float) -> None:
        """The person's message is judged."""
        self._decided_s = monotonic_s
        self._telemetry.metrics.safety_overhead("input", monotonic_s - self._started_s)
        if decision.model_may_speak:
            sampling = self._turn.sampling
            self._chat = self._telemetry.tracing.span(
                f"{names.SPAN_CHAT} {self._backend.model}",
                {
                    names.OPERATION_NAME: "chat",
                    names.PROVIDER_NAME: self._backend.kind,
                    names.REQUEST_MODEL: self._backend.model,
                    names.REQUEST_MAX_TOKENS: sampling.max_tokens,
                    names.REQUEST_TEMPERATURE: sampling.temperature,
                },
                parent=self._span,
                kind=SpanKind.INTERNAL if self._backend.local else SpanKind.CLIENT,
            )

    def first_text(self, monotonic_s: float) -> None:
        """The first characters may leave."""
        self._first_text_s = monotonic_s
        self._telemetry.metrics.time_to_first_token(monotonic_s - self._started_s)

    def closed(self, outcome: Outcome, monotonic_s: float, *, client_gone: bool) -> None:
        """The turn is over: metrics, spans, and the one wide line."""
        decision, metrics = outcome.decision, self._telemetry.metrics
        duration_s = monotonic_s - self._started_s
        metrics.turn(self._turn.mode, decision.action, decision.stage, duration_s)
        metrics.tokens(outcome.usage.prompt_tokens, outcome.usage.completion_tokens, self._backend.model)
        if not decision.model_may_speak:
            metrics.intervention(decision.stage, decision.severity, decision.action)
        if client_gone:
            metrics.client_disconnect("answer" if outcome.delivered_chars else "before_answer")
        self._end_spans(outcome)
        self._telemetry.log.info(
            "turn",
            request_id=self._turn.request_id,
            app_id=self._turn.app_id,
            mode=self._turn.mode,
            model=self._turn.model,
            backend=self._backend.kind,
            decision=decision.action,
            stage=decision.stage,
            severity=decision.severity,
            categories=decision.categories,
            reasons=decision.reasons,
            policy_version=decision.policy_version,
            route=decision.escalation.route if decision.escalation else None,
            incident_id=outcome.incident_id,
            finish_reason=outcome.finish_reason,
            detectors=outcome.detectors,
            delivered_chars=outcome.delivered_chars,
            input_tokens=outcome.usage.prompt_tokens,
            output_tokens=outcome.usage.completion_tokens,
            error_kind=outcome.backend_error,
            client_gone=client_gone,
            duration_ms=round(duration_s * MS, 1),
            safety_ms=round((self._decided_s - self._started_s) * MS, 1),
            first_text_ms=None if self._first_text_s is None else round((self._first_text_s - self._started_s) * MS, 1),
        )

    def broke(self) -> None:
        """The turn ended before it was decided: a bug, which the error handler reports."""
        self._span.fail("broken_turn")
        self._span.end()

    def _end_spans(self, outcome: Outcome) -> None:
        decision = outcome.decision
        if self._chat is not None:
            self._chat.set(
                {
                    names.RESPONSE_MODEL: self._backend.model,
                    names.RESPONSE_ID: self._turn.request_id,
                    names.RESPONSE_FINISH_REASONS: [outcome.finish_reason],
                    names.USAGE_INPUT_TOKENS: outcome.usage.prompt_tokens,
                    names.USAGE_OUTPUT_TOKENS: outcome.usage.completion_tokens,
                }
            )
            if outcome.backend_error is not None:
                self._chat.fail(outcome.backend_error)
            self._chat.end()
        self._span.set(
            {
                names.SAFETY_DECISION: decision.action,
                names.SAFETY_STAGE: decision.stage,
                names.SAFETY_SEVERITY: decision.severity,
                names.SAFETY_CATEGORIES: list(decision.categories),
                names.POLICY_VERSION: decision.policy_version,
                names.SAFETY_ROUTE: decision.escalation.route if decision.escalation else None,
            }
        )
        self._span.end()
