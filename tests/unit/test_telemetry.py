"""Telemetry: what operators see, and that a person's words never are among it."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from gateway.settings import TelemetrySettings
from gateway.telemetry import names
from gateway.telemetry.logging import request_context
from gateway.telemetry.metrics import MAX_LABEL_VALUES, OTHER, Metrics
from gateway.telemetry.redact import MAX_CHARS, MAX_ITEMS, REDACTED, error_shape, safe_event, safe_value
from gateway.telemetry.start import Telemetry

CANARY = "the heron waits by the grey canal"
"""Stands for anything a person might write."""


class Watched:
    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.spans = InMemorySpanExporter()
        self.telemetry = Telemetry.start(TelemetrySettings(log_level="debug"), stream=self.stream, exporter=self.spans)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def everything(self) -> str:
        self.telemetry.tracing.flush(5.0)
        spans = "".join(span.to_json() for span in self.spans.get_finished_spans())
        return self.stream.getvalue() + spans + self.telemetry.metrics.render().decode()


@pytest.fixture
def watched() -> Iterator[Watched]:
    found = Watched()
    yield found
    found.telemetry.shutdown()


def raise_chain() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise RuntimeError(f"failed on {CANARY}") from error


# --- logs ---


def test_a_line_carries_allowed_keys_and_the_request(watched: Watched) -> None:
    with request_context("req-1"):
        watched.telemetry.log.info("turn_done", mode="assistant", duration_ms=1.5, reasons=("level.S0",), stream=True)
    watched.telemetry.log.info("later")
    first, second = watched.lines()
    assert first.items() >= {"event": "turn_done", "request_id": "req-1", "mode": "assistant", "level": "info"}.items()
    assert (first["duration_ms"], first["reasons"], first["stream"]) == (1.5, ["level.S0"], True)
    assert "request_id" not in second


@pytest.mark.parametrize(
    "say",
    [
        lambda log: log.info("turn_done", text=CANARY),
        lambda log: log.info("turn_done", decision=CANARY),
        lambda log: log.info("turn_done", categories=[CANARY]),
        lambda log: log.info("turn_done", detectors={CANARY: "ran", "x": [CANARY]}),
        lambda log: log.info("turn_done", model=CANARY.encode()),
        lambda log: log.info(f"it failed on {CANARY}"),  # noqa: G004 - the mistake under test
        lambda log: log.info("value %s", CANARY),
        lambda log: log.info("turn_done", template=CANARY, exc_info=ValueError(CANARY)),
        lambda _: structlog.get_logger("anywhere").warning(CANARY, prompt=CANARY),
    ],
)
def test_no_way_of_logging_lets_words_through(watched: Watched, say: Callable[[Any], None]) -> None:
    say(watched.telemetry.log)
    assert len(watched.lines()) == 1
    assert "heron" not in watched.everything()


def test_an_exception_is_a_type_a_place_and_its_causes(watched: Watched) -> None:
    try:
        raise_chain()
    except RuntimeError:
        watched.telemetry.log.exception("turn_failed")
    (line,) = watched.lines()
    assert line["error_type"] == "RuntimeError"
    assert line["error_where"].startswith("test_telemetry.py:raise_chain:")
    assert line["error_causes"][0].startswith("KeyError@test_telemetry.py:raise_chain:")
    assert "heron" not in watched.everything()


def test_the_standard_library_goes_through_the_same_door(watched: Watched) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request from %s", CANARY)
    logging.getLogger("alembic").info("an everyday line")
    logging.getLogger("uvicorn.error").error(f"Traceback:\nValueError: {CANARY}")  # noqa: G004 - as uvicorn does
    logging.getLogger("sqlalchemy.engine").warning(f"row {CANARY}")  # noqa: G004 - as libraries do
    logging.getLogger("asyncio").error("task failed", exc_info=ValueError(CANARY))
    logging.getLogger("uvicorn.access").error('%s - "POST /%s"', "127.0.0.1", CANARY)
    lines = watched.lines()
    assert [line["library"] for line in lines] == ["uvicorn.error", "uvicorn.error", "sqlalchemy.engine", "asyncio"]
    assert lines[0]["template"] == "Invalid HTTP request from %s"
    assert not any("template" in line for line in lines[1:])
    assert lines[3]["error_type"] == "ValueError"
    assert all(line["where"].startswith("test_telemetry.py:") for line in lines)
    assert "heron" not in watched.everything()


def test_a_library_whose_handler_prints_arguments_is_quieted_and_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("uvicorn")
    own = logging.StreamHandler()
    library.addHandler(own)
    try:
        found = Watched()
        library.warning("said %s", CANARY)
        found.telemetry.shutdown()
        assert library.handlers[-1] is own
    finally:
        library.removeHandler(own)
    assert "heron" not in capfd.readouterr().err


def test_a_closed_stream_does_not_raise(watched: Watched) -> None:
    record = logging.LogRecord("asyncio", logging.ERROR, __file__, 1, "x", None, None)
    bridge = logging.getLogger().handlers[0]
    bridge.emit(record)
    before = len(watched.lines())
    watched.stream.close()
    bridge.emit(record)
    assert before == 1


def test_the_console_format_is_redacted_too() -> None:
    stream = io.StringIO()
    telemetry = Telemetry.start(TelemetrySettings(log_format="console"), stream=stream)
    telemetry.log.info("turn_done", mode="assistant", text=CANARY)
    telemetry.log.debug("below_the_level")
    telemetry.shutdown()
    assert "mode=assistant" in stream.getvalue()
    assert "heron" not in stream.getvalue()
    assert "below" not in stream.getvalue()


# --- redaction ---


@pytest.mark.parametrize(
    ("value", "safe"),
    [
        ("level.S3", "level.S3"),
        ("two words", REDACTED),
        ("línea", REDACTED),
        ("line\nbreak", REDACTED),
        ("a" * 500, "a" * MAX_CHARS),
        (3, 3),
        (None, None),
        (["ok", "not ok", {"deep": 1}], ["ok", REDACTED, REDACTED]),
        ({"encoder": "ran"}, {"encoder": "ran"}),
        (object(), REDACTED),
    ],
)
def test_a_safe_value_is_a_number_or_a_code(value: object, safe: object) -> None:
    assert safe_value(value) == safe


def test_collections_are_cut() -> None:
    assert len(safe_value(range(3) and list(range(1000)))) == MAX_ITEMS
    assert len(safe_value({str(n): n for n in range(1000)})) == MAX_ITEMS


def test_an_event_is_a_name() -> None:
    assert safe_event("turn_done") == "turn_done"
    assert safe_event("Turn done!") == "unnamed_event"
    assert safe_event(None) == "unnamed_event"


def test_a_long_chain_of_causes_is_cut() -> None:
    error = ValueError("0")
    for number in range(20):
        outer = ValueError(str(number))
        outer.__cause__ = error
        error = outer
    assert len(error_shape(error)["error_causes"]) == 5
    assert error_shape(ValueError())["error_where"] == "unknown"


# --- traces ---


def test_spans_carry_allowed_attributes_and_their_parent(watched: Watched) -> None:
    tracing = watched.telemetry.tracing
    with tracing.span(names.SPAN_TURN, {names.SAFETY_MODE: "assistant", "gen_ai.input.messages": CANARY}) as turn:
        chat = tracing.span(f"{names.SPAN_CHAT} {CANARY}", {names.REQUEST_MODEL: "m-1"}, parent=turn)
        chat.set({names.USAGE_OUTPUT_TOKENS: 7, names.RESPONSE_ID: None, names.SAFETY_CATEGORIES: ("suicide",)})
        chat.end()
    tracing.flush(5.0)
    inner, outer = watched.spans.get_finished_spans()
    assert (outer.name, dict(outer.attributes or {})) == (names.SPAN_TURN, {names.SAFETY_MODE: "assistant"})
    assert inner.name == f"chat {REDACTED}"
    assert inner.parent is not None
    assert outer.context is not None
    assert inner.parent.span_id == outer.context.span_id
    assert dict(inner.attributes or {}) == {
        names.REQUEST_MODEL: "m-1",
        names.USAGE_OUTPUT_TOKENS: 7,
        names.SAFETY_CATEGORIES: ("suicide",),
    }
    assert "heron" not in watched.everything()


def test_a_failed_span_says_only_the_type(watched: Watched) -> None:
    with pytest.raises(RuntimeError), watched.telemetry.tracing.span(names.SPAN_RECORD):
        raise_chain()
    watched.telemetry.tracing.flush(5.0)
    (span,) = watched.spans.get_finished_spans()
    assert dict(span.attributes or {}) == {names.ERROR_TYPE: "RuntimeError"}
    assert not span.status.is_ok
    assert not span.events
    assert "heron" not in watched.everything()


async def test_a_span_may_end_in_another_task(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    import asyncio

    async def answer() -> Any:
        with watched.telemetry.tracing.span(names.SPAN_TURN):
            yield 1
            yield 2

    pieces = answer()
    await asyncio.create_task(anext(pieces))
    await asyncio.create_task(pieces.aclose())
    watched.telemetry.tracing.flush(5.0)
    (span,) = watched.spans.get_finished_spans()
    assert span.status.is_unset
    assert not watched.lines()


def test_without_an_exporter_nothing_is_recorded() -> None:
    telemetry = Telemetry.start(TelemetrySettings(), stream=io.StringIO())
    with telemetry.tracing.span(names.SPAN_TURN) as span:
        span.set({names.SAFETY_MODE: "assistant"})
        assert not span._span.is_recording()
    telemetry.shutdown()


class Collector(BaseHTTPRequestHandler):
    """A collector's HTTP side: keeps what it is sent."""

    received: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        self.received[self.path] = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def test_an_endpoint_receives_spans_and_numbers_but_no_words() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}/"
        telemetry = Telemetry.start(TelemetrySettings(otlp_endpoint=endpoint), stream=io.StringIO())
        with telemetry.tracing.span(names.SPAN_TURN, {names.SAFETY_MODE: "assistant", "text": CANARY}):
            telemetry.metrics.tokens(3, 4, "m-1")
        telemetry.shutdown()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert sorted(Collector.received) == ["/v1/metrics", "/v1/traces"]
    assert names.SPAN_TURN.encode() in Collector.received["/v1/traces"]
    assert names.GEN_AI_TOKEN_USAGE.encode() in Collector.received["/v1/metrics"]
    assert b"heron" not in b"".join(Collector.received.values())


