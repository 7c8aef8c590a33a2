"""Conversation risk, loaded and saved.  Queries stay in `gateway.store`; this maps rows to `Risk`."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gateway.session.risk import Risk
from gateway.store.uow import UnitOfWork


class RiskRepository:
    """Risk states of conversations, inside one unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit

    async def load(self, app_id: str, external_id: str) -> Risk | None:
        """The stored state, or None for a conversation not seen before.

        A row that cannot be read counts as a conversation that is as grave as it ever was, and decays from there.
        """
        state = await self._unit.conversations.load(app_id, external_id)
        if state is None:
            return None
        try:
            return msgspec.convert(state.risk, Risk, strict=False)
        except msgspec.ValidationError:
            return Risk(level=state.severity_peak, peak=state.severity_peak)

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
