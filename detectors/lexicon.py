"""The lexicon: a first net of explicit statements, read from a data file.  It may raise, it never clears.

Rules live in ``data/lexicon.toml`` and are compiled once at load, each checked against its own examples.  A passage is
matched in its canonical form, as typed, and in what `decodings` finds in it.

Crisis rules read what a person (or a client's system prompt) says; output rules read what the assistant says.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import msgspec

from detectors import canonical, decodings, rules
from detectors.api import DetectorError, DetectorInfo, Judgement, Passage, Signal, Span
from detectors.rules import (
    Lexicon,
    Rule,
    RuleSource,
    Verdict,
    View,
    compile_rules,
    decode_rules,
    fold,
    matches,
    scattered_of,
    together_of,
    view_of,
)

SCORE: Final = 0.9
"""Score of every match (calibration ``rule``): a confident statement that no fitted model stands behind."""
_PREVIOUS_CHARS: Final = 160


class LexiconConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``path``: a rule file in place of the bundled one.  ``sha256``: refuse to load a file with another digest."""

    path: str = ""
    sha256: str = ""


class LexiconDetector:
    """`Detector` over explicit statements (tasks crisis and output).  Holds only immutable state after load."""

    config_type: ClassVar[type[Any]] = LexiconConfig

    def __init__(self, info: DetectorInfo, lexicon: Lexicon) -> None:
        self._info = info
        self._lexicon = lexicon

    @classmethod
    async def load(cls, name: str, config: Any) -> Self:
        """Read, verify and compile the rule file; `DetectorError` ("load") names the rule that is wrong."""
        return await asyncio.to_thread(cls._load, name, config)

    @classmethod
    def _load(cls, name: str, config: LexiconConfig) -> Self:
        path = Path(config.path) if config.path else Path(__file__).with_name("data") / "lexicon.toml"
        modules = (__file__, canonical.__file__, decodings.__file__, rules.__file__)
        try:
            data = path.read_bytes()
            code = b"".join(Path(module).read_bytes() for module in modules)
        except OSError as error:
            raise DetectorError("load", f"lexicon: cannot read {error.filename}: {error.strerror}") from error
        if config.sha256 and hashlib.sha256(data).hexdigest() != config.sha256:
            raise DetectorError("load", f"lexicon: {path.name} does not have the digest that settings name")
        source = decode_rules(data)
        lexicon = compile_rules(source)
        for written, compiled in zip(source.rule, lexicon.rules, strict=True):
            _self_test(written, compiled)
        digest = hashlib.sha256(data + code).hexdigest()
        return cls(DetectorInfo(name, digest, ("crisis", "output"), cheap=True), lexicon)

    @property
    def info(self) -> DetectorInfo:
        return self._info

    async def judge(self, passage: Passage) -> Judgement:
        """Return a flagged signal for each label some rule supports; nothing at all where no rule speaks.

        Raises `DetectorError` ("inference") for a passage too long, or with too many encoded parts, to be read whole.
        """
        output = passage.role == "assistant"
        views = tuple(_views(passage))
        found: list[tuple[Verdict, list[Span]]] = []
        for rule in self._lexicon.rules:
            if rule.output == output:
                spans = [span for view in views for span in matches(rule, view)]
                if spans:
                    found.append((rule.verdict, spans))
        if self._confirms(passage, views[0]):
            found.append((self._lexicon.confirmed, [Span(0, len(passage.text))]))
        return _judgement(found)

    def _confirms(self, passage: Passage, view: View) -> bool:
        """A plain "yes" to the assistant's direct question about suicide is a statement."""
        if passage.role != "user" or not passage.context or passage.context[-1].role != "assistant":
            return False
        if not self._lexicon.answer.match(view.key):
            return False
        question, _ = fold(canonical.canonicalise(passage.context[-1].text).text)
        return self._lexicon.question.search(question) is not None

    async def aclose(self) -> None:
        """Nothing to release."""


def _views(passage: Passage) -> Iterator[View]:
    """The passage as every reader might take it; cheapest first."""
    text = passage.text
    form = canonical.canonicalise(text)
    if form.truncated:
        raise DetectorError("inference", f"lexicon: a passage of more than {canonical.MAX_CHARS} code points")
    yield view_of(form.text, form.to_raw)
    if form.changed:
        # As typed, but for the apostrophe: a denial ("don't") must be seen in both readings.
        yield view_of(text.replace("\u2019", "'"), Span)
    if (together := together_of(form.text, form.to_raw)) is not None:
        yield together
    if (scattered := scattered_of(form.text, form.to_raw)) is not None:
        yield scattered
    if not form.text.isascii() and (bare := canonical.without_accents(form.text)) != form.text:
        yield view_of(bare, form.to_raw)
    hidden = decodings.decodings(text)
    if len(hidden) == decodings.MAX_DECODINGS:
        raise DetectorError("inference", "lexicon: a passage with more encoded parts than are read")
    for found in hidden:
        inner = canonical.canonicalise(found.text)
        if inner.truncated:
            raise DetectorError("inference", "lexicon: an encoded part too long to be read whole")
        yield view_of(inner.text, _always(found.span))
    previous = next((line.text for line in reversed(passage.context) if line.role == passage.role), "")
    if previous and passage.role == "user":
        # A statement may be sent in pieces: only a match that reaches into this message counts.
        head = canonical.canonicalise(previous[-_PREVIOUS_CHARS:]).text + " "
        shift = len(head)
        yield view_of(
            head + form.text,
            lambda start, end: form.to_raw(max(start - shift, 0), max(end - shift, 0)),
            not_before=shift,
        )


def _always(span: Span) -> Callable[[int, int], Span]:
    return lambda _start, _end: span


def _self_test(source: RuleSource, rule: Rule) -> None:
    for expected, examples in ((True, source.yes), (False, source.no)):
        for number, example in enumerate(examples, 1):
            if any(matches(rule, view) for view in _views(Passage(example))) is not expected:
                kind = "yes" if expected else "no"
                raise DetectorError("load", f"lexicon: rule {rule.id!r} fails its own {kind!r} example {number}")


def _judgement(found: Sequence[tuple[Verdict, list[Span]]]) -> Judgement:
    if not found:
        return Judgement(())
    severity: dict[str, int] = {}
    spans: dict[str, set[Span]] = {}
    for verdict, places in found:
        heads = ("crisis",) if verdict.severity >= 2 else ("output",) if verdict.severity == 0 else ()
        for label in (*heads, *verdict.labels):
            severity[label] = max(verdict.severity, severity.get(label, 0))
            spans.setdefault(label, set()).update(places)
    leader = max((verdict for verdict, _ in found), key=lambda verdict: verdict.severity)
    signals = tuple(
        Signal(
            label=label,
            score=SCORE,
            flagged=True,
            severity=severity[label],
            spans=tuple(sorted(spans[label], key=lambda span: (span.start, span.end))),
            calibration="rule",
        )
        for label in severity
    )
    if leader.severity == 0:
        return Judgement(signals)
    return Judgement(signals, subject=leader.subject, imminence=leader.imminence, time=leader.time)
