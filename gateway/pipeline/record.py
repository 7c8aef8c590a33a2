"""What a turn writes down: the conversation's risk, incidents with their outbox rows, the audit trail.

Each method is one short transaction.  `intervene` commits incident, outbox, risk and audit together, or
keeps all of it on disk (`owed.py`) when the store cannot; the turn releases the first byte of an
intervention only after it has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from detectors.api import Imminence, Subject
from gateway.audit.log import AuditEvent
from gateway.events.bus import EventBus, Hint
from gateway.pipeline.owed import Owed
from gateway.pipeline.state import Decision, Outcome, Turn
from gateway.policy.decision import Escalation
from gateway.session.repository import RiskRepository
from gateway.session.risk import Risk, strictest
from gateway.store.errors import StoreError
from gateway.store.uow import Store, UnitOfWork
from gateway.store.vocabulary import IncidentKind, IncidentRef, NewIncident

Data = Mapping[str, str | int | bool | list[str]]
WITHOUT_CLOCK: Final = Escalation("digest", 24 * 3600)


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
    imminence: Imminence = "none"
    subject: Subject = "none"
    fresh: bool = True
    """False when only earlier turns' risk speaks: the open incident is kept up to date, nobody is paged again."""


class Kept(msgspec.Struct, frozen=True):
    """A conversation's risk as this turn leaves it, and the states of it that this turn has seen or written.

    A stored state that is none of these is another turn's, or could not be recalled: then the stricter holds.
    """

    after: Risk
    known: tuple[Risk | None, ...]

    def then(self, risk: Risk) -> Kept:
        """The same conversation, later in the same turn."""
        return Kept(risk, (*self.known, self.after))


class Intervention(msgspec.Struct, frozen=True):
    """Everything that `Recorder.intervene` commits, in a form that can wait on disk."""

    key: str
    """Unique for this finding of this turn: the outbox drops doubles by it."""
    request_id: str
    app_id: str
    conversation_id: str | None
    end_user_hash: str | None
    finding: Finding
    kept: Kept | None
    at: datetime


