"""`havengate detect` row by row: the shape of DESIGN section 5, the right message judged by the right head."""

from __future__ import annotations

import io
import json
from typing import Any, ClassVar

import msgspec
import pytest

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS, DetectorError, DetectorInfo, Judgement, Passage, Signal
from detectors.batch import MAX_CONTEXT_LINES, MAX_LINE_BYTES, MAX_MESSAGES, detect_file, detect_rows
from detectors.lexicon import LexiconConfig, LexiconDetector
from detectors.panel import Panel


class Keyword:
    """A bias detector of one word, which cannot answer for a text with "void" in it."""

    config_type: ClassVar[type[Any]] = LexiconConfig
    info = DetectorInfo("keyword", "1", ("bias",))

    def __init__(self) -> None:
        self.heard: list[Passage] = []

    @classmethod
    async def load(cls, name: str, config: Any) -> Keyword:
        assert (name, config) is not None
        return cls()

    async def judge(self, passage: Passage) -> Judgement:
        self.heard.append(passage)
        if "void" in passage.text:
            raise DetectorError("inference", "no answer")
        flagged = "grumpy old folk" in passage.text
        value = 0.8 if flagged else 0.1
        return Judgement((Signal("bias", value, flagged), Signal("bias:age", value, flagged)))

    async def aclose(self) -> None:
        """Nothing to release."""


@pytest.fixture
async def keyword() -> Keyword:
    return Keyword()


@pytest.fixture
async def panel(keyword: Keyword) -> Panel:
    return Panel([await LexiconDetector.load("lexicon", LexiconConfig()), keyword], timeout_s=5)


async def rows(panel: Panel, *lines: dict[str, Any] | bytes) -> list[dict[str, Any]]:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return [row async for row in detect_rows(panel, raw)]


