"""What a turn writes down: the conversation's risk, incidents with their outbox rows, the audit trail.

Each method is one short transaction.  `intervene` commits incident, outbox, risk and audit together;
the turn releases the first byte of an intervention only after it has returned.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from gateway.audit.log import AuditEvent
from gateway.events.bus import EventBus, Hint
from gateway.pipeline.state import Decision, Outcome, Turn
from gateway.session.repository import RiskRepository
from gateway.session.risk import Risk, strictest
from gateway.store.uow import Store, UnitOfWork
from gateway.store.vocabulary import IncidentKind, IncidentRef, NewIncident

MAX_EVIDENCE_CHARS: Final = 16_384


class Clock(Protocol):
    """Time as the pipeline sees it; tests bring their own."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic_s(self) -> float: ...


class Finding(msgspec.Struct, frozen=True):
    """Why people are brought in, and the words a reviewer needs to understand it (encrypted at rest)."""

    decision: Decision
    kind: IncidentKind
    evidence: str
    imminence: str = "none"
    subject: str = "none"
    fresh: bool = True
    """False when only earlier turns' risk speaks: the open incident is kept up to date, nobody is paged again."""


class Kept(msgspec.Struct, frozen=True):
    """A conversation's risk as this turn found it in the store, and as it leaves it."""

    seen: Risk | None
    after: Risk


class Recorder:
    """The record of turns, over the store."""

    def __init__(self, store: Store, bus: EventBus, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock

    async def recall(self, turn: Turn) -> Risk | None:
        """The risk of the turn's conversation as it is stored; None when it is new or unnamed."""
        if turn.conversation_id is None:
            return None
        async with self._store.read() as unit:
            return await RiskRepository(unit).load(turn.app_id, turn.conversation_id)

    async def intervene(self, turn: Turn, finding: Finding, kept: Kept | None) -> IncidentRef:
        """Commit incident, outbox, risk and audit in one transaction."""
        at = self._now()
        decision = finding.decision
        route = decision.escalation.route if decision.escalation else "digest"
        ack_within_s = decision.escalation.ack_within_s if decision.escalation else 86_400
        async with self._store.begin() as unit:
            conversation = await self._save_risk(unit, turn, kept, at)
            ref = await unit.incidents.open_or_update(
                NewIncident(
                    conversation_id=conversation,
                    app_id=turn.app_id,
                    kind=finding.kind,
                    severity=decision.severity,
                    categories=decision.categories,
                    imminence=finding.imminence,
                    subject=finding.subject,
                    stage=decision.stage,
                    policy_version=decision.policy_version,
                    route=route,
                    ack_within_s=ack_within_s,
                    evidence=finding.evidence[-MAX_EVIDENCE_CHARS:],
                    opened_at=at,
                )
            )
            if finding.fresh or ref.created or ref.severity_rose:
                await unit.outbox.enqueue(
                    incident_id=ref.id,
                    route=route,
                    payload={"incident_id": ref.id, "severity": decision.severity, "kind": finding.kind},
                    dedupe_key=f"{turn.request_id}:{decision.stage}",
                    now=at,
                )
            event = "incident.opened" if ref.created else "incident.updated"
            await unit.audit.append(
                self._event(event, turn, at, conversation, ref.id, _decision_data(decision) | {"kind": finding.kind})
            )
        self._bus.publish(Hint(kind="incident", id=ref.id))
        return ref

    async def close(self, turn: Turn, outcome: Outcome, kept: Kept | None, *, client_gone: bool) -> None:
        """Write how the turn ended.  ``kept`` is None when the risk could not be recalled: then it is left as it is."""
        at = self._now()
        # A power cut may take the last plain turn; an intervention was committed durably before it was given.
        async with self._store.begin(durable=not outcome.decision.model_may_speak) as unit:
            conversation = await self._save_risk(unit, turn, kept, at)
            data = _decision_data(outcome.decision) | {
                "delivered_chars": outcome.delivered_chars,
                "finish_reason": outcome.finish_reason,
                "client_gone": client_gone,
                "detectors": [f"{name}:{state}" for name, state in sorted(outcome.detectors.items())],
                "backend_error": outcome.backend_error or "none",
            }
            await unit.audit.append(self._event("turn.closed", turn, at, conversation, outcome.incident_id, data))

    async def _save_risk(self, unit: UnitOfWork, turn: Turn, kept: Kept | None, at: datetime) -> str | None:
        """Store what the conversation carries now; a turn that ran beside this one may not be overwritten."""
        if turn.conversation_id is None or kept is None:
            return None
        risks = RiskRepository(unit)
        stored = await risks.load(turn.app_id, turn.conversation_id)
        unchanged = stored is None or stored in (kept.seen, kept.after)
        risk = kept.after if unchanged or stored is None else strictest(stored, kept.after)
        return await risks.save(turn.app_id, turn.conversation_id, risk, end_user_hash=turn.end_user_hash, now=at)

    def _event(
        self,
        event: str,
        turn: Turn,
        at: datetime,
        conversation: str | None,
        incident: str | None,
        data: dict[str, str | int | bool | list[str]],
    ) -> AuditEvent:
        return AuditEvent(
            event=event,
            actor=f"app:{turn.app_id}",
            at=at,
            request_id=turn.request_id,
            conversation_id=conversation,
            incident_id=incident,
            data=data,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_s(), tz=UTC)


def kind_of(decision: Decision) -> IncidentKind:
    """What sort of incident a decision is, for the reviewers' queue."""
    if decision.stage == "output":
        return "output_harm"
    if decision.stage == "backend":
        return "backend"
    if decision.severity > 0:
        return "crisis"
    if any(reason.startswith("instruction") for reason in decision.reasons):
        return "abuse"
    return "unavailable"


def _decision_data(decision: Decision) -> dict[str, str | int | bool | list[str]]:
    return {
        "action": decision.action,
        "stage": decision.stage,
        "mode": decision.mode,
        "severity": decision.severity,
        "categories": list(decision.categories),
        "reasons": list(decision.reasons),
        "policy_version": decision.policy_version,
    }
