"""How a stopped stream looks to those who use OpenAI's Python SDK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import openai

from tests.conformance.case import Case
from tests.conformance.kit import ANSWER_WITHIN_S, Target


@dataclass(frozen=True)
class Stopped:
    """One stream, read to its end by the SDK."""

    parsed: bool
    """No exception on the way."""
    finish_reason: str | None
    usage: bool
    text: str

    @property
    def clean(self) -> bool:
        """What an application can work with: a whole stream that says why it ended, and what it cost."""
        return self.parsed and self.finish_reason == "content_filter" and self.usage


async def read(target: Target, case: Case, written: str, *, usage: bool = True) -> Stopped:
    """Ask as the case does, and read on until the SDK is through or gives up."""
    body = case.body(written)
    assert isinstance(body, dict)
    finish, counted, text = None, False, ""
    async with openai.AsyncOpenAI(
        base_url=target.base_url, api_key=target.api_key, max_retries=0, timeout=ANSWER_WITHIN_S
    ) as client:
        try:
            fields: Any = {**body, "stream_options": {"include_usage": usage}, "max_tokens": 256}
            stream = await client.chat.completions.create(model=target.model, stream=True, **fields)
            async for chunk in stream:
                counted = counted or chunk.usage is not None
                for choice in chunk.choices:
                    finish = choice.finish_reason or finish
                    text += choice.delta.content or ""
        except (openai.OpenAIError, ValueError):
            return Stopped(parsed=False, finish_reason=finish, usage=counted, text=text)
    return Stopped(parsed=True, finish_reason=finish, usage=counted, text=text)