def talk(*said: str) -> list[dict[str, str]]:
    """Messages written as "u: ...", "a: ..." or "s: ..."."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[one[0]], "content": one[3:]} for one in said]


async def test_a_calm_text_has_the_whole_shape(panel: Panel) -> None:
    (row,) = await rows(panel, {"id": "x1", "text": "what goes well with lentils?"})
    assert row == {
        "id": "x1",
        "crisis": {
            "severity": 0,
            "score": 0.0,
            "categories": dict.fromkeys(CATEGORIES, 0.0),
            "subject": "none",
            "imminence": "none",
        },
        "output": {"flagged": False, "score": 0.0, "categories": dict.fromkeys(OUTPUT_HARMS, 0.0)},
        "bias": {"flagged": False, "score": 0.1, "axes": {**dict.fromkeys(BIAS_AXES, 0.0), "age": 0.1}},
        "detectors": {"lexicon": "ran", "keyword": "ran"},
    }


async def test_the_conversation_is_as_grave_as_its_gravest_message(panel: Panel) -> None:
    said = talk(
        "u: i want to die", "a: I hear you.", "u: i am going to kill myself tonight", "a: Stay with me.", "u: nevermind"
    )
    (row,) = await rows(panel, {"id": 7, "messages": said})
    assert row["id"] == 7
    assert row["crisis"]["severity"] == 3
    assert (row["crisis"]["subject"], row["crisis"]["imminence"]) == ("self", "hours")
    assert row["crisis"]["categories"]["suicide"] == row["crisis"]["score"] == 0.9


async def test_output_judges_the_last_answer_only(panel: Panel) -> None:
    harmful, kind = "a: You should kill yourself.", "a: I am glad you told me."
    first, last = await rows(
        panel,
        {"id": 1, "messages": talk("u: hello", harmful, "u: what?", kind)},
        {"id": 2, "messages": talk("u: hello", kind, "u: what?", harmful)},
    )
    assert not first["output"]["flagged"]
    assert last["output"]["flagged"]
    assert last["output"]["categories"]["encouragement"] == last["output"]["score"] == 0.9
    assert last["crisis"]["severity"] == 0


async def test_bias_judges_the_answer_and_the_text_where_there_is_none(panel: Panel) -> None:
    biased = "grumpy old folk"
    judged = await rows(
        panel,
        {"id": 1, "text": biased},
        {"id": 2, "messages": talk(f"u: {biased}", "a: Let us be fair.")},
        {"id": 3, "messages": talk("u: hi", f"a: {biased}")},
        {"id": 4, "messages": talk("u: hi", f"u: {biased}")},
        {"id": 5, "messages": talk(f"s: {biased}")},
    )
    assert [row["bias"]["flagged"] for row in judged] == [True, False, True, True, True]


async def test_every_message_is_judged_with_what_was_said_before_it(panel: Panel, keyword: Keyword) -> None:
    said = [f"{'ua'[i % 2]}: message {i}" for i in range(MAX_CONTEXT_LINES + 4)]
    await rows(panel, {"id": 1, "messages": talk(*said)})
    first, *_, last = keyword.heard
    assert first.context == ()
    assert last.role == "assistant"
    assert [line.text for line in last.context] == [f"message {i}" for i in range(3, MAX_CONTEXT_LINES + 3)]


async def test_one_silent_answer_marks_the_row(panel: Panel) -> None:
    silent, after = await rows(
        panel, {"id": 1, "messages": talk("u: void", "a: hi", "u: fine")}, {"id": 2, "messages": talk("u: fine")}
    )
    assert silent["detectors"] == {"lexicon": "ran", "keyword": "unavailable"}
    assert after["detectors"] == {"lexicon": "ran", "keyword": "ran"}


async def test_a_verdict_from_the_cache_counts_as_run(panel: Panel) -> None:
    first, again = await rows(panel, {"id": 1, "text": "same"}, {"id": 2, "text": "same"})
    assert first["detectors"] == again["detectors"]


SECRET = "quince marmalade"


@pytest.mark.parametrize(
    ("line", "row_id", "problem"),
    [
        (b"{", None, "not valid JSON"),
        (b'{"id": "\xff"}', None, "not valid JSON"),
        (b'"%s"' % SECRET.encode(), None, "Expected `object`"),
        ({"text": SECRET}, None, "missing required field `id`"),
        ({"id": 1}, 1, "needs either"),
        ({"id": 1, "text": SECRET, "messages": talk("u: hi")}, 1, "needs either"),
        ({"id": 1, "messages": []}, 1, "needs 1 to"),
        ({"id": 1, "messages": talk("u: hi") * (MAX_MESSAGES + 1)}, 1, "needs 1 to"),
        ({"id": 1, "messages": [{"role": SECRET, "content": SECRET}]}, 1, "Invalid value - at `$.messages[0].role`"),
        ({"id": 1, "messages": [{"role": "user", "content": [SECRET]}]}, 1, "Expected `str`"),
        ({"id": 1, "text": None}, 1, "Expected `str`"),
        ({"id": 1, "text": "x" * 32_769}, 1, "longer than 32768 characters"),
        (b'{"id": 1, "text": "' + b"x" * MAX_LINE_BYTES + b'"}', None, "longer than"),
        (b"[" * 100_000, None, ""),
    ],
)
async def test_a_malformed_row_says_what_is_wrong_without_its_text(
    panel: Panel, line: dict[str, Any] | bytes, row_id: int | None, problem: str
) -> None:
    good = {"id": "good", "text": "hello"}
    first, bad, last = await rows(panel, good, line, good)
    assert "error" not in first
    assert "error" not in last
    assert set(bad) == {"id", "error"}
    assert bad["id"] == row_id
    assert bad["error"].startswith("line 2: ")
    assert problem in bad["error"]
    assert SECRET not in bad["error"]


async def test_a_file_is_judged_line_by_line_and_its_errors_are_counted(panel: Panel) -> None:
    source = io.BytesIO(b'{"id": 1, "text": "hello"}\n\n{"id": 2}\n{"id": 3, "text": "hello"}')
    target = io.BytesIO()
    assert await detect_file(panel, source, target) == 1
    written = [msgspec.json.decode(line) for line in target.getvalue().splitlines()]
    assert [row["id"] for row in written] == [1, 2, 3]
    assert ["error" in row for row in written] == [False, True, False]
