"""The data set of one fit: which files, how many rows of each, split, and what was read (hashes)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.detectors import sources
from trainer.detectors.augment import Pools, vary
from trainer.detectors.examples import Example
from trainer.detectors.frames import FRAMES, STATEMENTS, read_frames, read_statements
from trainer.detectors.split import assign

CORPUS: Final = Path(__file__).parent / "corpus"
VALIDATION: Final = 0.12
TEST: Final = 0.15
"""Shares of the groups; the rest trains."""
HELD_OUT_CAP: Final = 700
"""Rows of one public source in the validation and in the test split."""


@dataclass(frozen=True, slots=True)
class Source:
    """One public file: its reader, and how many training rows one epoch draws from it."""

    name: str
    """The readers' ``Example.source``."""
    path: str
    read: Callable[[Path], Iterable[Example]]
    rows: int


PUBLIC: Final = (
    Source("clinc150", "crisis/open/clinc150.csv.gz", sources.clinc, 1200),
    Source("goemotions", "crisis/open/goemotions.csv.gz", sources.goemotions, 2200),
    Source("sad", "crisis/open/sad.csv.gz", sources.sad, 1200),
    Source("counselchat_questions", "crisis/open/counselchat_questions.csv.gz", sources.counselchat, 300),
    Source("toxigen", "bias/open/toxigen_human_safenlp.jsonl.gz", sources.toxigen, 2000),
    Source("emgsd", "bias/open/emgsd_train.jsonl.gz", sources.emgsd, 500),
    Source("redditbias", "bias/open/redditbias.jsonl.gz", sources.redditbias, 300),
    Source("edos", "bias/open/edos_sexism_train_dev.jsonl.gz", sources.edos, 300),
    Source("crows", "bias/open/crows_pairs.jsonl.gz", sources.crows, 300),
    Source("bold", "bias/open/bold_neutral.jsonl.gz", sources.bold, 500),
    Source("identity-templates", "bias/open/identity_sentence_templates.jsonl.gz", sources.identity_templates, 200),
    Source("vignettes", "bias/open/therapist_llm_stigma_vignettes.jsonl.gz", sources.vignettes, 200),
    Source("diasafety", "bias/open/diasafety_train_val.jsonl.gz", sources.diasafety, 1800),
    Source("interjections", "bias/open/therapist_llm_interjections.jsonl.gz", sources.interjections, 500),
)

COPIES: Final = {"own": 3, "corpus-messages": 3, "corpus-replies": 3, "frames": 1, "statements": 3}
"""Variants of each row of our own writing in one epoch."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All examples with their split, and the sha256 of every file read (by path inside the data folder)."""

    examples: tuple[Example, ...]
    hashes: dict[str, str]
    seed: int

    def split(self, name: str) -> list[Example]:
        return [example for example in self.examples if example.split == name]


def load(data: Path, seed: int, limit: int | None = None) -> Dataset:
    """Read every source under ``data`` and our own corpus.  ``limit`` keeps that many rows per source (smoke runs).

    Raises `OSError` when a file is missing.
    """
    paths = [*sorted((data / "own").glob("*.jsonl.gz")), *sorted(CORPUS.glob("messages-*.jsonl"))]
    ours = [example for path in paths for example in sources.own_messages(path)]
    replies = sorted(CORPUS.glob("replies-*.jsonl"))
    ours += [example for path in replies for example in sources.own_replies(path)]
    examples = assign([*_limited(ours, limit), *_limited(read_frames(), limit)], seed, VALIDATION, TEST)
    held_out = {key for example in examples if example.split != "train" for key in example.keys}
    examples += [example for example in _limited(read_statements(), limit) if not held_out & set(example.keys)]
    for source in PUBLIC:
        found = assign(_limited(source.read(data / source.path), limit), seed, VALIDATION, TEST)
        examples += _held_out_capped(found, seed)
    public = [data / source.path for source in PUBLIC]
    hashes = {
        (f"corpus/{path.name}" if CORPUS in path.parents else path.name): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*paths, *replies, FRAMES, STATEMENTS, *public)
    }
    return Dataset(tuple(examples), hashes, seed)


def epoch(dataset: Dataset, number: int) -> list[Example]:
    """The varied, shuffled training rows of one epoch.  The same seed and number give the same rows."""
    rng = random.Random(f"{dataset.seed}:{number}")
    train = dataset.split("train")
    pools = Pools(
        benign=[e.text for e in train if e.source in ("clinc150", "goemotions") and len(e.text) < 120],
        replies=[e.text for e in train if e.targets.get("output") == 0.0 and len(e.text) < 300],
        risky=[e.text for e in train if e.targets.get("level:2") == 1.0 and e.source != "frames"],
    )
    by_source: dict[str, list[Example]] = {}
    for example in train:
        by_source.setdefault(example.source, []).append(example)
    caps = {source.name: source.rows for source in PUBLIC}
    rows: list[Example] = []
    for name, found in sorted(by_source.items()):
        copies = COPIES.get(name)
        rows += found * copies if copies else rng.sample(found, min(len(found), caps.get(name, len(found))))
    varied = [vary(row, rng, pools) for row in rows]
    rng.shuffle(varied)
    return varied


def _limited(examples: Iterable[Example], limit: int | None) -> Iterator[Example]:
    for index, example in enumerate(examples):
        if limit is not None and index >= limit:
            return
        yield example


def _held_out_capped(examples: Sequence[Example], seed: int) -> list[Example]:
    kept: list[Example] = []
    for split in ("train", "validation", "test"):
        rows = [example for example in examples if example.split == split]
        if split != "train" and len(rows) > HELD_OUT_CAP:
            rows = random.Random(f"{seed}:{split}").sample(rows, HELD_OUT_CAP)
        kept += rows
    return kept
