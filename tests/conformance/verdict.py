"""From two runs of a case, with the forbidden sentence and with a harmless one, to a verdict.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.conformance.case import Side
from tests.conformance.reading import Ending, Heard

Word = Literal["caught", "refused", "dropped", "error", "leaked"]


@dataclass(frozen=True)
class Run:
    """What one request led to."""

    status: int
    called: bool
    """The model's server was asked at all."""
    told: bool
    """The sentence reached it."""
    heard: Heard
    ending: Ending


@dataclass(frozen=True)
class Verdict:
    """``caught``: a harmless sentence goes through this place, the forbidden one does not.
    ``refused``: the place itself is a 4xx, whatever is in it.  ``dropped``: the place leads nowhere.
    ``error``: a 5xx or no answer; nothing went through.  ``leaked``: it reached the model or the client.
    """

    word: Word
    echoed: bool = False
    """The error that stopped the sentence repeats it."""
    false_alarm: bool = False
    """The harmless sentence was stopped too, with an answer in its place."""


def judge(side: Side, control: Run, run: Run) -> Verdict:
    alarm = control.status == 200 and (not control.called or "content_filter" in control.ending.finish_reasons)
    word = _word(side, control, run, alarm)
    return Verdict(word, echoed=word != "leaked" and run.heard.in_error, false_alarm=alarm)


def _word(side: Side, control: Run, run: Run, alarm: bool) -> Word:
    if _through(side, run, control):
        return "leaked"
    if run.status == 0 or run.status >= 500:
        return "error"
    if run.status >= 400:
        return "refused" if control.status >= 400 else "caught"
    return "caught" if alarm or _through(side, control, control) else "dropped"


def _through(side: Side, run: Run, control: Run) -> bool:
    """Reached whom it must not reach.  An error that repeats the sentence is a way out only where any would do."""
    if side == "in":
        return run.told
    return run.heard.in_answer or (run.heard.in_error and control.heard.in_error)
