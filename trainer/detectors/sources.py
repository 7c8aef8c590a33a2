"""Readers of the data: our own writing, and the `open` folders (licences that allow a shipped model).

Each reader turns one file into examples, keeps to the labels the file really carries, and never prints a row.
Files and their licences are described in the data folder's own READMEs.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from detectors.api import Line
from detectors.canonical import canonicalise
from trainer.detectors.examples import (
    Example,
    bias_targets,
    crisis_targets,
    facet_targets,
    output_targets,
)

RISK_WORDS: Final = re.compile(
    r"suicid|kill(ing)? (my|him|her|them|your)sel|\bkms\b|unaliv|self.?harm|cut(ting)? my|want(ed)? to die|wanna die|"
    r"end (it all|my life|my own)|hang(ing|ed)? (my|him|her)self|overdos|\bdie\b|dying|dead|death|hurt(ing)? (my|him|her)sel|"
    r"no (point|reason) (in|to) liv|give up|giving up|hopeless|worthless|can'?t go on|not be here|hate myself|abus|"
    r"rape|murder|kill|\bshoot|weapon|beat(ing|s)? (me|her|him)|hit(s|ting)? me|starv|purg|voices|psycho",
    re.IGNORECASE,
)
"""Genre negatives that hold such wording are left out: nobody labelled them for risk."""


EXPLICIT_WISH: Final = re.compile(
    r"\bi('?m| am)?( really| just| so| only)? ?(want|wanna|need|going|gonna|plan|planning)( to)? (kill myself|end my life|"
    r"take my (own )?life|hang myself|commit suicide)\b",
    re.IGNORECASE,
)
"""A wish to kill oneself said outright.  Where a writer gave it severity 2 for want of a plan, this project says 3:
what it decides is whether a person is paged, and a bare sentence is no ground to wait for the plan."""


_FILLERS: Final[Mapping[str, Sequence[str]]] = {
    "COLOUR": ("blue", "white", "green", "brown"),
    "DAY": ("Monday", "Friday", "Saturday", "Tuesday"),
    "DETAIL": ("the part about the weather", "the long bit", "that line"),
    "DOSE": ("two", "forty", "a handful", "twice that", "the lot", "10 mg", "half of one"),
    "MEDICINE": ("your tablets", "the syrup", "the capsules"),
    "METHOD": ("that way", "the usual way", "doing it slowly", "the second one", "the quiet way", "this"),
    "NAME": ("Sam", "Priya", "Tom", "Ana", "Mr Okoro"),
    "NUMBER": ("six", "12", "thirty", "3", "a few"),
    "OBJECT": ("a cord", "the thing in the drawer", "a phone", "the bag", "a small box"),
    "PLACE": ("the old quarry", "the car park", "the library", "the station", "upstairs"),
    "PURPOSE": ("work", "the trip"),
    "REASON": ("the noise", "the money"),
    "SIGN": ("a bird", "the clock"),
    "SUBSTANCE": ("those tablets", "the syrup", "that stuff", "the powder", "the strong ones", "it"),
    "TIME": ("an hour", "ten", "six o'clock", "twenty minutes", "a day"),
}
"""Harmless words for the bracketed placeholders of our own replies, lest the bracket itself be learned."""


def fill(text: str, seed: str) -> str:
    """Put a word for every known placeholder; the same seed puts the same words."""
    rng = random.Random(seed)

    def word(match: re.Match[str]) -> str:
        return rng.choice(_FILLERS.get(match.group(1), (match.group(),)))

    return re.sub(r"\[([A-Z]+)\]", word, text)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines or CSV file, gzip-compressed or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8")
    if ".csv" in path.name:
        return list(csv.DictReader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def key(*parts: object) -> str:
    """A short stable name for a group, without its text."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def clean(text: str) -> str:
    """What the served model reads: the canonical text."""
    return canonicalise(text).text


def own_messages(path: Path) -> Iterator[Example]:
    """Labelled messages of our own writing (``own/`` and ``messages-*.jsonl``)."""
    for row in read_rows(path):
        text, family = clean(row["text"]), row.get("family") or row["id"]
        severity = message_severity(row)
        prefix = row["id"].rstrip("0123456789")
        yield Example(
            id=row["id"],
            source="own" if path.suffix == ".gz" else "corpus-messages",
            text=text,
            context=_lines(row.get("context", ())),
            targets={
                **crisis_targets(severity, row["categories"]),
                **facet_targets(row["subject"], row["imminence"], row["time"]),
            },
            keys=(key("family", prefix, family), key("id", row["id"]), key("text", text.casefold()), *_pair(row)),
            tags=frozenset({f"severity:{severity}", f"slice:{path.name.split('.')[0]}"}),
        )


def message_severity(row: Mapping[str, Any]) -> int:
    """The writer's severity, raised to 3 for an outright first-person wish (`EXPLICIT_WISH`)."""
    severity = int(row["severity"])
    said_outright = severity == 2 and row["subject"] == "self" and EXPLICIT_WISH.search(row["text"])
    return 3 if said_outright else severity


