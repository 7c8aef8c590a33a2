"""How a long text is cut: nothing left out, nothing unbounded."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from detectors.windows import MAX_COARSE, MAX_FINE, MAX_PART_TOKENS, Encoded, coarse, cut, sentences


def words(text: str) -> Encoded:
    """One token per character: the smallest tokeniser that has offsets."""
    return Encoded(list(range(len(text))), [(i, i + 1) for i in range(len(text))])


@given(st.integers(0, 40_000))
def test_coarse_parts_cover_every_token_in_order_within_bounds(count: int) -> None:
    parts = coarse(words("x" * count), 128)
    covered = 0
    for part in parts:
        assert part.start <= covered
        assert len(part.ids) <= MAX_PART_TOKENS
        covered = max(covered, part.end)
    assert covered == count
    assert len(parts) <= max(MAX_COARSE, count // (MAX_PART_TOKENS - 16) + 1)


@given(st.text(alphabet="ab .!?\n\"'", max_size=300))
def test_sentences_cover_every_token_once(text: str) -> None:
    ranges = sentences(text, words(text))
    assert [i for first, last in ranges for i in range(first, last)] == list(range(len(text)))


@given(st.text(alphabet="ab .!?\n", max_size=600), st.integers(32, 80))
def test_windows_are_bounded_and_reach_the_end(text: str, size: int) -> None:
    encoded = words(text)
    found = cut(encoded, sentences(text, encoded), size)
    assert len(found) <= MAX_FINE
    assert all(0 < len(window.ids) <= size for window in found)
    if text:
        assert found[0].start == 0
        assert found[-1].end == len(text)


def test_neighbouring_windows_share_a_sentence() -> None:
    text = "aaaa. " * 10
    encoded = words(text)
    found = cut(encoded, sentences(text, encoded), 20)
    assert all(right.start < left.end for left, right in itertools.pairwise(found))


def test_a_sentence_longer_than_a_window_is_cut_with_overlap() -> None:
    encoded = words("a" * 200)
    found = cut(encoded, sentences("a" * 200, encoded), 64)
    assert found[-1].end == 200
    assert all(right.start < left.end for left, right in itertools.pairwise(found))
