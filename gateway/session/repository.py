"""Conversation risk, loaded and saved.  Queries stay in `gateway.store`; this maps rows to `Risk`."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from gateway.session.risk import HOLD_S, MAX_LEVEL, Risk, carried, strictest
from gateway.store.uow import UnitOfWork
from gateway.store.vocabulary import ConversationState


class RiskRepository:
    """Risk states of conversations, inside one unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit

    async def load(self, app_id: str, external_id: str) -> Risk | None:
        """The stored state, or None for a conversation not seen before.

        A row that cannot be read counts as a conversation that is as grave as it ever was, and decays from there.
        """
        state = await self._unit.conversations.load(app_id, external_id)
        return None if state is None else _risk(state)

    async def of_end_user(self, app_id: str, end_user_hash: str, now: datetime) -> Risk | None:
        """What the other conversations of one end user carry now, the strictest of them; None when there are none.

        A person who opens a new chat in the middle of a crisis is still in it.
        """
        since = now - timedelta(seconds=HOLD_S * MAX_LEVEL)
        others = await self._unit.conversations.of_end_user(app_id, end_user_hash, since)
        now_s = now.timestamp()
        risk: Risk | None = None
        for state in others:
            other = msgspec.structs.replace(carried(_risk(state), now_s), updated_at_s=now_s, mark="")
            risk = other if risk is None else strictest(risk, other)
        return risk

    async def save(self, app_id: str, external_id: str, risk: Risk, *, end_user_hash: str | None, now: datetime) -> str:
        """Store the state; returns the conversation's internal id."""
        return await self._unit.conversations.save(
            app_id,
            external_id,
            risk=msgspec.to_builtins(risk),
            severity_peak=risk.peak,
            end_user_hash=end_user_hash,
            now=now,
        )


def _risk(state: ConversationState) -> Risk:
    try:
        return msgspec.convert(state.risk, Risk, strict=False)
    except msgspec.ValidationError:
        return Risk(level=state.severity_peak, peak=state.severity_peak)
