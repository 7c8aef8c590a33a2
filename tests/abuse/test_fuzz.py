"""Whatever a body holds, decoding it gives a turn or a refusal, and no refusal repeats what was said."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from backends.sse import EventTooLarge, SSEReader
from gateway.errors import BadRequest, HavengateError, ModelNotFound, headers_of, to_openai, to_problem
from gateway.http import openai
from gateway.pipeline.state import Turn

CANARY: Final = "quixotic marmalade"
LIMITS: Final = openai.Limits(
    max_messages=4, max_message_chars=64, max_total_chars=160, max_tokens_default=16, max_tokens_cap=32
)
CALLER: Final = openai.Caller(app_id="key", mode="assistant", region="IE")
EXAMPLES: Final = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def fields(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


words = st.one_of(st.just(CANARY), st.just(f"Hello, {CANARY}."), st.text(max_size=80))
numbers = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0, 1, -1, 2**63, 10**400, 1e308])
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)


def shaped(kind: type[msgspec.Struct], **usual: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with the fields of ``kind``, each as usual or anything at all, and perhaps one that nobody knows."""
    optional = {name: st.one_of(usual.get(name, st.none()), anything) for name in fields(kind)}
    return st.builds(
        lambda known, sound, more: known | sound | more,
        st.fixed_dictionaries({}, optional=optional),
        st.one_of(st.just({}), st.fixed_dictionaries(usual)),
        st.one_of(st.just({}), st.just({}), st.dictionaries(words, anything, max_size=1)),
    )


parts = shaped(openai.TextPart, type=st.just("text"), text=words)
content = st.one_of(words, st.lists(parts, max_size=3))
messages = shaped(openai.WireMessage, role=st.sampled_from([*openai.ROLES, "tool"]), content=content)
bodies = shaped(
    openai.ChatRequest,
    model=st.sampled_from(["havengate", CANARY]),
    messages=st.lists(messages, max_size=5),
)
sound = st.fixed_dictionaries(
    {
        "model": st.just("havengate"),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text(min_size=1, max_size=60)}),
            min_size=1,
            max_size=5,
        ),
    },
    optional={
        name: st.one_of(st.none(), anything, st.sampled_from([0, 1, 0.5, 2, -2, "a", ["a"], {"a": "b"}]))
        for name in fields(openai.ChatRequest)
        if name not in ("model", "messages")
    },
)


def crossed(body: bytes) -> Turn | None:
    """The turn that a body becomes, or None for a refusal; anything else, and a refusal that repeats it, fails."""
    try:
        request = openai.decode(body, openai.ChatRequest)
        openai.check_metadata(request)
        turn = openai.to_turn(request, CALLER, LIMITS, request_id="r", models=("havengate",), user_hash=None)
    except (BadRequest, ModelNotFound) as error:
        check_says_nothing(error)
        event("refused")
        return None
    event("a turn")
    return turn


def check_says_nothing(refusal: HavengateError) -> None:
    """Of what was sent, in any of its renderings.  A traceback would show what msgspec quotes, were it not cut off."""
    shown = repr(
        (refusal, refusal.args, refusal.__cause__, to_openai(refusal), to_problem(refusal), headers_of(refusal))
    )
    assert CANARY not in shown
    assert len(shown) < 2_000
    assert refusal.__suppress_context__ or refusal.__context__ is None


def check_bounded(turn: Turn) -> None:
    assert turn.last.role == "user"
    assert turn.last.text.strip()
    assert len(turn.lines) <= LIMITS.max_messages
    assert all(0 < len(line.text) <= LIMITS.max_message_chars for line in turn.lines)
    assert sum(len(line.text) for line in turn.lines) <= LIMITS.max_total_chars
    assert msgspec.json.encode(turn), "every character can be sent on"
    assert (turn.app_id, turn.mode) == ("key", "assistant")
    asked = turn.sampling
    assert 1 <= asked.max_tokens <= LIMITS.max_tokens_cap
    assert asked.temperature is None or 0 <= asked.temperature <= 2
    assert asked.top_p is None or 0 <= asked.top_p <= 1
    assert len(asked.stop) <= openai.MAX_STOPS
    assert all(0 < len(stop) <= openai.MAX_STOP_CHARS for stop in asked.stop)


@EXAMPLES
@given(st.one_of(anything, bodies, sound))
def test_any_json_is_a_turn_or_a_refusal(document: Any) -> None:
    turn = crossed(json.dumps(document).encode())
    if turn is not None:
        check_bounded(turn)


@EXAMPLES
@given(st.one_of(bodies, sound), st.data())
def test_any_damage_to_a_body_is_a_turn_or_a_refusal(document: Any, data: st.DataObject) -> None:
    """Bytes are cut out, doubled and replaced, as a broken client or a careful attacker would."""
    body = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 40)))
        new = data.draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"\\ud800", b"NaN", b"[" * 2_000, b""]))
        )
        body = body[:start] + new + body[start if data.draw(st.booleans()) else end :]
    turn = crossed(body)
    if turn is not None:
        check_bounded(turn)


@EXAMPLES
@given(st.one_of(anything, shaped(openai.ModerationRequest, input=st.one_of(words, st.lists(st.one_of(words, parts))))))
def test_any_json_is_a_moderation_or_a_refusal(document: Any) -> None:
    try:
        openai.decode(json.dumps(document).encode(), openai.ModerationRequest)
    except BadRequest as error:
        check_says_nothing(error)


@EXAMPLES
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from([b"data:", b"data: x", b"\n", b"\r", b"\r\n", b"\n\n", b":", b"\xef\xbb\xbf", b"id: \x00"]),
        ),
        max_size=40,
    ).map(b"".join),
    st.data(),
)
def test_garbage_reads_the_same_however_it_is_cut(stream: bytes, data: st.DataObject) -> None:
    """Of the event-stream reader; its grammar, and every cut of sound streams, are in ``tests/unit/test_sse_parser.py``."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert events(*pieces) == events(stream)


def events(*pieces: bytes) -> list[bytes] | None:
    """None when an event is larger than the reader takes."""
    reader = SSEReader(64)
    try:
        return [found for piece in pieces for found in reader.feed(piece)]
    except EventTooLarge:
        return None
