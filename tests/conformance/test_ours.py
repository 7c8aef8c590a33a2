"""The conformance kit against Havengate as `make serve` starts it: nothing leaks, and OpenAI's clients read every stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.http.exposure import ROWS, Row
from gateway.pipeline.turn import LEFT_OUT
from tests.conformance import kit, sdk
from tests.conformance.case import Phrases
from tests.conformance.inputs import ASKED
from tests.conformance.upstream import MODEL, Upstream
from tests.e2e.test_openai_node import node
from tests.support.calls import post
from tests.support.gateway import Gateway, running

PHRASES = Phrases()
STOPPED = {
    case.id: case
    for case in kit.CASES
    if case.stream and case.field == "choices[].delta.content" and case.id != "out.stream.after_finish"
}
"""Streams that must be stopped: in the first window, in the middle, in the last, and in every way of writing."""
BY_NODE = ("out.stream.first", "out.stream.split", "out.stream.late", "out.stream.no_end")
FALSE_ALARMS = {"out.stream.spaced"}
"""Sixty letters, each by itself, are no speech at all; the encoder takes them for harm."""


@dataclass(frozen=True)
class Outcome:
    """Everything that one run against one gateway told."""

    rows: Mapping[str, kit.Row]
    stopped: Mapping[str, sdk.Stopped]
    by_node: Mapping[str, Any]
    without_usage: sdk.Stopped
    left_out: list[Any]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return asyncio.run(_run(tmp_path_factory.mktemp("conformance") / "home"))


async def _run(home: Path) -> Outcome:
    async with Upstream() as upstream:
        with contextlib.ExitStack() as stack:
            options = ["--backend", "openai_http", "--backend-url", upstream.url, "--backend-model", MODEL]
            gateway = await asyncio.to_thread(stack.enter_context, running(home, *options))
            target = kit.Target(gateway.api_url, gateway.key, "havengate")
            rows = await kit.run(target, upstream, PHRASES)
            stopped = {name: await _stopped(target, upstream, name) for name in STOPPED}
            return Outcome(
                rows={row.case.id: row for row in rows},
                stopped=stopped,
                by_node={name: await _by_node(gateway, upstream, name) for name in BY_NODE},
                without_usage=await _stopped(target, upstream, "out.stream.first", usage=False),
                left_out=await _left_out(gateway, upstream),
            )


async def _stopped(target: kit.Target, upstream: Upstream, name: str, *, usage: bool = True) -> sdk.Stopped:
    written = _expect(upstream, name)
    return await sdk.read(target, STOPPED[name], written, usage=usage)


async def _by_node(gateway: Gateway, upstream: Upstream, name: str) -> Any:
    _expect(upstream, name)
    return await asyncio.to_thread(node, gateway, "stream", ASKED)


def _expect(upstream: Upstream, name: str) -> str:
    written = STOPPED[name].encode(PHRASES.spoken.forbidden)
    upstream.expect(STOPPED[name].answer(written))
    return written


async def _left_out(gateway: Gateway, upstream: Upstream) -> list[Any]:
    """What the model is sent of a history with an answer that must not stand."""
    (case,) = (case for case in kit.CASES if case.id == "in.assistant.history")
    upstream.expect(case.answer(""))
    body = kit.encoded(case.body(PHRASES.told.forbidden), "havengate", stream=False)
    await asyncio.to_thread(post, gateway, "/v1/chat/completions", json.loads(body))
    return upstream.heard


@pytest.mark.parametrize("name", [case.id for case in kit.CASES])
def test_nothing_leaks(outcome: Outcome, name: str) -> None:
    row = outcome.rows[name]
    assert row.verdict.word in ("caught", "refused", "dropped")
    assert not row.verdict.echoed, "an error repeats nothing"


@pytest.mark.parametrize("name", [case.id for case in kit.CASES if case.id not in FALSE_ALARMS])
def test_a_harmless_sentence_is_let_through(outcome: Outcome, name: str) -> None:
    assert not outcome.rows[name].verdict.false_alarm


EXPECTED = {"guarded": "caught", "setting": "refused", "refused": "refused", "dropped": "dropped", "ours": "dropped"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.direction}-{row.path}-{row.case}")
def test_the_exposure_map_says_what_is_done(outcome: Outcome, row: Row) -> None:
    assert outcome.rows[row.case].verdict.word == EXPECTED[row.treatment]


@pytest.mark.parametrize(
    "name",
    ["in.user.plain", "in.user.earlier", "in.system", "in.developer", "in.stop", "out.whole.content", *STOPPED],
)
def test_where_words_belong_they_are_judged_not_lost(outcome: Outcome, name: str) -> None:
    assert outcome.rows[name].verdict.word == "caught"


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_stream_is_whole_for_openais_python_client(outcome: Outcome, name: str) -> None:
    read, row = outcome.stopped[name], outcome.rows[name]
    assert read.clean
    assert read.text.strip(), "a person is left with words"
    assert row.ending.finish_reasons == ("content_filter",)
    assert row.ending.usage
    assert row.ending.done
    assert not row.ending.error


@pytest.mark.parametrize("name", BY_NODE)
def test_a_stopped_stream_is_whole_for_openais_node_client(outcome: Outcome, name: str) -> None:
    read = outcome.by_node[name]
    assert read["finish"] == ["content_filter"]
    assert read["usage"]["total_tokens"] > 0
    assert PHRASES.spoken.forbidden not in read["text"]
    assert read["text"].strip()
    assert read["havengate"]["stage"] == "output"


def test_usage_comes_only_when_asked_for(outcome: Outcome) -> None:
    read = outcome.without_usage
    assert (read.parsed, read.finish_reason, read.usage) == (True, "content_filter", False)


def test_what_follows_the_finish_reason_is_not_heard(outcome: Outcome) -> None:
    row = outcome.rows["out.stream.after_finish"]
    assert (row.verdict.word, row.ending.finish_reasons, row.ending.done) == ("dropped", ("stop",), True)


def test_an_answer_that_must_not_stand_leaves_its_place(outcome: Outcome) -> None:
    (told,) = outcome.left_out
    assert [message["role"] for message in told["messages"]] == ["system", "user", "assistant", "user"]
    assert told["messages"][2]["content"] == LEFT_OUT
