"""Make messages look like chat: typed plainly, with a slip, amid other talk, after other turns.  Pure given its rng."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from detectors.api import Line
from trainer.detectors.examples import Example

_SHORT: Final = (
    (re.compile(r"\byou\b"), "u"),
    (re.compile(r"\bbecause\b"), "bc"),
    (re.compile(r"\bgoing to\b"), "gonna"),
    (re.compile(r"\bwant to\b"), "wanna"),
    (re.compile(r"\bi don't know\b"), "idk"),
    (re.compile(r"\bright now\b"), "rn"),
    (re.compile(r"\bplease\b"), "pls"),
    (re.compile(r"\bpeople\b"), "ppl"),
    (re.compile(r"\btonight\b"), "2nite"),
)


@dataclass(frozen=True, slots=True)
class Pools:
    """Training texts to draw from; none of another split."""

    benign: Sequence[str]
    replies: Sequence[str]
    risky: Sequence[str]


def plain_typed(text: str, rng: random.Random) -> str:
    """Lower case, and by chance fewer stops and apostrophes, chat abbreviations, one slip of the finger."""
    typed = text.lower()
    if rng.random() < 0.5:
        typed = typed.replace("'", "")
    if rng.random() < 0.5:
        typed = re.sub(r"[.,;:!]+(?=\s|$)", "", typed)
    if rng.random() < 0.25:
        for pattern, short in _SHORT:
            typed = pattern.sub(short, typed)
    return slip(typed, rng) if rng.random() < 0.3 else typed


def slip(text: str, rng: random.Random) -> str:
    """Drop, double or swap one letter inside a word of four letters or more."""
    words = list(re.finditer(r"[a-z]{4,}", text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def amid(text: str, rng: random.Random, pools: Pools) -> str:
    """The message with harmless talk before or after it; its label does not change."""
    other = rng.choice(pools.benign)
    stop = "" if other[-1:] in ".!?" else rng.choice((".", ",", ""))
    return f"{other}{stop} {text}" if rng.random() < 0.6 else f"{text}{'' if text[-1:] in '.!?' else '.'} {other}"


def earlier_turns(rng: random.Random, pools: Pools, risky: bool) -> tuple[Line, ...]:
    """One to three turns that have nothing to do with the message."""
    said = rng.choice(pools.risky if risky else pools.benign)
    lines = (Line(role="user", text=said), Line(role="assistant", text=rng.choice(pools.replies)))
    if rng.random() < 0.4:
        return (Line(role="assistant", text=rng.choice(pools.replies)), *lines)
    return lines if rng.random() < 0.8 else lines[:1]


def vary(example: Example, rng: random.Random, pools: Pools) -> Example:
    """One variant of a training example."""
    message, text, context = "level:4" in example.targets, example.text, example.context
    if message and not context and example.source != "frames" and rng.random() < 0.2 and len(text) < 240:
        text = amid(text, rng, pools)
    if message and not context and rng.random() < 0.35:
        harmless = example.source in ("clinc150", "goemotions")
        context = earlier_turns(rng, pools, risky=harmless and rng.random() < 0.25)
    elif context and example.source != "frames" and rng.random() < 0.2:
        context = ()
    if rng.random() < (0.4 if message else 0.15):
        text = plain_typed(text, rng)
    return replace(example, text=text, context=context)
