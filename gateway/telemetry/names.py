"""Every name that leaves the process as telemetry: log events and keys, spans and attributes, metrics and labels.

These are allow-lists, not documentation: a log key or span attribute that is not named here is dropped
(`redact.py`), so that a person's words cannot leave through a new field that nobody thought about.
GenAI names follow OpenTelemetry's GenAI semantic conventions (open-telemetry/semantic-conventions-genai, status
Development); their content attributes (``gen_ai.input.messages``, ``gen_ai.output.messages``) are left out on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SERVICE_NAME: Final = "havengate"

# --- logs ----------------------------------------------------------------------------------------

LOG_KEYS: Final = frozenset(
    {
        # who and where: identifiers that the gateway made itself, and keyed hashes
        "request_id",
        "turn_id",
        "app_id",
        "conversation_hash",
        "end_user_hash",
        "incident_id",
        "key_id",
        "principal",
        # what was asked and how it ended
        "mode",
        "model",
        "backend",
        "decision",
        "stage",
        "severity",
        "categories",
        "reasons",
        "wording",
        "policy_version",
        "route",
        "finish_reason",
        "stream",
        "detectors",
        "client_gone",
        "region",
        # numbers
        "duration_ms",
        "first_text_ms",
        "safety_ms",
        "delivered_chars",
        "input_tokens",
        "output_tokens",
        "count",
        "attempt",
        "limit",
        "pid",
        "port",
        # how HTTP went
        "method",
        "handler",
        "status",
        "code",
        "param",
        "phase",
        # parts of the house
        "profile",
        "kind",
        "name",
        "operation",
        "distribution",
        "version",
        "digest",
        "state",
        "task",
        "channel",
        # failures, by shape only
        "error_type",
        "error_kind",
        "error_where",
        "error_causes",
        "library",
        "where",
    }
)
"""Keys that a log line may carry beside ``event``, ``level``, ``timestamp`` and the bridge's ``template``."""

# --- spans ---------------------------------------------------------------------------------------

SPAN_TURN: Final = "havengate.turn"
SPAN_JUDGE: Final = "havengate.judge"
SPAN_DETECTOR: Final = "havengate.detector"
SPAN_RECORD: Final = "havengate.record"
SPAN_CHAT: Final = "chat"
"""Followed by the model's name: ``chat SmolLM2-135M-Instruct``."""

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - an attribute's name
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SAFETY_DECISION: Final = "havengate.decision"
SAFETY_STAGE: Final = "havengate.stage"
SAFETY_MODE: Final = "havengate.mode"
SAFETY_SEVERITY: Final = "havengate.severity"
SAFETY_CATEGORIES: Final = "havengate.categories"
SAFETY_ROUTE: Final = "havengate.route"
POLICY_VERSION: Final = "havengate.policy.version"
DETECTOR_NAME: Final = "havengate.detector.name"
DETECTOR_STATE: Final = "havengate.detector.state"
REQUEST_ID: Final = "havengate.request.id"

SPAN_ATTRIBUTES: Final = frozenset(
    {
        OPERATION_NAME,
        PROVIDER_NAME,
        REQUEST_MODEL,
        REQUEST_MAX_TOKENS,
        REQUEST_TEMPERATURE,
        RESPONSE_MODEL,
        RESPONSE_ID,
        RESPONSE_FINISH_REASONS,
        USAGE_INPUT_TOKENS,
        USAGE_OUTPUT_TOKENS,
        ERROR_TYPE,
        SERVER_ADDRESS,
        SAFETY_DECISION,
        SAFETY_STAGE,
        SAFETY_MODE,
        SAFETY_SEVERITY,
        SAFETY_CATEGORIES,
        SAFETY_ROUTE,
        POLICY_VERSION,
        DETECTOR_NAME,
        DETECTOR_STATE,
        REQUEST_ID,
    }
)

# --- metrics -------------------------------------------------------------------------------------

TURNS: Final = "havengate_turns_total"
TURN_DURATION: Final = "havengate_turn_duration_seconds"
TIME_TO_FIRST_TOKEN: Final = "havengate_time_to_first_token_seconds"  # noqa: S105 - a metric's name
SAFETY_OVERHEAD: Final = "havengate_safety_overhead_seconds"
DETECTOR_DURATION: Final = "havengate_detector_duration_seconds"
DETECTOR_RESULTS: Final = "havengate_detector_results_total"
INTERVENTIONS: Final = "havengate_interventions_total"
ESCALATIONS: Final = "havengate_escalations_total"
STREAMS_OPEN: Final = "havengate_streams_open"
CLIENT_DISCONNECTS: Final = "havengate_client_disconnects_total"
BACKEND_ERRORS: Final = "havengate_backend_errors_total"
STORE_ERRORS: Final = "havengate_store_errors_total"
EVENT_BUS: Final = "havengate_event_bus_total"
POLICY_INFO: Final = "havengate_policy_info"
POLICY_RELOAD_FAILURES: Final = "havengate_policy_reload_failures_total"
HTTP_ERRORS: Final = "havengate_http_errors_total"

METRIC_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    TURNS: ("mode", "decision", "stage"),
    TURN_DURATION: ("mode",),
    TIME_TO_FIRST_TOKEN: (),
    SAFETY_OVERHEAD: ("stage",),
    DETECTOR_DURATION: ("detector",),
    DETECTOR_RESULTS: ("detector", "state"),
    INTERVENTIONS: ("stage", "severity", "action"),
    ESCALATIONS: ("route",),
    STREAMS_OPEN: (),
    CLIENT_DISCONNECTS: ("phase",),
    BACKEND_ERRORS: ("kind",),
    STORE_ERRORS: ("operation", "kind"),
    EVENT_BUS: ("operation", "happening"),
    POLICY_INFO: ("version",),
    POLICY_RELOAD_FAILURES: (),
    HTTP_ERRORS: ("status", "code"),
}

GEN_AI_TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - a metric's name
GEN_AI_OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
GEN_AI_SERVER_REQUEST_DURATION: Final = "gen_ai.server.request.duration"
GEN_AI_SERVER_FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"  # noqa: S105 - a metric's name
