"""The hold-back: windows depend on the text alone, cover it exactly, and split no character."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.holdback import Rules, Window, is_cluster_boundary, next_window

RULES = Rules(
    first_chars=20, window_chars=60, first_min_chars=8, window_min_chars=8, overlap_chars=40, lookahead_chars=6
)
PROSE = "It is good that you wrote. We can take this slowly, one thing at a time. What happened today? Tell me more."
texts = st.text(alphabet=st.sampled_from("ab .,!?\n。é\u0301\u200d👍🏽🇩🇪"), max_size=300)


def windows(text: str, cuts: list[int], rules: Rules = RULES) -> list[Window]:
    """Feed ``text`` in the pieces that ``cuts`` make, as a backend would."""
    edges = [*sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    found: list[Window] = []
    for edge in edges:
        finished = edge == len(text)
        while (window := next_window(text[:edge], found[-1].end if found else 0, rules, finished=finished)) is not None:
            found.append(window)
    return found


@given(texts, st.lists(st.integers(0, 300), max_size=40))
def test_windows_do_not_depend_on_the_chunking(text: str, cuts: list[int]) -> None:
    assert windows(text, cuts) == windows(text, list(range(len(text)))) == windows(text, [])


@given(texts, st.lists(st.integers(0, 300), max_size=40))
def test_windows_cover_the_text_exactly_and_in_order(text: str, cuts: list[int]) -> None:
    found = windows(text, cuts)
    assert "".join(text[window.start : window.end] for window in found) == text
    for before, after in itertools.pairwise(found):
        assert before.end == after.start
    for window in found:
        assert 0 <= window.judged_from <= window.start < window.end <= window.judged_to <= len(text)


@given(texts)
def test_a_window_is_never_longer_than_its_limit(text: str) -> None:
    for window in windows(text, []):
        assert window.end - window.start <= (RULES.first_chars if window.start == 0 else RULES.window_chars)


@given(texts)
def test_no_cluster_is_split_unless_it_outgrows_a_window(text: str) -> None:
    for window in windows(text, []):
        if not is_cluster_boundary(text, window.end):
            assert not any(is_cluster_boundary(text, at) for at in range(window.start + 1, window.end + 1))


def test_the_first_window_ends_early_and_later_ones_at_sentences() -> None:
    pieces = [PROSE[window.start : window.end] for window in windows(PROSE, [])]
    assert pieces[0] == "It is good "
    assert "".join(pieces) == PROSE
    assert all(piece.rstrip().endswith((".", "?")) for piece in pieces[1:])


@given(texts)
def test_a_cut_in_mid_sentence_is_judged_with_what_follows(text: str) -> None:
    for window in windows(text, []):
        if window.judged_to != window.end:
            limit = RULES.first_chars if window.start == 0 else RULES.window_chars
            assert window.judged_to == window.start + limit
            assert window.judged_to - window.end >= RULES.lookahead_chars or not is_cluster_boundary(text, window.end)


@given(
    st.lists(st.text(alphabet="abcdef", min_size=1, max_size=9), min_size=1, max_size=60),
    st.integers(0, 400),
    st.integers(1, RULES.lookahead_chars),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_no_part_of_a_phrase_leaves_before_a_verdict_on_all_of_it(
    words: list[str], at: int, length: int, cuts: list[int]
) -> None:
    text = " ".join(words)
    start = min(at, len(text))
    end = min(start + length, len(text))
    judged_to = 0
    for window in windows(text, cuts):
        judged_to = max(judged_to, window.judged_to)
        if window.end > start:
            assert judged_to >= end
            break


def test_nothing_is_cut_before_the_next_character_is_known() -> None:
    assert next_window("It is good. ", 0, RULES, finished=False) is None
    assert next_window("It is good. N", 0, RULES, finished=False) == Window(0, 12, 0, 12)


def test_the_overlap_starts_at_a_word() -> None:
    rules = Rules(
        first_chars=20, window_chars=60, first_min_chars=8, window_min_chars=8, overlap_chars=10, lookahead_chars=6
    )
    window = windows(PROSE, [], rules)[2]
    assert window.judged_from < window.start
    assert PROSE[window.judged_from - 1].isspace()
    assert window.start - window.judged_from <= 10


def test_a_script_without_spaces_has_an_overlap_too() -> None:
    text = "你好" * 200
    found = windows(text, [])
    assert len(found) > 2
    assert all(window.start - window.judged_from >= RULES.overlap_chars - 1 for window in found[2:])


@pytest.mark.parametrize("text", ["e\u0301", "👍🏽", "👩\u200d👧", "🇩🇪", "\r\n", "\u1100\u1161\u11a8"])
def test_clusters_hold_together(text: str) -> None:
    assert not any(is_cluster_boundary(text, at) for at in range(1, len(text)))


def test_one_endless_character_is_cut_at_the_limit() -> None:
    text = "a" + "\u0301" * 500
    assert max(window.end - window.start for window in windows(text, [])) <= RULES.window_chars


@pytest.mark.parametrize(
    "sizes",
    [
        {"first_chars": 0},
        {"first_min_chars": 0},
        {"window_min_chars": 0},
        {"first_chars": 400},
        {"first_min_chars": 100},
        {"window_min_chars": 500},
        {"overlap_chars": -1},
        {"lookahead_chars": 60},
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"hold-back|overlap"):
        Rules(**sizes)


def test_a_start_outside_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        next_window("short", 6, RULES, finished=True)
