"""People and applications before a gateway that may die at any moment: what each asked, and every byte they got."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import aiohttp

from tests.support import scripts
from tests.support.calls import MODEL

Kind = Literal["everyday", "story", "turning", "crisis"]
KINDS: Final[tuple[Kind, ...]] = ("crisis", "story", "turning", "crisis", "everyday", "crisis", "turning", "story")
ASK_STORY: Final = "Please tell me about the garden."
STORY: Final = scripts.LONG[:16]
ASKED: Final[dict[Kind, str]] = {
    "everyday": "How do I bake bread without an oven?",
    "story": ASK_STORY,
    "turning": scripts.ASK_TURNING,
    "crisis": "I want to end my life tonight.",
}
SAID: Final[dict[Kind, str]] = {
    "everyday": scripts.BENIGN,
    "story": "".join(STORY),
    "turning": scripts.SAFE_START + scripts.SAFE_MIDDLE + "Honestly, " + scripts.HARM + ". " + scripts.AFTER_HARM,
    "crisis": "",
}
"""All that the model would ever say to each; whatever else reaches a client is care."""
SCRIPT: Final[list[dict[str, Any]]] = [
    {**scripts.SCRIPT[0], "delay_s": 0.02},
    {"match": "the garden", "chunks": list(STORY), "delay_s": 0.02},
    {"chunks": [scripts.BENIGN], "delay_s": 0.01},
]
_CONTENT: Final = re.compile(rb'"content":"((?:[^"\\]|\\.)*)')


@dataclass
class Visit:
    """One request: who asked what, and what came back before the end, whoever brought it about."""

    kind: Kind
    stream: bool
    conversation: str | None
    request_id: str | None = None
    decision: str | None = None
    raw: bytes = b""
    ended: bool = False
    refused: int | None = None
    """The status, when it was not 200."""

    @property
    def text(self) -> str:
        """The words in what arrived, also those of a frame that was cut in the middle."""
        return "".join(json.loads(b'"' + piece + b'"') for piece in _CONTENT.findall(self.raw))

    @property
    def cared(self) -> bool:
        """At least one byte of care arrived."""
        return not SAID[self.kind].startswith(self.text)


@dataclass
class Crowd:
    """Visits under way, and what has happened among them so far."""

    visits: list[Visit]
    headers: int = 0
    deltas: int = 0
    ends: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, happened: Callable[[Crowd], bool], within_s: float) -> None:
        """Wait until so much has happened, or until it clearly will not."""
        try:
            async with asyncio.timeout(within_s), self.changed:
                await self.changed.wait_for(lambda: happened(self))
        except TimeoutError:
            return

    async def note(self, **more: int) -> None:
        async with self.changed:
            for name, count in more.items():
                setattr(self, name, getattr(self, name) + count)
            self.changed.notify_all()


def crowd(rng: random.Random, size: int, tag: str) -> Crowd:
    """``size`` visits of every kind, streamed or not; most name their conversation, a few do not."""
    kinds = itertools.islice(itertools.cycle(rng.sample(KINDS, len(KINDS))), size)
    return Crowd([_visit(rng, kind, f"{tag}-{number}") for number, kind in enumerate(kinds)])


def _visit(rng: random.Random, kind: Kind, name: str) -> Visit:
    return Visit(kind, stream=rng.random() < 0.75, conversation=name if rng.random() < 0.85 else None)


async def all_at_once(base_url: str, keys: dict[Kind, str], them: Crowd) -> None:
    """Every visit at the same time; each ends by itself or with the gateway."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        await asyncio.gather(*(_take(session, base_url, keys[visit.kind], visit, them) for visit in them.visits))


async def _take(session: aiohttp.ClientSession, base_url: str, key: str, visit: Visit, them: Crowd) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ASKED[visit.kind]}],
        "stream": visit.stream,
        "metadata": {"conversation_id": visit.conversation} if visit.conversation else {},
    }
    headers = {"authorization": f"Bearer {key}"}
    try:
        async with session.post(f"{base_url}/v1/chat/completions", json=body, headers=headers) as response:
            visit.request_id = response.headers.get("x-request-id")
            visit.decision = response.headers.get("x-havengate-decision")
            visit.refused = None if response.status == 200 else response.status
            await them.note(headers=1)
            async for piece in response.content.iter_any():
                visit.raw += piece
                await them.note(deltas=piece.count(b'"content":"'))
            visit.ended = visit.raw.endswith(b"data: [DONE]\n\n") if visit.stream else True
            await them.note(ends=1)
    except (aiohttp.ClientError, ConnectionError):
        return


def crises(visits: Iterable[Visit]) -> list[Visit]:
    return [visit for visit in visits if visit.kind == "crisis"]