def own_replies(path: Path) -> Iterator[Example]:
    """Labelled assistant replies of our own writing (``replies-*.jsonl``).  A biased reply without a harm label was not
    looked at for harm, so its harm stays unknown."""
    for row in read_rows(path):
        text = clean(fill(row["text"], row["id"]))
        judged_for_harm = bool(row["output"]) or not row["bias"]
        yield Example(
            id=row["id"],
            source="corpus-replies",
            text=text,
            context=_lines(row.get("context", ())),
            targets={
                **(output_targets(bool(row["output"]), row["output"]) if judged_for_harm else {}),
                **bias_targets(bool(row["bias"]), row["bias"]),
            },
            keys=(
                key("family", path.name, row.get("family") or row["id"]),
                key("id", row["id"]),
                key("text", text.casefold()),
                *_pair(row),
            ),
        )


def _pair(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (key("id", row["pair"]),) if row.get("pair") else ()


def _lines(rows: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
    return tuple(Line(role=row["role"], text=row["text"]) for row in rows)


def _negative(path: Path, rows: Iterable[tuple[str, str]], weight: float, known_from: int = 1) -> Iterator[Example]:
    """Genre negatives for the crisis head: (group, text) rows without risk wording."""
    name = path.name.split(".")[0]
    for index, (group, text) in enumerate(rows):
        if 2 <= len(text) <= 600 and not RISK_WORDS.search(text):
            message = clean(text)
            yield Example(
                id=f"{name}-{index}",
                source=name,
                text=message,
                targets=crisis_targets(0, (), known_from),
                keys=(key(name, group), key("text", message.casefold())),
                weight=weight,
            )


def clinc(path: Path) -> Iterator[Example]:
    """Assistant requests: neither crisis nor bias."""
    rows = ((row["text"], row["text"]) for row in read_rows(path))
    for example in _negative(path, rows, 0.6):
        yield replace(example, targets={**example.targets, **bias_targets(False, ())})


def goemotions(path: Path) -> Iterator[Example]:
    """General talk with every emotion; grief, sadness and fear included."""
    for row, example in _zip_negative(path, 0.6):
        yield replace(example, tags=frozenset({"neutral" if row["labels"] == "neutral" else "emotion"}))


def _zip_negative(path: Path, weight: float) -> Iterator[tuple[dict[str, Any], Example]]:
    for row in read_rows(path):
        for example in _negative(path, [(row["text"], row["text"])], weight):
            yield row, replace(example, id=key(path.name, row["text"]))


def sad(path: Path) -> Iterator[Example]:
    """Everyday stressors.  Where raters called one severe, only S2 and up are ruled out."""
    for row in read_rows(path):
        severe = float(row["avg_severity"] or 0) >= 6.0
        for example in _negative(path, [(row["text"], row["text"])], 0.5, known_from=2 if severe else 1):
            yield replace(example, id=key("sad", row["text"]))


def counselchat(path: Path) -> Iterator[Example]:
    """Questions to counsellors without risk wording: distress, so only S2 and up are ruled out."""
    yield from _negative(path, ((row["text"][:400], row["text"][:400]) for row in read_rows(path)), 0.5, known_from=2)


_TOXIGEN_AXES: Final[Mapping[str, str]] = {
    "mental dis": "disability", "physical dis": "disability", "women": "gender", "lgbtq": "sexual_orientation",
    "black": "race_ethnicity", "asian": "race_ethnicity", "chinese": "nationality_culture", "jewish": "religion",
    "muslim": "religion", "native-american": "race_ethnicity", "mexican": "nationality_culture",
    "latino": "race_ethnicity", "middle-eastern": "nationality_culture",
}  # fmt: skip


def toxigen(path: Path) -> Iterator[Example]:
    """Implicit hate and neutral statements about groups, rated by people."""
    for row in read_rows(path):
        hate = row["label"] == "hate"
        yield _biased("toxigen", row["text"], hate, {_TOXIGEN_AXES[group] for group in row["target_groups"]}, 0.7)


_EMGSD_AXES: Final[Mapping[str, str]] = {
    "race": "race_ethnicity", "race-color": "race_ethnicity", "lgbtq+": "sexual_orientation",
    "nationality": "nationality_culture", "gender": "gender", "religion": "religion",
}  # fmt: skip


def emgsd(path: Path) -> Iterator[Example]:
    """Crowd-written stereotypes.  Rows of unknown origin and nonsense ("unrelated") rows are left out."""
    for row in read_rows(path):
        axis = _EMGSD_AXES.get(row["group_type"])
        if row["source"] and axis and row["category"] != "unrelated":
            yield _biased("emgsd", row["text"], str(row["label"]) == "1", {axis}, 0.5, row["target"])


_REDDIT_AXES: Final[Mapping[str, str]] = {
    "gender_female": "gender", "race_black": "race_ethnicity", "religion1_jews": "religion",
    "orientation_lgbtq": "sexual_orientation", "religion2_muslims": "religion",
}  # fmt: skip


def redditbias(path: Path) -> Iterator[Example]:
    for row in read_rows(path):
        yield _biased("redditbias", row["comment"], str(row["bias_sent"]) == "1", {_REDDIT_AXES[row["group"]]}, 0.5)


def edos(path: Path) -> Iterator[Example]:
    for row in read_rows(path):
        yield _biased("edos", row["text"], row["label_sexist"] == "sexist", {"gender"}, 0.4)


def crows(path: Path) -> Iterator[Example]:
    """Only the axes that few other sets cover, and only the stereotyping side of each pair."""
    axes = {"socioeconomic": "socioeconomic_status", "age": "age", "disability": "disability",
            "physical-appearance": "appearance"}  # fmt: skip
    for row in read_rows(path):
        axis = axes.get(row["bias_type"])
        if axis and row["stereo_antistereo"] == "stereo":
            yield _biased("crows", row["sent_more"], True, {axis}, 0.5)


def bold(path: Path) -> Iterator[Example]:
    """Encyclopaedic sentences that name identities: not biased."""
    for row in read_rows(path):
        if row["kind"] == "wikipedia_sentence" and 30 <= len(row["text"]) <= 240:
            yield _biased("bold", row["text"], False, (), 0.5, row["entity"])


def identity_templates(path: Path) -> Iterator[Example]:
    """Synthetic sentences that name an identity and are not toxic: against identity-term shortcuts."""
    for row in read_rows(path):
        if row["toxicity"] == "nontoxic":
            yield _biased("identity-templates", row["phrase"], False, (), 0.4)


def vignettes(path: Path) -> Iterator[Example]:
    """Models' answers to questions of social distance and danger; the answer is put into a sentence with its question."""
    for row in read_rows(path):
        stigma, answer = str(row["code"]).startswith("1"), row["answer"]
        if row["condition"] == "daily troubles" or not answer:
            continue
        question = row["question_only"].removeprefix("How ").split("?")[0]
        subject = question.replace("willing would you be to have the person described in the vignette", "").replace(
            "likely is it that the person in the vignette would", ""
        )
        sentence = f"A person with {row['condition']}:{subject}? {answer}."
        context = (Line(role="user", text=row["vignette"][-240:]),)
        yield _biased("vignettes", sentence, stigma, {"mental_illness_stigma"}, 0.4, subject, context)


def diasafety(path: Path) -> Iterator[Example]:
    """Replies in their context.  Biased opinion feeds the bias flag; ignored risk and sound replies feed the output flag."""
    for index, row in enumerate(read_rows(path)):
        unsafe = row["label"] == "Unsafe"
        targets: dict[str, float] = {}
        if row["category"] == "Biased Opinion":
            targets = bias_targets(unsafe, None)
        elif row["category"] == "Risk Ignorance":
            targets = output_targets(unsafe, None)
        elif row["category"] == "Unauthorized Expertise" and not unsafe:
            targets = {**output_targets(False, ()), **bias_targets(False, ())}
        if targets and len(row["response"]) <= 500:
            yield Example(
                id=f"diasafety-{index}",
                source="diasafety",
                text=clean(row["response"]),
                context=(Line(role="user", text=row["context"]),),
                targets=targets,
                keys=(key("diasafety", row["context"].casefold()),),
                weight=0.5,
                tags=frozenset({row["category"]}),
            )


_DELUSIONS: Final = frozenset({"dead", "stalking", "god"})
_METHODS: Final = frozenset({"bridge", "jump"})


def interjections(path: Path) -> Iterator[Example]:
    """Replies of models and therapists to delusion and veiled suicide prompts, judged appropriate or not."""
    for index, row in enumerate(read_rows(path)):
        prompt = row["id"]
        if prompt not in _DELUSIONS | _METHODS:
            continue
        sound = row["correct_response"] == "True"
        harm = "delusion_affirming" if prompt in _DELUSIONS else "method_information"
        text = clean(row["model_response"][:700])
        if text:
            yield Example(
                id=f"interjections-{index}",
                source="interjections",
                text=text,
                context=(Line(role="user", text=row["interjection"][-300:]),),
                targets=output_targets(not sound, () if sound else (harm,)),
                keys=(key("interjections", row["transcript_index"]),),
                weight=0.5,
            )


def _biased(
    source: str,
    text: str,
    flag: bool,
    axes: Iterable[str],
    weight: float,
    group: str = "",
    context: tuple[Line, ...] = (),
) -> Example:
    """A statement for the bias head."""
    message = clean(text[:500])
    return Example(
        id=key(source, text, group),
        source=source,
        text=message,
        context=context,
        targets=bias_targets(flag, axes if flag else ()),
        keys=(key(source, group or message.casefold()),),
        weight=weight,
    )
