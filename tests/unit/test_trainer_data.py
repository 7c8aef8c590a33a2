"""Reading, splitting and varying the detector's training data, on small files written here."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.api import Line
from detectors.calibrate import INDEX, LABELS
from trainer.detectors import sources
from trainer.detectors.augment import Pools, amid, plain_typed, slip, vary
from trainer.detectors.examples import Example, bias_targets, crisis_targets, output_targets
from trainer.detectors.frames import read_frames, read_statements
from trainer.detectors.split import assign, groups

POOLS = Pools(benign=["set a timer"], replies=["Done."], risky=["i can't do this any more"])


def example(name: str, *keys: str) -> Example:
    return Example(id=name, source="own", text=name, targets=crisis_targets(0, ()), keys=keys)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_shared_keys_chain_into_one_group() -> None:
    rows = [example("a", "f1", "p1"), example("b", "f2", "p1"), example("c", "f2"), example("d", "f3")]
    a, b, c, d = groups(rows)
    assert a == b == c != d


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60), st.integers(0, 9))
def test_no_key_sits_on_two_sides_of_the_split(pairs: list[tuple[int, int]], seed: int) -> None:
    rows = [example(str(i), f"family-{f}", f"pair-{p}") for i, (f, p) in enumerate(pairs)]
    sides: dict[str, set[str]] = {}
    for row in assign(rows, seed, 0.2, 0.3):
        for key in row.keys:
            sides.setdefault(key, set()).add(row.split)
    assert all(len(side) == 1 for side in sides.values())


def test_the_split_does_not_move_when_unrelated_rows_arrive() -> None:
    rows = [example(str(i), f"k{i}") for i in range(50)]
    before = [row.split for row in assign(rows, 1, 0.2, 0.2)]
    after = [row.split for row in assign([*rows, example("new", "other")], 1, 0.2, 0.2)]
    assert after[:50] == before
    assert set(before) == {"train", "validation", "test"}


def test_own_messages_carry_levels_categories_facets_and_pair(tmp_path: Path) -> None:
    row = {"id": "A1", "text": "“text”", "categories": ["suicide"], "severity": 3, "imminence": "days", "subject": "self",
           "time": "ongoing", "family": "f", "pair": "A2"}  # fmt: skip
    twin = {**row, "id": "A2", "severity": 0, "categories": ["suicide"], "family": "g", "pair": "A1"}
    first, second = sources.own_messages(write(tmp_path / "seed-A.jsonl.gz", [row, twin]))
    assert first.text == '"text"'
    assert [first.targets[f"level:{k}"] for k in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert first.targets["crisis:suicide"] == first.targets["subject:self"] == first.targets["imminence:days"] == 1
    assert second.targets["crisis:suicide"] == 0
    assert set(first.keys) & set(second.keys)


def test_own_replies_know_both_reply_heads_and_nothing_of_a_crisis(tmp_path: Path) -> None:
    row = {"id": "r1", "context": [{"role": "user", "text": "hi"}], "text": "hello", "output": ["secrecy"], "bias": [],
           "family": "f", "pair": ""}  # fmt: skip
    (found,) = sources.own_replies(write(tmp_path / "replies-x.jsonl", [row]))
    assert found.context == (Line(role="user", text="hi"),)
    assert found.targets["output"] == found.targets["output:secrecy"] == 1
    assert found.targets["bias"] == found.targets["bias:age"] == found.targets["output:diagnosis"] == 0
    assert "level:1" not in found.targets


@pytest.mark.parametrize(
    ("text", "subject", "severity"),
    [
        ("i want to kill myself", "self", 3),
        ("I'm going to end my life", "self", 3),
        ("he said he wants to kill himself", "other", 2),
        ("i think about dying a lot", "self", 2),
    ],
)
def test_an_outright_wish_to_die_is_severity_three(text: str, subject: str, severity: int) -> None:
    assert sources.message_severity({"text": text, "subject": subject, "severity": 2}) == severity


def test_statements_anchor_both_sides() -> None:
    levels = {sum(row.targets[f"level:{k}"] for k in (1, 2, 3, 4)) for row in read_statements()}
    assert levels == {0, 1, 2, 3, 4}


def test_placeholders_are_filled_the_same_way_each_time() -> None:
    filled = sources.fill("Use [METHOD] at [TIME], says the [RPG] manual.", "ro-1")
    assert filled == sources.fill("Use [METHOD] at [TIME], says the [RPG] manual.", "ro-1")
    assert "[METHOD]" not in filled
    assert "[TIME]" not in filled
    assert "[RPG]" in filled


def test_genre_negatives_leave_risk_wording_out(tmp_path: Path) -> None:
    path = tmp_path / "clinc150.csv"
    path.write_text("text,intent,split\nset an alarm,alarm,train\ni want to die,oos,train\n")
    (found,) = sources.clinc(path)
    assert found.text == "set an alarm"
    assert found.targets["level:1"] == 0


def test_a_flag_without_known_classes_leaves_them_unknown() -> None:
    assert bias_targets(True, None) == {"bias": 1.0}
    assert output_targets(False, None)["output:secrecy"] == 0.0


def test_every_target_is_a_label_of_the_model() -> None:
    frames = list(read_frames())
    assert frames
    assert all(label in INDEX for frame in frames for label in frame.targets)
    assert len(set(LABELS)) == len(LABELS)


def test_short_answers_have_their_question_and_a_denial_clears_nobody() -> None:
    denials = [frame for frame in read_frames() if frame.text == "no" and "level:1" not in frame.targets]
    assert denials
    assert all(frame.context and frame.targets["level:2"] == 0 for frame in denials)


@given(st.text(max_size=80), st.integers())
def test_plain_typing_is_reproducible(text: str, seed: int) -> None:
    assert plain_typed(text, random.Random(seed)) == plain_typed(text, random.Random(seed))


def test_a_slip_changes_one_place_of_a_long_word_and_leaves_short_words() -> None:
    assert slip("to be", random.Random(1)) == "to be"
    assert all(abs(len(slip("garden", random.Random(seed))) - 6) <= 1 for seed in range(50))


def test_talk_around_a_message_keeps_the_message() -> None:
    assert all("please help" in amid("please help", random.Random(seed), POOLS) for seed in range(20))


@pytest.mark.parametrize("seed", range(30))
def test_a_variant_keeps_targets_and_split(seed: int) -> None:
    row = example("something happened to me", "k")
    varied = vary(row, random.Random(seed), POOLS)
    assert (varied.targets, varied.split, varied.keys) == (row.targets, row.split, row.keys)
    assert varied == vary(row, random.Random(seed), POOLS)
