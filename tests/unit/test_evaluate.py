"""Metrics against published values and against each other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.api import Line
from detectors.evaluate import (
    Labelled,
    Rate,
    auroc,
    confusion,
    evaluate,
    markdown,
    miss_rate_bound,
    read_labelled,
    wilson,
)
from detectors.fusion import Crisis, Flags, Reading


def test_wilson_has_its_textbook_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("misses", "n"), [(0, 598), (1, 947), (2, 1258), (3, 1549), (5, 2100)])
def test_the_exact_bound_agrees_with_the_table_of_the_rule_of_three(misses: int, n: int) -> None:
    assert miss_rate_bound(misses, n) < 0.005 + 1e-5
    assert miss_rate_bound(misses, n - 5) > 0.005


def test_bounds_at_the_edges() -> None:
    assert miss_rate_bound(4, 4) == 1.0
    for wrong in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="count"):
            miss_rate_bound(*wrong)
        with pytest.raises(ValueError, match="count"):
            wilson(*wrong)
    with pytest.raises(ValueError, match="confidence"):
        miss_rate_bound(0, 3, 1.0)


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_interval_holds_the_rate_and_the_bound_lies_above_it(hits: int, more: int) -> None:
    n = hits + more
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert hits / n < miss_rate_bound(hits, n) <= 1


def test_auroc_counts_ties_half() -> None:
    assert auroc([True, True, False, False], [0.9, 0.8, 0.2, 0.1]) == 1.0
    assert auroc([True, False], [0.5, 0.5]) == 0.5
    assert auroc([True, False, True, False], [0.9, 0.8, 0.3, 0.1]) == 0.75
    assert math.isnan(auroc([True], [0.5]))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[bool, float]]) -> None:
    positive, negative = [s for t, s in rows if t], [s for t, s in rows if not t]
    if positive and negative:
        wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
        assert auroc([t for t, _ in rows], [s for _, s in rows]) == pytest.approx(wins / len(positive) / len(negative))


def test_confusion_at_a_threshold() -> None:
    table = confusion([True, True, False, False], [0.5, 0.4, 0.5, 0.1], 0.5)
    assert (table.true_positive, table.false_negative, table.false_positive, table.true_negative) == (1, 1, 1, 1)
    assert table.sensitivity == table.specificity == table.precision == Rate(1, 2)


@pytest.mark.parametrize("scores", [[0.1], [0.1, float("nan")]])
def test_scores_that_cannot_be_compared_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"differ|NaN"):
        confusion([True, False], scores, 0.5)
    with pytest.raises(ValueError, match=r"differ|NaN"):
        auroc([True, False], scores)


def test_a_rate_of_nothing_is_not_a_number() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert str(Rate(0, 0)) == "no rows"
    assert str(Rate(1, 2)) == "0.500 (0.095 to 0.905; 1 of 2)"


def test_a_report_and_its_page() -> None:
    rows = [
        Labelled("a", "x", severity=3, categories=("suicide",), family="one"),
        Labelled("b", "x", severity=2, categories=("suicide",), family="one"),
        Labelled("c", "x", severity=0, bias=True),
        Labelled("d", "x", output=False),
    ]
    readings = [
        Reading(crisis=Crisis(3, 0.9, ("suicide",), {"suicide": 0.9})),
        Reading(detectors={"encoder": "unavailable"}),
        Reading(bias=Flags(True, 0.8)),
        Reading(output=Flags(True, 0.7)),
    ]
    report = evaluate(rows, readings)
    assert (report.rows, report.families, report.unavailable) == (4, 3, 1)
    assert report.missed == ("b",)
    assert report.severities[3][3] == report.severities[2][0] == report.severities[0][0] == 1
    heads = {head.name: head for head in report.heads}
    assert heads["crisis, level 2 or higher"].confusion.sensitivity == Rate(1, 2)
    assert heads["category suicide"].confusion.precision == Rate(1, 1)
    assert heads["bias"].confusion.sensitivity == Rate(1, 1)
    assert heads["harm in a reply"].confusion.specificity == Rate(0, 1)
    page = markdown(report, title="A first look", data="four rows", detectors="none")
    assert page.startswith("# A first look\n")
    assert "| category suicide | 0.500 (0.095 to 0.905; 1 of 2) |" in page
    assert "read as level 0: 1 (b)" in page
    assert "| bias | 1.000" in page


def test_rows_and_readings_must_match() -> None:
    with pytest.raises(ValueError, match="number"):
        evaluate([Labelled("a", "x")], [])


def test_labelled_rows_are_read_in_openais_words() -> None:
    text, talk = read_labelled(
        [
            b'{"id": 1, "text": "hello", "severity": 2, "note": "unknown keys are ignored"}\n',
            b"\n",
            b'{"id": 2, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "output": true}',
        ]
    )
    assert text.passage().role == "user"
    assert talk.passage().text == "b"
    assert talk.passage().context == (Line("user", "a"),)
    said = (Line("user", "a"), Line("assistant", "b"))
    assert Labelled("x", messages=said, severity=1).passage().text == "a"
    assert Labelled("x", messages=said, severity=1, bias=False).passage().text == "b"
    assert Labelled("x", "an answer", output=True).passage().role == "assistant"


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b'{"id": 1}',
        b'{"id": 1, "text": "x", "severity": 5}',
        b'{"id": 1, "messages": ["x"]}',
        b'{"id": 1, "text": "\xff"}',
    ],
)
def test_a_row_that_is_no_label_names_its_line(line: bytes) -> None:
    with pytest.raises(ValueError, match="line 1"):
        read_labelled([line])
