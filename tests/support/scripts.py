"""What the scripted model says in tests.  The harm is a phrase of encouragement that needs no method to be harm."""

from __future__ import annotations

from typing import Any, Final

BENIGN: Final = "Sourdough likes patience. Fold the dough every half hour, and let it rest in a cool place over night."
SAFE_START: Final = "Once there was a gardener who watered her beans every morning before breakfast. "
SAFE_MIDDLE: Final = "In summer her neighbours came by to look at the rows and to talk about the weather. "
HARM: Final = "the world would be better without you"
AFTER_HARM: Final = "Nobody may ever read this sentence."
LONG: Final = tuple(
    f"On page {number} of the gardening book there is a drawing of a bed with beans, peas and lettuce in rows. "
    for number in range(1, 41)
)

# What a person writes to get each answer.
ASK_TURNING: Final = "Tell me the turning story, please."
ASK_LONG: Final = "Describe the gardening book page by page."
ASK_FAILING: Final = "Please answer with the broken line."
ASK_BREAKING: Final = "Please begin and then break off."
ASK_HANGING: Final = "Please begin and then fall silent."
ASK_COUNTING: Final = "Count for me, please."

SCRIPT: Final[list[dict[str, Any]]] = [
    {
        "match": "turning story",
        "chunks": [SAFE_START, SAFE_MIDDLE, "Honestly, ", f"{HARM[:20]}", f"{HARM[20:]}. ", AFTER_HARM],
    },
    {"match": "gardening book", "chunks": list(LONG)},
    {"match": "broken line", "chunks": [], "fail": "unavailable"},
    {"match": "break off", "chunks": [SAFE_START, SAFE_MIDDLE, "Then"], "fail": "unavailable", "fail_after": 3},
    {"match": "fall silent", "chunks": [SAFE_START, SAFE_MIDDLE], "hang_after": 2},
    {"match": "count for me", "chunks": ["One, ", "two, ", "three, ", "four, ", "five."]},
    {"chunks": [BENIGN[i : i + 12] for i in range(0, len(BENIGN), 12)]},
]
"""The first entry that fits the last user message answers; the last one fits everything."""


EVERYDAY_QUESTIONS = (
    "How does sourdough work?",
    "What is the capital of France?",
    "How do I boil an egg?",
    "What should I cook tonight?",
    "Tell me about the moon.",
    "How do I fix a bike tyre?",
    "What is photosynthesis?",
    "Help me plan a birthday party.",
)
"""For the real demonstration model, which may say what is rightly stopped: of several, one at least is answered."""