# --- metrics ---


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    found = Metrics()
    yield found
    found.shutdown()


def test_every_happening_is_counted_under_its_name(metrics: Metrics) -> None:
    metrics.turn("assistant", "replace", "input", 0.2)
    metrics.time_to_first_token(0.1)
    metrics.safety_overhead("input", 0.004)
    metrics.detector("encoder", 0.003, "ran")
    metrics.detector("encoder", 0.0, "skipped")
    metrics.intervention("input", 3, "replace")
    metrics.escalation("page")
    metrics.stream_open()
    metrics.stream_open()
    metrics.stream_closed()
    metrics.client_disconnect("answer")
    metrics.backend_error("timeout")
    metrics.store_error("close", "locked")
    metrics.event_bus("send", "lost")
    metrics.http_error(404, "model_not_found")
    metrics.policy_reload_failed()
    metrics.tokens(11, 22, "m-1")
    found = series(metrics)
    expected = {
        (names.TURNS, (("decision", "replace"), ("mode", "assistant"), ("stage", "input"))): 1,
        (names.TURN_DURATION + "_sum", (("mode", "assistant"),)): 0.2,
        (names.TIME_TO_FIRST_TOKEN + "_count", ()): 1,
        (names.SAFETY_OVERHEAD + "_sum", (("stage", "input"),)): 0.004,
        (names.DETECTOR_DURATION + "_count", (("detector", "encoder"),)): 1,
        (names.DETECTOR_RESULTS, (("detector", "encoder"), ("state", "skipped"))): 1,
        (names.INTERVENTIONS, (("action", "replace"), ("severity", "3"), ("stage", "input"))): 1,
        (names.ESCALATIONS, (("route", "page"),)): 1,
        (names.STREAMS_OPEN, ()): 1,
        (names.CLIENT_DISCONNECTS, (("phase", "answer"),)): 1,
        (names.BACKEND_ERRORS, (("kind", "timeout"),)): 1,
        (names.STORE_ERRORS, (("kind", "locked"), ("operation", "close"))): 1,
        (names.EVENT_BUS, (("happening", "lost"), ("operation", "send"))): 1,
        (names.HTTP_ERRORS, (("code", "model_not_found"), ("status", "404"))): 1,
        (names.POLICY_RELOAD_FAILURES, ()): 1,
        ("gen_ai_server_request_duration_seconds_sum", (("gen_ai_operation_name", "chat"),)): 0.2,
        ("gen_ai_server_time_to_first_token_seconds_count", (("gen_ai_operation_name", "chat"),)): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    tokens = {
        dict(labels)["gen_ai_token_type"]: value
        for (name, labels), value in found.items()
        if name == "gen_ai_client_token_usage_sum"
    }
    assert tokens == {"input": 11, "output": 22}


def test_one_policy_version_is_in_force(metrics: Metrics) -> None:
    metrics.policy_loaded("v1")
    metrics.policy_loaded("v2")
    found = {labels: value for (name, labels), value in series(metrics).items() if name == names.POLICY_INFO}
    assert found == {(("version", "v2"),): 1}


def test_labels_are_bounded_and_never_words(metrics: Metrics) -> None:
    metrics.turn(CANARY, CANARY, CANARY, 0.1)
    metrics.backend_error(CANARY)
    metrics.tokens(1, 1, CANARY)
    for number in range(MAX_LABEL_VALUES * 2):
        metrics.http_error(400, f"code_{number}")
    found = series(metrics)
    assert "heron" not in metrics.render().decode()
    codes = {dict(labels)["code"] for name, labels in found if name == names.HTTP_ERRORS}
    assert len(codes) == MAX_LABEL_VALUES + 1
    assert found[names.HTTP_ERRORS, (("code", OTHER), ("status", "400"))] == MAX_LABEL_VALUES


def test_two_gateways_in_one_process_do_not_share_counts(metrics: Metrics) -> None:
    other = Metrics()
    other.escalation("page")
    other.shutdown()
    assert (names.ESCALATIONS, (("route", "page"),)) not in series(metrics)
