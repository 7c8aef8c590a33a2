"""Server-sent events, read incrementally: bytes in as the network cuts them, whole events out.

Follows the event-stream grammar of the WHATWG HTML standard, section 9.2.6: lines end in LF, CR or
CRLF, a colon begins a comment, one space after a field's colon is dropped, a byte order mark at the
very start is skipped, and an event that the stream's end cuts short is discarded.  Works on bytes, so a
character that the network cut in two is whole again before anyone decodes it.  Pure: no I/O, no clock.
"""

from __future__ import annotations

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """The event being read passed the reader's bound.  The reader is not usable afterwards."""


class SSEReader:
    """Folds pieces of a stream into the ``data`` of its events.

    Holds at most ``max_event_bytes`` of an unfinished event; past that `feed` raises `EventTooLarge`.
    The fields ``event``, ``id`` and ``retry`` are read over: chat completions use none of them.
    """

    __slots__ = ("_at_start", "_data", "_data_bytes", "_line", "_max_event_bytes", "_skip_lf")

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._skip_lf = False
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes and return the data of every event they complete, in order."""
        if self._skip_lf and piece:
            self._skip_lf = False
            piece = piece.removeprefix(b"\n")
        # A CR at the end of a piece ends its line now; the LF that may follow it belongs to it.
        self._skip_lf = self._skip_lf or piece.endswith(b"\r")
        *whole, rest = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events: list[bytes] = []
        for tail in whole:
            self._extend(tail)
            event = self._take_line()
            if event is not None:
                events.append(event)
        self._extend(rest)
        return events

    def _extend(self, tail: bytes) -> None:
        if self._data_bytes + len(self._line) + len(tail) > self._max_event_bytes:
            raise EventTooLarge(f"an event passed {self._max_event_bytes} bytes")
        self._line += tail

    def _take_line(self) -> bytes | None:
        """End the current line.  Returns an event's data when the line was the blank one that ends it."""
        line = bytes(self._line)
        self._line.clear()
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value) + 1
        return None

    def _dispatch(self) -> bytes | None:
        if not self._data:
            return None
        event = b"\n".join(self._data)
        self._data = []
        self._data_bytes = 0
        return event
