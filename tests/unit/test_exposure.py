"""The exposure map is whole: no wire field without a row, no row without a proof, and `to_turn` does what the rows say."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openai.types.chat import completion_create_params as documented

from backends import openai_wire
from backends.api import Usage
from gateway.errors import BadRequest, HavengateError, to_openai
from gateway.http import openai
from gateway.http.exposure import ROWS, Row
from gateway.pipeline.state import Outcome, Turn
from gateway.policy.decision import Decision
from tests.conformance import inputs
from tests.conformance.kit import CASES

CANARY = "quixotic marmalade"
LIMITS = openai.Limits(
    max_messages=16, max_message_chars=1_000, max_total_chars=65_536, max_tokens_default=64, max_tokens_cap=128
)
CALLER = openai.Caller(app_id="key", mode="assistant", region="IE")
USER: dict[str, Any] = {"role": "user", "content": "How does sourdough work?"}
PROOFS = {case.id: case for case in CASES}


def request_rows(*treatments: str) -> list[Row]:
    return [row for row in ROWS if row.direction == "request" and row.treatment in treatments]


def named(row: Row) -> str:
    return f"{row.path}-{row.when.partition(',')[0]}".rstrip("-")


def fields_of(kind: Any, path: str) -> Iterator[str]:
    """Every field of a wire type, nested ones as OpenAI writes their paths."""
    for field in msgspec.structs.fields(kind):
        here = f"{path}{field.encode_name}"
        yield here
        for inner, suffix in structs_in(field.type, ""):
            yield from fields_of(inner, f"{here}{suffix}.")


def structs_in(kind: Any, suffix: str) -> Iterator[tuple[Any, str]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind, suffix
        return
    for argument in typing.get_args(kind):
        yield from structs_in(argument, suffix + "[]" if typing.get_origin(kind) in (list, tuple) else suffix)


def paths_of(value: Any, path: str) -> Iterator[str]:
    """Every path of a document as it goes out."""
    for name, inner in value.items():
        here = f"{path}{name}"
        yield here
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, dict) and here not in ("havengate", "metadata"):
                yield from paths_of(item, f"{here}[]." if isinstance(inner, list) else f"{here}.")


# --- whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(set(fields_of(openai.ChatRequest, ""))))
def test_every_field_of_a_request_has_a_row(path: str) -> None:
    containers = {"messages", "messages[].content[]"}
    assert path in containers or path in {row.path for row in ROWS if row.direction == "request"}


def test_every_row_of_a_request_names_a_field_that_is_there() -> None:
    """Rows may go deeper than the wire types, into what is refused or dropped whole."""
    wire = set(fields_of(openai.ChatRequest, ""))
    whole = {row.path for row in request_rows("refused", "dropped") if row.path in wire}
    for row in request_rows("guarded", "setting", "refused", "dropped"):
        inside = any(row.path.startswith((f"{path}.", f"{path}[]")) for path in whole)
        assert row.path in wire or inside or row.path.endswith("*"), row.path


def test_what_openai_documents_is_decided_by_name() -> None:
    """A parameter that a new SDK brings is refused in any case; here it asks for a decision."""
    assert set(typing.get_type_hints(documented.CompletionCreateParamsBase)) <= set(fields_of(openai.ChatRequest, ""))


def test_every_field_that_goes_out_has_a_row() -> None:
    turn, outcome = a_turn(), an_outcome()
    base = openai.envelope("id", "model", "chat.completion.chunk") | {"usage": openai.usage(outcome.usage)}
    documents: list[dict[str, Any]] = [
        openai.from_outcome(turn, "text", outcome),
        openai.chunk(base, {"role": "assistant", "content": "text"}, "stop") | {"havengate": {}},
        to_openai(HavengateError("no")),
    ]
    sent = {path for document in documents for path in paths_of(document, "")} - {"choices"}
    sent -= {"choices[].message", "choices[].delta"}
    rows = {row.path: row.treatment for row in ROWS if row.direction == "response"}
    assert {path: rows.get(path) for path in sent if rows.get(path) not in ("guarded", "ours")} == {}


def test_every_field_read_from_a_models_server_has_a_row() -> None:
    read = set(fields_of(openai_wire.Event, "")) - {"choices", "choices[].delta"}
    assert read <= {row.path for row in ROWS if row.direction == "response"}


def test_unknown_fields_are_refused_everywhere() -> None:
    for kind in (openai.ChatRequest, openai.WireMessage, openai.TextPart, openai.StreamOptions):
        assert kind.__struct_config__.forbid_unknown_fields


# --- proved -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_every_row_has_its_proof(row: Row) -> None:
    case = PROOFS[row.case]
    assert case.side == ("in" if row.direction == "request" else "out")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_proof_has_its_row(case: Any) -> None:
    assert case.field in {row.path for row in ROWS if (row.direction == "request") == (case.side == "in")}


@pytest.mark.parametrize("row", [row for row in ROWS if row.treatment == "guarded"], ids=named)
def test_what_is_guarded_says_by_whom(row: Row) -> None:
    assert row.phase == ("input" if row.direction == "request" else "output")
    assert row.extractor is not None
    module, _, name = row.extractor.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("row", [row for row in ROWS if row.treatment != "guarded"], ids=named)
def test_only_what_is_guarded_has_a_phase(row: Row) -> None:
    assert (row.phase, row.extractor) == (None, None)
    assert row.treatment == "refused" or row.neutral == ()


def test_no_row_stands_twice() -> None:
    keys = [(row.direction, row.path, row.when) for row in ROWS]
    assert len(keys) == len(set(keys))


# --- done ---------------------------------------------------------------------------------------


def a_turn(**fields: Any) -> Turn:
    return turn_of({"messages": [USER], **fields})


def turn_of(body: dict[str, Any]) -> Turn:
    request = openai.decode(msgspec.json.encode({"model": "m"} | body), openai.ChatRequest)
    openai.check_metadata(request)
    return openai.to_turn(request, CALLER, LIMITS, request_id="id", models=("m",), user_hash=None)


def an_outcome() -> Outcome:
    decision = Decision("allow", "input", "assistant", severity=0, categories=(), reasons=(), policy_version="v")
    return Outcome(decision=decision, finish_reason="stop", usage=Usage(1, 1), detectors={})


def read_by_the_model(turn: Turn) -> str:
    return str([line.text for line in turn.lines]) + str(msgspec.to_builtins(turn.sampling))


@pytest.mark.parametrize("row", request_rows("refused"), ids=named)
def test_what_is_refused_is_named(row: Row) -> None:
    body = PROOFS[row.case].body(CANARY)
    assert isinstance(body, dict)
    with pytest.raises(BadRequest) as caught:
        turn_of(body)
    assert CANARY not in caught.value.message
    assert caught.value.param
    assert caught.value.param.rpartition(".")[2] == refused_at(row)


def refused_at(row: Row) -> str:
    """The name in the error: a role or a type where those decide, else the last field that the wire types know."""
    if row.when:
        return "role"
    if row.path.startswith("messages[].content[]."):
        return "type"
    own = row.path.removeprefix("messages[].")
    return own.partition("[")[0].partition(".")[0].replace("*", inputs.UNKNOWN)


@pytest.mark.parametrize("row", [row for row in request_rows("refused") if row.path.isidentifier()], ids=named)
def test_what_says_nothing_is_accepted(row: Row) -> None:
    assert row.neutral[0] is None, "absent must say nothing"
    for value in row.neutral:
        assert a_turn(**{row.path: value}) == a_turn()


@pytest.mark.parametrize("row", request_rows("dropped"), ids=named)
def test_what_is_dropped_reaches_no_model(row: Row) -> None:
    body = PROOFS[row.case].body(CANARY)
    assert isinstance(body, dict)
    turn = turn_of(body)
    assert CANARY not in read_by_the_model(turn)


@pytest.mark.parametrize("row", request_rows("guarded"), ids=named)
def test_what_is_guarded_reaches_the_guard(row: Row) -> None:
    body = PROOFS[row.case].body(CANARY)
    assert isinstance(body, dict)
    assert CANARY in read_by_the_model(turn_of(body))


@pytest.mark.parametrize("row", request_rows("setting"), ids=named)
def test_no_text_fits_into_a_setting(row: Row) -> None:
    body = PROOFS[row.case].body(CANARY)
    assert isinstance(body, dict)
    with pytest.raises(HavengateError) as caught:
        turn_of(body)
    assert CANARY not in caught.value.message


@pytest.mark.parametrize("role", ["tool", "function", "critic", "User", ""])
def test_a_role_that_nobody_here_plays_is_refused(role: str) -> None:
    with pytest.raises(BadRequest) as caught:
        turn_of({"messages": [USER, {"role": role, "content": "text"}, USER]})
    assert caught.value.param == "messages[1].role"


def test_a_number_is_not_a_switch() -> None:
    for fields in ({"n": True}, {"logprobs": 0}, {"store": 0}, {"top_logprobs": False}):
        with pytest.raises(BadRequest):
            a_turn(**fields)


# --- odd JSON -----------------------------------------------------------------------------------


def test_of_a_field_given_twice_the_last_is_read_and_judged() -> None:
    """The body is never passed on, so no other parser can take the first: what is judged is what is sent."""
    for place, expected in ((0, inputs.ASKED), (1, CANARY)):
        build = PROOFS["in.user.twice_first" if place == 0 else "in.user.twice_last"].body
        raw = build(CANARY)
        assert isinstance(raw, bytes)
        request = openai.decode(b'{"model":"m",' + raw[1:], openai.ChatRequest)
        content = request.messages[0].content
        assert isinstance(content, str)
        assert expected in content
        assert (CANARY in content) == (place == 1)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    raw = f'{{"model":"m","messages":[],"temperature":{number}}}'.encode()
    with pytest.raises(BadRequest):
        openai.decode(raw, openai.ChatRequest)


@pytest.mark.parametrize("text", [r"\ud800", r"\udfff", r"\ude00\ud83d"])
def test_half_a_character_is_refused(text: str) -> None:
    raw = f'{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}'.encode()
    with pytest.raises(BadRequest):
        openai.decode(raw, openai.ChatRequest)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    raw = rb'{"model":"m","messages":[{"role":"user","content":"\ud83d\ude00"}]}'
    assert openai.decode(raw, openai.ChatRequest).messages[0].content == "\U0001f600"
