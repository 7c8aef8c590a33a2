"""The event-stream reader: the same events, however the network cuts the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sse import EventTooLarge, SSEReader

STREAMS = {
    "lf": (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
    "crlf": (b"data: one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"]),
    "cr": (b"data: one\r\rdata: two\r\r", [b"one", b"two"]),
    "mixed endings": (b"data: one\r\n\ndata: two\n\r\n", [b"one", b"two"]),
    "no space after the colon": (b"data:one\n\ndata:  two\n\n", [b"one", b" two"]),
    "comments and heartbeats": (b": ping\n\n:\ndata: one\n: mid\n\n: ping\n\n", [b"one"]),
    "other fields": (b"event: delta\nid: 7\nretry: 10\ndata: one\n\nevent: end\n\n", [b"one"]),
    "several data lines": (b"data: one\ndata:\ndata: two\n\n", [b"one\n\ntwo"]),
    "a field without a colon": (b"data\n\ndatum\n\n", [b""]),
    "a byte order mark": (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
    "multi-byte characters": ("data: día 🌧️ 語\n\n".encode(), ["día 🌧️ 語".encode()]),
    "the last event cut off": (b"data: one\n\ndata: two\n", [b"one"]),
    "the last line cut off": (b"data: one\n\ndata: tw", [b"one"]),
    "empty": (b"", []),
}


def read(*pieces: bytes, max_event_bytes: int = 1024) -> list[bytes]:
    reader = SSEReader(max_event_bytes)
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize("name", STREAMS)
def test_reads_in_one_piece(name: str) -> None:
    stream, events = STREAMS[name]
    assert read(stream) == events


@pytest.mark.parametrize("name", STREAMS)
def test_every_cut_in_two_reads_the_same(name: str) -> None:
    stream, events = STREAMS[name]
    for cut in range(len(stream) + 1):
        assert read(stream[:cut], stream[cut:]) == events, f"cut at byte {cut}"


@pytest.mark.parametrize("name", STREAMS)
def test_byte_by_byte_reads_the_same(name: str) -> None:
    stream, events = STREAMS[name]
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == events


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.data(),
)
def test_any_events_survive_any_cuts(texts: list[str], ending: bytes, data: st.DataObject) -> None:
    stream = b"".join(b"data: " + text.encode() + ending + ending for text in texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*pieces) == [text.encode() for text in texts]


def test_an_event_may_fill_the_bound() -> None:
    assert read(b"data: " + b"x" * 94 + b"\n\n", max_event_bytes=100) == [b"x" * 94]


@pytest.mark.parametrize(
    "stream",
    [b"data: " + b"x" * 95, b": " + b"x" * 99, b"data: xxxxxxxxx\n" * 12],
    ids=["one long line", "a long comment", "many lines"],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_past_the_bound_it_refuses(stream: bytes, step: int) -> None:
    with pytest.raises(EventTooLarge, match="100 bytes"):
        read(*(stream[at : at + step] for at in range(0, len(stream), step)), max_event_bytes=100)


def test_the_bound_is_per_event_not_per_stream() -> None:
    assert len(read(b"data: " + b"x" * 90 + b"\n\n", b"data: y\n\n" * 50, max_event_bytes=100)) == 51
