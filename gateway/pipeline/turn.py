"""One turn, whole: from a person's message to the last judged word of the answer.

Read `take_turn` from top to bottom; it is the story that DESIGN section 3 tells.  Detectors propose
(`listen`), the policy decides (`decide`), this module acts.  Two promises hold on every path:

- no character reaches the person that no verdict covers (`_speak`, `holdback.next_window`);
- incident, outbox and audit rows commit before the first byte of an intervention (`_bring_people_in`).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final

import msgspec

from backends.api import BackendError, ChatBackend, Chunk, Message, Prompt, Usage
from detectors.fusion import DetectorState
from detectors.panel import Panel
from gateway.pipeline import facts
from gateway.pipeline.holdback import Rules, Window, next_window
from gateway.pipeline.listen import Heard, listen, reply_passage
from gateway.pipeline.observe import Observer, TurnView
from gateway.pipeline.record import Clock, Finding, Kept, Recorder, kind_of
from gateway.pipeline.shield import see_through
from gateway.pipeline.speculation import Speculation
from gateway.pipeline.state import Decision, FinishReason, Outcome, Turn
from gateway.policy.decision import Resource
from gateway.policy.engine import decide
from gateway.policy.loader import PolicyHolder
from gateway.policy.schema import Policy
from gateway.policy.wording import guidance, render
from gateway.session.risk import Risk, answered, carried, fold, fold_all, strictest
from gateway.store.errors import StoreError

SETTLE_WITHIN_S: Final = 5.0
CHARS_PER_TOKEN: Final = 4
MAX_ANSWER_CHARS: Final = 65_536
EVIDENCE_LINES: Final = 4


class Opened(msgspec.Struct, frozen=True):
    """The input is judged, and what must be recorded is recorded: headers may go out."""

    decision: Decision


class Delta(msgspec.Struct, frozen=True):
    """Text that may reach the person now."""

    text: str


class Closed(msgspec.Struct, frozen=True):
    """The turn is over and on record."""

    outcome: Outcome


Piece = Opened | Delta | Closed


@dataclass(frozen=True, slots=True)
class House:
    """Everything a turn works with.  Built once, in `gateway/main.py`."""

    panel: Panel
    policy: PolicyHolder
    backend: ChatBackend
    recorder: Recorder
    clock: Clock
    observer: Observer
    persona: str
    holdback: Rules = field(default_factory=Rules)


@dataclass(slots=True)
class _Progress:
    """How far the turn has come: what a client that leaves at any moment leaves behind."""

    heard: Heard | None = None
    decision: Decision | None = None
    kept: Kept | None = None
    """What the conversation carried and carries now; None while that is unknown, and then left as it was."""
    speech: Speculation | None = None
    incident_id: str | None = None
    resources: tuple[Resource, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage | None = None
    delivered_chars: int = 0
    generated_chunks: int = 0
    backend_error: str | None = None
    detectors: dict[str, DetectorState] = field(default_factory=dict)
    settled: bool = False


@dataclass(frozen=True, slots=True)
class _Case:
    """One turn under way: the house, the request, the policy that holds for all of it, and how far it is."""

    house: House
    turn: Turn
    policy: Policy
    seen: TurnView
    progress: _Progress = field(default_factory=_Progress)

    @property
    def heard(self) -> Heard:
        if self.progress.heard is None:
            raise AssertionError("nothing is said before the person is heard")
        return self.progress.heard

    @property
    def decision(self) -> Decision:
        if self.progress.decision is None:
            raise AssertionError("nothing is said before the policy has decided")
        return self.progress.decision


async def take_turn(house: House, turn: Turn) -> AsyncGenerator[Piece, None]:
    """Answer one turn.  Yields `Opened`, then `Delta`s, then `Closed`.

    Closing the generator early (the client left) aborts the backend and still writes the record: a
    message that arrived is judged, and people are brought in, whether or not anyone waits for the answer.
    Never raises for a failing detector, backend or store: each has its declared outcome.
    """
    case = _Case(house, turn, house.policy.current, house.observer.turn(turn, house.clock.monotonic_s()))
    try:
        decision = await see_through(_hear_and_decide(case), within_s=SETTLE_WITHIN_S)
        yield Opened(decision)

        if decision.model_may_speak:
            async for delta in _speak(case):
                yield delta
        else:
            yield _care(case)

        yield Closed(await see_through(_settle(case, client_gone=False), within_s=SETTLE_WITHIN_S))
    finally:
        await see_through(_leave(case), within_s=SETTLE_WITHIN_S)


# --- the person is heard -----------------------------------------------------------------------


async def _hear_and_decide(case: _Case) -> Decision:
    """Judge what the person wrote, fold it into the conversation's risk, decide, and bring people in.

    The backend already starts meanwhile, if nothing speaks against it: not the cheap detectors, not the
    conversation so far.
    """
    house, turn, progress = case.house, case.turn, case.progress
    stored, recalled = await _recall(case)
    carries = carried(stored or Risk(), house.clock.now_s())
    cheap = await listen(house.panel, turn, only_cheap=True)
    if recalled and carries.level == 0 and not cheap.alarmed:
        progress.speech = Speculation(house.backend, _prompt(case, guided=None))
    heard = await listen(house.panel, turn)

    now_s = house.clock.now_s()
    history = fold_all(heard.earlier, now_s)
    before = strictest(carries, answered(history, history.level))
    after = fold(before, heard.signal, now_s)
    known = facts.of_input(turn, heard, before, after, house.backend.info, recalled=recalled)
    decision = decide(case.policy, known)
    progress.heard, progress.decision, progress.detectors = heard, decision, dict(heard.detectors)
    if recalled:
        progress.kept = Kept(stored, after if decision.model_may_speak else answered(after, decision.severity))
    if not decision.model_may_speak and progress.speech is not None:
        await progress.speech.abort()
    case.seen.decided(decision, house.clock.monotonic_s())
    await _bring_people_in(case, decision, _evidence(turn), fresh=heard.speaks_up or bool(known.unavailable))
    return decision


async def _recall(case: _Case) -> tuple[Risk | None, bool]:
    """The conversation's risk by our record, and whether it could be read: what we cannot recall is not calm."""
    try:
        return await case.house.recorder.recall(case.turn), True
    except StoreError as error:
        case.house.observer.store_failed("recall", error.kind)
        return None, False


