"""Own writing for the plainest cases: short answers that mean nothing without their question, and one-line statements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from detectors.api import Line
from trainer.detectors.examples import Example, crisis_targets, facet_targets
from trainer.detectors.sources import clean, key, read_rows

FRAMES: Final = Path(__file__).parent / "frames.json"
STATEMENTS: Final = Path(__file__).parent / "statements.jsonl"


def read_frames() -> Iterator[Example]:
    """Every question with every answer.  "No" rules out S2 and up only: a denial clears nobody."""
    frames = json.loads(FRAMES.read_text("utf-8"))
    for question in frames["questions"]:
        for answer in frames["yes"]:
            targets = {
                **crisis_targets(question["severity"], question["categories"]),
                **facet_targets("self", question["imminence"], "ongoing"),
            }
            yield _frame(question["text"], answer, targets)
        for answer in frames["no"]:
            yield _frame(question["text"], answer, crisis_targets(0, (), known_from=2))
    for plain in frames["plain"]:
        for answer in (*frames["yes"], *frames["no"]):
            yield _frame(plain, answer, {**crisis_targets(0, ()), **facet_targets("none", "none", "none")})


def read_statements() -> Iterator[Example]:
    """The plainest crises and the plainest look-alikes.  Anchors for training: always on the training side."""
    for row in read_rows(STATEMENTS):
        text = clean(row["text"])
        yield Example(
            id=key("statement", text),
            source="statements",
            text=text,
            targets=crisis_targets(row["severity"], row["categories"]),
            keys=(key("text", text.casefold()),),
        )


def _frame(question: str, answer: str, targets: dict[str, float]) -> Example:
    return Example(
        id=key("frame", question, answer),
        source="frames",
        text=clean(answer),
        context=(Line(role="assistant", text=question),),
        targets=targets,
        keys=(key("frame", question),),
        weight=0.5,
    )
