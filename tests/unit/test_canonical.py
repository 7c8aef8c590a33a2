"""The canonical form: what it undoes, what it must leave alone, and its four promises as properties."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.canonical import MAX_CHARS, canonicalise
from detectors.decodings import MAX_DECODINGS, decoded_variants, decodings

PLAIN = "please keep this short"


def _tags(text: str) -> str:
    return "".join(chr(0xE0000 + ord(char)) for char in text)


def _selectors(text: str) -> str:
    return "".join(chr(0xFE00 + byte) if byte < 16 else chr(0xE0100 + byte - 16) for byte in text.encode())


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("ｐｌｅａｓｅ stop", "please stop"),
        ("ple\u200bas\u00ade\u2060 stop", "please stop"),
        ("\u202eplease\u202c stop", "please stop"),
        ("please" + _tags("hidden") + " stop", "please stop"),
        ("p\ufe0fl\U000e0101ease stop", "please stop"),
        ("рleаse ѕtoр", "please stop"),
        ("і want a pen", "i want a pen"),
        ("ρlease stοp", "please stop"),
        ("p l e a s e   s t o p it", "please stop it"),
        ("p l e a s e s t o p", "pleasestop"),
        ("p.l.e.a.s.e s-t-o-p", "please stop"),
        ("pl3as3 st0p", "please stop"),
        ("d0 y0u w4nt t0 3nd th1s", "do you want to end this"),
        ("please_stop__it", "please stop it"),
        ("p_l_e_a_s_e", "please"),
        ("p1e4se.", "piease."),
        ("pleeeeease stoooop", "pleease stoop"),
        ("\U0001d4f9\U0001d4f5\U0001d4ee\U0001d4ea\U0001d4fc\U0001d4ee ⓢⓣⓞⓟ", "please stop"),
        ("ᴘʟᴇᴀꜱᴇ 🅂🅃🄾🄿", "please STOP"),
        ("p\u0336l\u0336e\u0336a\u0336s\u0336e\u0336", "please"),
        ("it\u2019s \u201cfine\u201d \u2013 really", 'it\'s "fine" - really'),
        ("  please \t stop \r\n\n now ", "please stop\nnow"),
        ("cafe\u0301", "café"),
        ("\u1100\u1161", "가"),
    ],
)
def test_disguises_are_undone(raw: str, canonical: str) -> None:
    assert canonicalise(raw).text == canonical


@pytest.mark.parametrize(
    "text",
    [
        "Мама, я сегодня не приду. Только не жди.",
        "Привет, how are you?",
        "Ο γιατρός είπε ότι όλα είναι καλά.",
        "Ella está más tranquila, ¿verdad?",
        "我今天很累。",
        "مرحبا كيف حالك",
        "नमस्ते, आप कैसे हैं?",
        "Take 10mg at 3pm, covid19 shot, mp3 player, h2o, b2b.",
        "write to someone@example.com",
        "Thanks!see you tomorrow",
        "3rd floor, 4th door, g4 again: t0 is the start",
        "_emphasis_ and __init__",
        "Plan A, plan B, plan C.",
        "a b c",
        "1 2 3 4 5 6",
        "",
    ],
)
def test_real_writing_is_left_alone(text: str) -> None:
    canonical = canonicalise(text)
    assert canonical.text == text
    assert not canonical.changed


def test_offsets_lead_back_to_the_disguised_word() -> None:
    raw = "oh, ѕ\u200btор  now"
    canonical = canonicalise(raw)
    start = canonical.text.index("stop")
    span = canonical.to_raw(start, start + 4)
    assert raw[span.start : span.end] == "ѕ\u200btор"


def test_offsets_outside_are_drawn_in() -> None:
    canonical = canonicalise("abc")
    assert canonical.to_raw(-3, 99) == canonical.to_raw(0, 3)
    assert (canonical.to_raw(2, 1).start, canonical.to_raw(2, 1).end) == (2, 2)
    assert (canonicalise("").to_raw(0, 5).start, canonicalise("").to_raw(0, 5).end) == (0, 0)


@pytest.mark.parametrize("raw", ["ab " * MAX_CHARS, "\ufdfa" * MAX_CHARS])
def test_a_cut_is_told(raw: str) -> None:
    canonical = canonicalise(raw)
    assert canonical.truncated
    assert len(canonical.text) <= MAX_CHARS
    assert not canonicalise(raw[:100]).truncated


_NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from(
            "aabbIiklstxyz 0134579@$!|.-_*  \n\t\r'`\u00b4é\u0301\u0336\u200b\u00ad\u202e\ufeff"
            "аесоркикжЖλαορ\u0345օսﬁǅ㌔\ufdfa\u1100\u1161\u11a8\u3099かﾊﾞ\u0cc6\u0cc2\u0cd5\u0958\u093cक"
            "🅺🇺\U0001d4f4\U000e0041\ufe0fİıſK\u0483\x00\x1b\u2028"
        ),
        st.characters(),
    ),
    max_size=60,
)


@settings(max_examples=600, deadline=None)
@given(_NASTY)
def test_canonical_form_is_idempotent(raw: str) -> None:
    once = canonicalise(raw).text
    assert canonicalise(once).text == once
    assert not canonicalise(once).changed


@settings(max_examples=400, deadline=None)
@given(_NASTY, st.integers(-2, 70), st.integers(-2, 70))
def test_offsets_stay_inside_the_raw_text_in_order(raw: str, start: int, end: int) -> None:
    canonical = canonicalise(raw)
    assert len(canonical.starts) == len(canonical.ends) == len(canonical.text)
    assert list(canonical.starts) == sorted(canonical.starts)
    span = canonical.to_raw(start, end)
    assert 0 <= span.start <= span.end <= len(raw)
    if max(start, 0) < min(end, len(canonical.text)):
        assert span.start < span.end


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.integers(1, 400))
def test_output_and_decodings_are_bounded(piece: str, times: int) -> None:
    raw = piece * times
    assert len(canonicalise(raw).text) <= MAX_CHARS
    found = decodings(raw)
    assert len(found) <= MAX_DECODINGS
    assert all(len(one.text) <= 2 * MAX_CHARS and 0 <= one.span.start <= one.span.end <= len(raw) for one in found)


@pytest.mark.parametrize(
    "carrier",
    [
        base64.b64encode(PLAIN.encode()).decode(),
        base64.urlsafe_b64encode(PLAIN.encode()).decode().rstrip("="),
        PLAIN.encode().hex(),
        PLAIN.encode().hex(" "),
        PLAIN.replace(" ", "%20"),
        _tags(PLAIN),
        "\U0001f600" + _selectors(PLAIN),
    ],
)
def test_one_level_of_encoding_is_read(carrier: str) -> None:
    text = f"hello {carrier} there"
    assert PLAIN in [variant.removeprefix("\U0001f600") for variant in decoded_variants(text)]
    (found,) = decodings(text)
    assert text[found.span.start : found.span.end] in carrier


@pytest.mark.parametrize(
    "carrier",
    [
        "".join(f"&#{ord(char)};" for char in PLAIN),
        "".join(f"&#x{ord(char):X};" for char in PLAIN),
        "".join(f"\\u{ord(char):04x}" for char in PLAIN),
        "".join(f"\\x{ord(char):02x}" for char in PLAIN),
        PLAIN.replace("k", "&#107;"),
        PLAIN.replace("k", "\\u{6b}"),
        PLAIN.replace("k", "%u006B"),
        PLAIN.replace(" ", "&nbsp;"),
    ],
)
def test_escaped_characters_are_read_with_the_words_around_them(carrier: str) -> None:
    (found,) = decodings(f"hello {carrier} there")
    assert found.text == f"hello {PLAIN} there"
    assert (found.span.start, found.span.end) == (0, len(f"hello {carrier} there"))


def test_escapes_far_apart_are_read_apart_and_a_false_one_is_a_blank() -> None:
    far = "x" * 400
    first, second = decodings(f"&#112;lease{far}s&#116;op \\ud800 \\u{{ffffff}} &#9999999;")
    assert first.text.startswith("please")
    assert second.text.strip("x").startswith("stop")
    assert second.text.isprintable()
    assert first.span.end < second.span.start


def test_a_long_carrier_is_read_to_its_end() -> None:
    text = "please keep on reading this " * 600 + PLAIN
    for carrier in (base64.b64encode(text.encode()).decode(), text.encode().hex()[:MAX_CHARS]):
        (found,) = decodings(carrier)
        assert found.text == text[: len(found.text)]
        assert len(found.text) > 16_000


def test_only_one_level_is_undone() -> None:
    twice = base64.b64encode(base64.b64encode(PLAIN.encode()))
    assert PLAIN not in decoded_variants(twice.decode())


@pytest.mark.parametrize("turn", [lambda s: s[::-1], lambda s: " ".join(w[::-1] for w in s.split(" "))])
def test_a_sentence_backwards_is_read_among_others(turn: Callable[[str], str]) -> None:
    sentence = "I want the keys to my house"
    text = f"The soup is good. {turn(sentence)}. It is late."
    found = decodings(text)
    assert sentence in [one.text.strip() for one in found]
    assert {text[one.span.start : one.span.end].strip() for one in found} == {turn(sentence)}
    assert decodings(f"The soup is good. {sentence}. It is late.") == ()


def test_rot13_is_read_and_only_when_it_reads_better_than_the_text() -> None:
    sentence = "I want the keys to my house"
    assert decoded_variants(codecs.encode(sentence, "rot13")) == (sentence,)
    assert decoded_variants(sentence) == ()


@pytest.mark.parametrize(
    "text",
    [
        "international cooperation",
        "deadbeef0123456789abcdef",
        "order 1234567890123456",
        "100% sure and 50% off",
        base64.b64encode(bytes(range(128, 192))).decode(),
    ],
)
def test_noise_is_not_decoded(text: str) -> None:
    assert decoded_variants(text) == ()


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a ",
        "a1",
        "a!",
        "a\u0301",
        "\u0301",
        "а1 ",
        "a.@",
        "%41",
        "4a",
        " ",
        "\ufe00",
        "a_",
        "w4nt t0 ",
        "&#97;",
        "\\u0061 ",
        "ot ",
    ],
)
def test_long_adversarial_texts_come_back(unit: str) -> None:
    """The suite's time limit is the judge: a quadratic stage takes minutes here."""
    raw = (unit * MAX_CHARS)[:MAX_CHARS]
    for _ in range(20):
        canonicalise(raw)
        decodings(raw)