# --- the model speaks --------------------------------------------------------------------------


def _prompt(case: _Case, guided: str | None) -> Prompt:
    """Persona first, always; then the policy's guidance; the application's own instructions rank below both."""
    turn = case.turn
    parts = [case.house.persona]
    if guided:
        parts.append(guided)
    asked = [line.text for line in turn.lines if line.role == "system"]
    if asked:
        parts.append("The application asks, as far as it does not conflict with the above:\n" + "\n".join(asked))
    spoken = [Message(role=line.role, content=line.text) for line in turn.lines if line.role != "system"]
    messages = (Message(role="system", content="\n\n".join(parts)), *spoken)
    return Prompt(request_id=turn.request_id, messages=messages, sampling=turn.sampling)


async def _right_speech(case: _Case) -> Speculation:
    """The call that started early if it asked the right thing, else a new one."""
    progress = case.progress
    guided = guidance(case.policy, case.decision, case.turn.region, today=_today(case))
    if progress.speech is not None and guided is not None:
        await progress.speech.abort()
        progress.speech = None
    if progress.speech is None:
        progress.speech = Speculation(case.house.backend, _prompt(case, guided))
    return progress.speech


async def _speak(case: _Case) -> AsyncGenerator[Delta, None]:
    """Release the answer window by window, each only after its verdict."""
    text, released, finished = "", 0, False
    speech = await _right_speech(case)
    case.progress.resources = render(case.policy, case.decision, case.turn.region, today=_today(case)).resources
    async with aclosing(speech.chunks()) as chunks:
        while not finished:
            try:
                chunk = await anext(chunks)
            except BackendError as error:
                yield await _backend_failed(case, error)
                return
            text += chunk.text
            finished = _note(case, chunk) or len(text) >= MAX_ANSWER_CHARS
            while (window := next_window(text, released, case.house.holdback, finished=finished)) is not None:
                verdict = await _judge_window(case, text, window)
                if not verdict.model_may_speak:
                    yield await _stop(case, verdict, text[: window.judged_to])
                    return
                released = window.end
                yield _deliver(case, text[window.start : window.end])


def _note(case: _Case, chunk: Chunk) -> bool:
    """Note a chunk of the backend; True when it is the last."""
    case.progress.generated_chunks += 1
    case.progress.usage = chunk.usage or case.progress.usage
    case.progress.finish_reason = chunk.finish_reason or "length"
    return chunk.finish_reason is not None


async def _judge_window(case: _Case, text: str, window: Window) -> Decision:
    reading = await case.house.panel.read(reply_passage(case.turn, text[window.judged_from : window.judged_to]))
    for name, state in reading.detectors.items():
        if state == "unavailable":
            case.progress.detectors[name] = state
    known = facts.of_output(case.turn, case.decision, case.heard, reading, case.house.backend.info)
    return decide(case.policy, known)


# --- people and care ---------------------------------------------------------------------------


