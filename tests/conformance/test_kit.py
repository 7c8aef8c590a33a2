"""The kit itself: it sees what gets through, and says so in the right word."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance import kit
from tests.conformance.case import Phrases
from tests.conformance.reading import Ending, Heard, Reply, ending, heard, told
from tests.conformance.upstream import MODEL, Upstream
from tests.conformance.verdict import Run, Word, judge
from tests.support.openai_server import Behaviour, StandInServer

SENTENCE = "the soup is cold"
GOOD = Run(200, called=True, told=False, heard=Heard(False, False), ending=Ending(("stop",)))
THROUGH = replace(GOOD, told=True, heard=Heard(True, False))
REFUSED = replace(GOOD, status=400, called=False, ending=Ending(error=True))
ECHOED = replace(REFUSED, heard=Heard(False, True))


async def test_without_a_gateway_everything_leaks() -> None:
    """The model's server asked directly: a case that would not see the sentence there could see it nowhere."""
    async with Upstream() as upstream:
        rows = await kit.run(kit.Target(f"{upstream.url}/v1", "none", MODEL), upstream, Phrases(), kit.CASES + kit.HARD)
    words = {row.case.id: row.verdict.word for row in rows}
    assert len(words) == len(rows) > 150
    assert words.pop("in.user.twice_first") == "dropped", "the parser of this server keeps the last of two"
    assert {name for name, word in words.items() if word != "leaked"} == set()
    assert not any(row.verdict.false_alarm for row in rows)