class Recorder:
    """The record of turns, over the store."""

    def __init__(self, store: Store, bus: EventBus, clock: Clock, owed: Owed[Intervention]) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._owed = owed

    def mark(self, turn: Turn, until: int) -> str:
        """A keyed hash of who is speaking and of the conversation up to line ``until``: tells turns apart, says nothing."""
        said = "\x1f".join(f"{line.role}:{line.text}" for line in turn.lines[: until + 1])
        who = f"{turn.app_id}\x1f{turn.end_user_hash or ''}\x1f{turn.conversation_id or ''}"
        return self._store.keyring.blind(f"{who}\x1f{said}", purpose="turn")

    async def recall(self, turn: Turn) -> Risk | None:
        """The risk of the turn's conversation as it is stored; None when nothing is known.

        A conversation that is new, or has no name, starts where its end user's other conversations stand.
        """
        if turn.conversation_id is None and turn.end_user_hash is None:
            return None
        async with self._store.read() as unit:
            risks = RiskRepository(unit)
            if turn.conversation_id is not None:
                own = await risks.load(turn.app_id, turn.conversation_id)
                if own is not None:
                    return own
            if turn.end_user_hash is not None:
                return await risks.of_end_user(turn.app_id, turn.end_user_hash, self._now())
        return None

    async def intervene(self, turn: Turn, finding: Finding, kept: Kept | None) -> IncidentRef:
        """Commit incident, outbox, risk and audit in one transaction.

        Raises `StoreError` when the store could not take them.  They are then owed, on disk, unless the disk
        could not take them either: operators see both as ``store_failed``.
        """
        intervention = Intervention(
            key=f"{turn.request_id}-{finding.decision.stage}",
            request_id=turn.request_id,
            app_id=turn.app_id,
            conversation_id=turn.conversation_id,
            end_user_hash=turn.end_user_hash,
            finding=finding,
            kept=kept,
            at=self._now(),
        )
        try:
            return await self._commit(intervention)
        except Exception as error:  # noqa: BLE001 - whatever kept it out of the store, it may not be lost
            await asyncio.to_thread(self._owed.keep, intervention.key, intervention)
            raise error if isinstance(error, StoreError) else StoreError("unavailable", type(error).__name__) from None

    async def pay(self) -> int:
        """Commit what is owed, oldest first; returns how many findings still are.

        A store that is away ends the round.  A finding that the store refuses, or that cannot be opened, waits alone.
        """
        waiting = await asyncio.to_thread(lambda: list(self._owed.all()))
        still = 0
        for position, (name, intervention) in enumerate(waiting):
            if intervention is None:
                still += 1
                continue
            try:
                async with self._store.read() as unit:
                    known = await unit.outbox.known(intervention.key)
                if not known:
                    await self._commit(intervention)
            except StoreError as error:
                if error.kind not in ("conflict", "refused"):
                    return still + len(waiting) - position
                still += 1
                continue
            await asyncio.to_thread(self._owed.paid, name)
        return still

    async def close(self, turn: Turn, outcome: Outcome, kept: Kept | None, *, client_gone: bool) -> None:
        """Write how the turn ended.  ``kept`` is None when the turn broke before its risk was known."""
        at = self._now()
        # A power cut may take the last plain turn; an intervention was committed durably before it was given.
        async with self._store.begin(durable=not outcome.decision.model_may_speak) as unit:
            conversation = await _save_risk(unit, turn.app_id, turn.conversation_id, turn.end_user_hash, kept, at)
            data: Data = {
                **_decision_data(outcome.decision),
                "delivered_chars": outcome.delivered_chars,
                "finish_reason": outcome.finish_reason,
                "client_gone": client_gone,
                "detectors": [f"{name}:{state}" for name, state in sorted(outcome.detectors.items())],
                "backend_error": outcome.backend_error or "none",
            }
            await unit.audit.append(
                AuditEvent(
                    event="turn.closed",
                    actor=f"app:{turn.app_id}",
                    at=at,
                    request_id=turn.request_id,
                    conversation_id=conversation,
                    incident_id=outcome.incident_id,
                    data=data,
                )
            )

    async def _commit(self, it: Intervention) -> IncidentRef:
        async with self._store.begin() as unit:
            conversation = await _save_risk(unit, it.app_id, it.conversation_id, it.end_user_hash, it.kept, it.at)
            ref = await unit.incidents.open_or_update(_incident(it, conversation))
            if it.finding.fresh or ref.created or ref.severity_rose:
                await unit.outbox.enqueue(
                    incident_id=ref.id,
                    route=(it.finding.decision.escalation or WITHOUT_CLOCK).route,
                    payload={
                        "incident_id": ref.id,
                        "severity": it.finding.decision.severity,
                        "kind": it.finding.kind,
                    },
                    dedupe_key=it.key,
                    now=it.at,
                )
            await unit.audit.append(
                AuditEvent(
                    event="incident.opened" if ref.created else "incident.updated",
                    actor=f"app:{it.app_id}",
                    at=it.at,
                    request_id=it.request_id,
                    conversation_id=conversation,
                    incident_id=ref.id,
                    data={**_decision_data(it.finding.decision), "kind": it.finding.kind},
                )
            )
        self._hint(ref)
        return ref

    def _hint(self, ref: IncidentRef) -> None:
        """Tell whoever watches.  A stranger's bus may break its promise and raise; that loses a hint, not a fact."""
        with contextlib.suppress(Exception):
            self._bus.publish(Hint(kind="incident", id=ref.id))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_s(), tz=UTC)


def kind_of(decision: Decision) -> IncidentKind:
    """What sort of incident a decision is, for the reviewers' queue."""
    if decision.stage == "output":
        return "output_harm"
    if decision.stage == "backend":
        return "backend"
    if decision.severity <= 1 and any(reason.startswith("unavailable") for reason in decision.reasons):
        return "unavailable"
    if decision.severity > 0:
        return "crisis"
    return "abuse"


def _incident(it: Intervention, conversation: str | None) -> NewIncident:
    decision = it.finding.decision
    escalation = decision.escalation or WITHOUT_CLOCK
    return NewIncident(
        conversation_id=conversation,
        app_id=it.app_id,
        kind=it.finding.kind,
        severity=decision.severity,
        categories=decision.categories,
        imminence=it.finding.imminence,
        subject=it.finding.subject,
        stage=decision.stage,
        policy_version=decision.policy_version,
        route=escalation.route,
        ack_within_s=escalation.ack_within_s,
        evidence=it.finding.evidence,
        opened_at=it.at,
    )


async def _save_risk(
    unit: UnitOfWork, app_id: str, conversation_id: str | None, end_user: str | None, kept: Kept | None, at: datetime
) -> str | None:
    """Store what the conversation carries now; a turn that ran beside this one may not be overwritten."""
    if conversation_id is None or kept is None:
        return None
    risks = RiskRepository(unit)
    stored = await risks.load(app_id, conversation_id)
    if stored is None or stored == kept.after or stored in kept.known:
        risk = kept.after
    else:
        risk = strictest(stored, kept.after)
    return await risks.save(app_id, conversation_id, risk, end_user_hash=end_user, now=at)


def _decision_data(decision: Decision) -> Data:
    return {
        "action": decision.action,
        "stage": decision.stage,
        "mode": decision.mode,
        "severity": decision.severity,
        "categories": list(decision.categories),
        "reasons": list(decision.reasons),
        "policy_version": decision.policy_version,
    }