async def _bring_people_in(case: _Case, decision: Decision, evidence: str, *, fresh: bool) -> None:
    """Commit incident, outbox and audit rows if the decision asks for people.

    When the store fails here the person is still answered: silence would harm them more.  The
    failure is a metric, an error line and an unready gateway, and the turn says that no incident exists.
    """
    if decision.escalation is None:
        return
    finding = Finding(
        decision=decision,
        kind=kind_of(decision),
        evidence=evidence,
        imminence=case.heard.last.crisis.imminence,
        subject=case.heard.last.crisis.subject,
        fresh=fresh,
    )
    try:
        ref = await case.house.recorder.intervene(case.turn, finding, case.progress.kept)
    except StoreError as error:
        case.house.observer.store_failed("intervene", error.kind)
        return
    case.progress.incident_id = ref.id
    case.house.observer.escalated(decision)


def _care(case: _Case) -> Delta:
    """Reviewed words in place of the model's, or after those already released."""
    care = render(case.policy, case.decision, case.turn.region, today=_today(case))
    case.progress.resources = care.resources
    separator = "\n\n" if case.progress.delivered_chars else ""
    return _deliver(case, separator + care.text)


async def _stop(case: _Case, verdict: Decision, answer: str) -> Delta:
    """End an answer that must not go on: the backend first, then the record, then the care text."""
    if case.progress.speech is not None:
        await case.progress.speech.abort()
    case.progress.decision = verdict
    case.progress.finish_reason = "content_filter"
    work = _bring_people_in(case, verdict, _evidence(case.turn, answer), fresh=True)
    await see_through(work, within_s=SETTLE_WITHIN_S)
    return _care(case)


async def _backend_failed(case: _Case, error: BackendError) -> Delta:
    """The model is gone: a person still gets words and a place to turn to."""
    case.house.observer.backend_failed(error.kind)
    case.progress.backend_error = error.kind
    case.progress.finish_reason = "stop"
    known = facts.of_backend_failure(case.turn, case.decision, case.heard, case.house.backend.info)
    case.progress.decision = decide(case.policy, known)
    work = _bring_people_in(case, case.decision, _evidence(case.turn), fresh=True)
    await see_through(work, within_s=SETTLE_WITHIN_S)
    return _care(case)


def _today(case: _Case) -> date:
    return datetime.fromtimestamp(case.house.clock.now_s(), tz=UTC).date()


def _deliver(case: _Case, text: str) -> Delta:
    if case.progress.delivered_chars == 0:
        case.seen.first_text(case.house.clock.monotonic_s())
    case.progress.delivered_chars += len(text)
    return Delta(text)


def _evidence(turn: Turn, answer: str = "") -> str:
    """What a reviewer needs to understand the incident; encrypted before it is stored."""
    lines = [f"{line.role}: {line.text}" for line in turn.lines[-EVIDENCE_LINES:]]
    if answer:
        lines.append(f"assistant (stopped): {answer}")
    return "\n".join(lines)


# --- the end -----------------------------------------------------------------------------------


async def _settle(case: _Case, *, client_gone: bool) -> Outcome:
    """Write how the turn ended, once.  A store that fails here is counted; the person has their answer."""
    case.progress.settled = True
    outcome = _outcome(case)
    try:
        await case.house.recorder.close(case.turn, outcome, case.progress.kept, client_gone=client_gone)
    except StoreError as error:
        case.house.observer.store_failed("close", error.kind)
    case.seen.closed(outcome, case.house.clock.monotonic_s(), client_gone=client_gone)
    return outcome


async def _leave(case: _Case) -> None:
    """However the turn ends: the backend is let go, and what happened is on record."""
    if case.progress.speech is not None:
        await case.progress.speech.abort()
    if case.progress.decision is None:
        case.seen.broke()
    elif not case.progress.settled:
        await _settle(case, client_gone=True)


def _outcome(case: _Case) -> Outcome:
    progress = case.progress
    return Outcome(
        decision=case.decision,
        finish_reason=progress.finish_reason,
        usage=progress.usage or _estimate(case),
        detectors=progress.detectors,
        incident_id=progress.incident_id,
        resources=progress.resources,
        delivered_chars=progress.delivered_chars,
        backend_error=progress.backend_error,
    )


def _estimate(case: _Case) -> Usage:
    """Tokens when the backend did not count: none if no model spoke, else four characters a token."""
    if case.progress.generated_chunks == 0:
        return Usage(prompt_tokens=0, completion_tokens=0)
    prompt_chars = sum(len(line.text) for line in case.turn.lines)
    return Usage(
        prompt_tokens=math.ceil(prompt_chars / CHARS_PER_TOKEN),
        completion_tokens=case.progress.generated_chunks,
    )