def test_the_command_says_what_leaked(tmp_path: Path, unused_tcp_port: int) -> None:
    """Its own model stands for the gateway, as above."""
    report = tmp_path / "report.json"
    where = ["--base-url", f"http://127.0.0.1:{unused_tcp_port}/v1", "--upstream-port", str(unused_tcp_port)]
    options = ["--model", MODEL, "--forbidden", SENTENCE, "--output", str(report)]
    command = [sys.executable, "-m", "tests.conformance", *where, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    told = json.loads(report.read_text(encoding="utf-8"))
    assert told["counts"] == {"dropped": 1, "leaked": told["n"] - 1}
    assert f"{told['n']} cases" in done.stdout


def test_the_first_table_is_whole() -> None:
    first = [case.side for case in kit.CASES if case.group == "first"]
    assert (first.count("in"), first.count("out")) == (22, 16)


@pytest.mark.parametrize(
    ("control", "run", "word_in", "word_out"),
    [
        (THROUGH, THROUGH, "leaked", "leaked"),
        (THROUGH, GOOD, "caught", "caught"),
        (THROUGH, REFUSED, "caught", "caught"),
        (THROUGH, ECHOED, "caught", "caught"),
        (ECHOED, ECHOED, "refused", "leaked"),
        (REFUSED, REFUSED, "refused", "refused"),
        (GOOD, GOOD, "dropped", "dropped"),
        (GOOD, REFUSED, "caught", "caught"),
        (THROUGH, replace(GOOD, status=500), "error", "error"),
        (THROUGH, replace(GOOD, status=0), "error", "error"),
        (THROUGH, replace(THROUGH, status=500), "leaked", "leaked"),
        (replace(GOOD, called=False), GOOD, "caught", "caught"),
    ],
)
def test_two_runs_make_a_word(control: Run, run: Run, word_in: Word, word_out: Word) -> None:
    assert judge("in", control, run).word == word_in
    assert judge("out", control, run).word == word_out


def test_what_stops_everything_is_a_false_alarm() -> None:
    assert judge("in", replace(GOOD, called=False), replace(GOOD, called=False)).false_alarm
    assert judge("out", replace(GOOD, ending=Ending(("content_filter",))), GOOD).false_alarm
    assert not judge("in", REFUSED, REFUSED).false_alarm


def test_an_error_that_repeats_the_sentence_is_noted() -> None:
    assert judge("in", THROUGH, ECHOED).echoed
    assert not judge("in", THROUGH, REFUSED).echoed
    assert not judge("out", ECHOED, ECHOED).echoed, "that one is a leak"


def streamed(*events: object) -> Reply:
    raw = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return Reply(200, raw, {"content-type": "text/event-stream"})


def delta(text: str, index: int = 0, field: str = "content") -> dict[str, object]:
    return {"choices": [{"index": index, "delta": {field: text}, "finish_reason": None}]}


@pytest.mark.parametrize("cut", range(1, len(SENTENCE)))
def test_a_sentence_is_heard_wherever_a_stream_cuts_it(cut: int) -> None:
    assert heard(streamed(delta(SENTENCE[:cut]), delta(SENTENCE[cut:])), SENTENCE) == Heard(True, False)


def test_pieces_of_two_choices_or_fields_make_no_sentence() -> None:
    half = len(SENTENCE) // 2
    apart = streamed(delta(SENTENCE[:half]), delta(SENTENCE[half:], index=1))
    assert heard(apart, SENTENCE) == Heard(False, False)
    apart = streamed(delta(SENTENCE[:half]), delta(SENTENCE[half:], field="reasoning"))
    assert heard(apart, SENTENCE) == Heard(False, False)


def test_most_of_a_sentence_is_the_sentence() -> None:
    assert heard(streamed(delta(SENTENCE[:13])), SENTENCE).in_answer
    assert not heard(streamed(delta(SENTENCE[:12])), SENTENCE).in_answer


@pytest.mark.parametrize("raw", [SENTENCE.encode(), SENTENCE.upper().encode(), json.dumps({"x": [SENTENCE]}).encode()])
def test_a_sentence_is_heard_in_any_body(raw: bytes) -> None:
    assert heard(Reply(200, raw, {}), SENTENCE) == Heard(True, False)
    assert heard(Reply(500, raw, {}), SENTENCE) == Heard(False, True)


def test_a_sentence_is_heard_in_a_header_and_in_an_error_frame() -> None:
    assert heard(Reply(200, b"{}", {"x-note": SENTENCE}), SENTENCE).in_answer
    assert heard(streamed({"error": {"message": SENTENCE}}), SENTENCE) == Heard(False, True)


def test_a_model_is_told_in_keys_and_over_parts() -> None:
    parts = [{"type": "text", "text": SENTENCE[:5]}, {"type": "text", "text": SENTENCE[5:]}]
    assert told([{"messages": [{"content": parts}]}], SENTENCE)
    assert told([{"logit_bias": {SENTENCE: 1}}], SENTENCE)
    assert not told([{"messages": [{"content": SENTENCE[:-1]}]}], SENTENCE)


def test_an_ending_is_read_by_the_letter() -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}
    usage = {"choices": [], "usage": {"total_tokens": 3}}
    whole = streamed(delta("x"), last, usage)
    assert ending(replace(whole, raw=whole.raw + b"data: [DONE]\n\n")) == Ending(("content_filter",), True, True, False)
    assert ending(streamed(delta("x"), {"error": {"message": "no"}})) == Ending((), False, False, True)


async def test_a_gateway_that_is_not_there_is_an_error() -> None:
    async with Upstream() as upstream:
        target = kit.Target("http://127.0.0.1:9/v1", "none", MODEL)
        (row,) = await kit.run(target, upstream, Phrases(), kit.CASES[:1])
    assert (row.verdict.word, row.status) == ("error", 0)


async def test_an_answer_that_is_cut_is_read_as_far_as_it_came() -> None:
    """A server whose connection breaks in the middle of a stream: what was said before counts."""
    async with Upstream() as upstream, StandInServer() as server:
        server.behave = Behaviour(words=tuple(Phrases().spoken.forbidden), die_after=36)
        target = kit.Target(f"{server.url}/v1", "none", MODEL)
        (row,) = await kit.run(target, upstream, Phrases(), (replace(kit.CASES[-1], stream=True),))
    assert row.verdict.word == "leaked"
    assert (row.status, row.ending.done, row.ending.error) == (200, False, False)
