"""One turn, whole: from a person's message to the last judged word of the answer.

Read `take_turn` from top to bottom; it is the story that DESIGN section 3 tells.  Detectors propose
(`listen`), the policy decides (`decide`), this module acts.  Two promises hold on every path:

- no character reaches the person that no verdict covers (`_speak`, `holdback.next_window`);
- incident, outbox and audit rows commit before the first byte of an intervention (`_bring_people_in`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, date, datetime
from typing import Final

import msgspec

from backends.api import BackendError, Chunk, Message, Prompt, Usage
from detectors.fusion import Flags, Reading
from gateway.errors import Overloaded
from gateway.pipeline import facts
from gateway.pipeline.case import MAX_STOPS, Case, Closed, Delta, House, Opened, Piece
from gateway.pipeline.evidence import evidence_of
from gateway.pipeline.holdback import Window, next_window
from gateway.pipeline.listen import Heard, cut_off, listen, reply_passage
from gateway.pipeline.record import Finding, Kept, kind_of
from gateway.pipeline.shield import see_through
from gateway.pipeline.speculation import Speculation
from gateway.pipeline.state import Decision, FinishReason, Outcome, Turn
from gateway.policy.engine import decide
from gateway.policy.wording import guidance, render
from gateway.session.risk import Risk, answered, carried, fold, fold_all, strictest
from gateway.store.errors import StoreError

CHARS_PER_TOKEN: Final = 4
MAX_ANSWER_CHARS: Final = 65_536
RETRY_AFTER_S: Final = 2
STOPPED: Final = Reading(output=Flags(flagged=True))
LEFT_OUT: Final = "(An earlier answer was left out.)"
"""Stands in the prompt where the client put an answer that must not stand."""


async def take_turn(house: House, turn: Turn, *, room: bool = True) -> AsyncGenerator[Piece, None]:
    """Answer one turn.  Yields `Opened`, then `Delta`s, then `Closed`.

    Closing the generator early (the client left) aborts the backend and still writes the record: a
    message that arrived is judged, and people are brought in, whether or not anyone waits for the answer.
    Whatever fails (a detector, the backend, the store, this code) the person gets words.  Without ``room``
    for another answer of the model, care is still given; a turn that needs none raises `Overloaded`.
    """
    case = Case(house, turn, house.policy.current, house.observer.turn(turn, house.clock.monotonic_s()))
    try:
        decision = await see_through(_hear_and_decide(case, early=room))
        if decision.model_may_speak and not room:
            raise Overloaded("Too many conversations at once; retry shortly.", retry_after_s=RETRY_AFTER_S)
        case.progress.opened = True
        yield Opened(decision)

        if decision.model_may_speak:
            async for delta in _speak(case):
                yield delta
        else:
            yield _care(case)

        yield Closed(await see_through(_settle(case, client_gone=False)))
    except Overloaded:
        raise
    except Exception as error:  # noqa: BLE001 - a fault of ours may not leave a person without words
        house.observer.turn_broke(error)
        for piece in await see_through(_make_good(case)):
            yield piece
    finally:
        await see_through(_leave(case))


# --- the person is heard -----------------------------------------------------------------------


async def _hear_and_decide(case: Case, *, early: bool) -> Decision:
    """Judge what the person wrote, fold it into the conversation's risk, decide, and bring people in.

    The backend already starts meanwhile (``early``), if nothing speaks against it: not the cheap detectors,
    not the conversation so far.
    """
    house, turn, progress = case.house, case.turn, case.progress
    progress.mark = house.recorder.mark(turn, len(turn.lines) - 1)
    stored, recalled = await _recall(case)
    carries = carried(stored or Risk(), house.clock.now_s())
    cheap = await listen(house.panel, turn, only_cheap=True)
    calm = recalled and carries.level == 0 and not cheap.alarmed and not _spent(case)
    if early and calm:
        progress.speech = house.speeches.start(house.backend, _prompt(case, cheap, guided=None))
    heard = await listen(house.panel, turn)

    now_s = house.clock.now_s()
    history = fold_all(heard.earlier, now_s)
    before = strictest(carries, answered(history, history.level))
    again = carries.mark == progress.mark
    after = before if again else msgspec.structs.replace(fold(before, heard.signal, now_s), mark=progress.mark)
    known = facts.of_input(turn, heard, before, after, house.backend.info, recalled=recalled)
    decision = decide(case.policy, known)
    progress.heard, progress.decision, progress.detectors = heard, decision, dict(heard.detectors)
    progress.kept = Kept(after, (stored,) if recalled else ())
    if not decision.model_may_speak and progress.speech is not None:
        await progress.speech.abort()
    case.seen.decided(decision, house.clock.monotonic_s())
    await _bring_people_in(case, decision, fresh=heard.speaks_up or bool(known.unavailable))
    return decision


async def _recall(case: Case) -> tuple[Risk | None, bool]:
    """The conversation's risk by our record, and whether it could be read: what we cannot recall is not calm."""
    try:
        return await case.house.recorder.recall(case.turn), True
    except StoreError as error:
        case.house.observer.store_failed("recall", error.kind)
        return None, False


# --- the model speaks --------------------------------------------------------------------------


def _prompt(case: Case, heard: Heard, guided: str | None) -> Prompt:
    """Persona first, always; then the policy's guidance; the application's own instructions rank below both.

    An earlier answer that must not stand leaves its place, for chat templates want the roles to alternate.
    """
    turn = case.turn
    parts = [case.house.persona]
    if guided:
        parts.append(guided)
    asked = [line.text for line in turn.lines if line.role == "system"]
    if asked:
        parts.append("The application asks, as far as it does not conflict with the above:\n" + "\n".join(asked))
    spoken = [
        Message(role=line.role, content=LEFT_OUT if index in heard.unfit else line.text)
        for index, line in enumerate(turn.lines)
        if line.role != "system"
    ]
    messages = (Message(role="system", content="\n\n".join(parts)), *spoken)
    return Prompt(request_id=turn.request_id, messages=messages, sampling=turn.sampling)


async def _right_speech(case: Case) -> Speculation:
    """The call that started early if it asked the right thing, else a new one."""
    progress = case.progress
    guided = guidance(case.policy, case.decision, case.turn.region, today=_today(case))
    if progress.speech is not None and guided is not None:
        await progress.speech.abort()
        progress.speech = None
    if progress.speech is None:
        progress.speech = case.house.speeches.start(case.house.backend, _prompt(case, case.heard, guided))
    return progress.speech


async def _speak(case: Case) -> AsyncGenerator[Delta, None]:
    """Release the answer window by window, each only after its verdict."""
    text, released, finished = "", 0, False
    if _spent(case):
        yield await _end_with_care(case, _stopped_before(case), "content_filter")
        return
    speech = await _right_speech(case)
    case.progress.resources = render(case.policy, case.decision, case.turn.region, today=_today(case)).resources
    async with aclosing(speech.chunks()) as chunks:
        while not finished:
            try:
                chunk = await _next_chunk(case, chunks)
            except BackendError as error:
                yield await _backend_failed(case, error)
                return
            text += _whole(chunk.text)[: MAX_ANSWER_CHARS - len(text)]
            finished = _note(case, chunk) or len(text) >= MAX_ANSWER_CHARS
            while (window := next_window(text, released, case.house.holdback, finished=finished)) is not None:
                verdict = await _judge_window(case, text, window)
                if not verdict.model_may_speak:
                    case.house.stops.add(case.progress.mark)
                    yield await _end_with_care(case, verdict, "content_filter", said=text[: window.judged_to])
                    return
                released = window.end
                yield _deliver(case, text[window.start : window.end])
    if not text.strip():
        yield await _backend_failed(case, BackendError("protocol", "the backend said nothing"))


async def _next_chunk(case: Case, chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    """The backend's next word, or a `BackendError` when it stays silent for too long."""
    try:
        async with asyncio.timeout(case.house.silence_s):
            return await anext(chunks)
    except TimeoutError:
        raise BackendError("timeout", "the backend fell silent") from None


def _whole(text: str) -> str:
    """Half of a surrogate pair cannot be sent; a plug-in backend may produce one."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _note(case: Case, chunk: Chunk) -> bool:
    """Note a chunk of the backend; True when it is the last."""
    case.progress.generated_chunks += 1
    case.progress.usage = chunk.usage or case.progress.usage
    case.progress.finish_reason = chunk.finish_reason or "length"
    return chunk.finish_reason is not None


async def _judge_window(case: Case, text: str, window: Window) -> Decision:
    said = text[window.judged_from : window.judged_to]
    if window.judged_from == 0:
        said = cut_off(case.turn, case.house.holdback.overlap_chars) + said
    reading = await case.house.panel.read(reply_passage(case.turn, said))
    for name, state in reading.detectors.items():
        if state == "unavailable":
            case.progress.detectors[name] = state
    known = facts.of_output(case.turn, case.decision, case.heard, reading, case.house.backend.info)
    return decide(case.policy, known)


def _spent(case: Case) -> bool:
    """Whether this turn was tried often enough.  Of a caller without a name nobody can say that it is the same one."""
    named = case.turn.conversation_id is not None or case.turn.end_user_hash is not None
    return named and case.house.stops.count(case.progress.mark) >= MAX_STOPS


def _stopped_before(case: Case) -> Decision:
    """The answer to this very turn was stopped again and again: the model is not asked once more."""
    known = facts.of_output(case.turn, case.decision, case.heard, STOPPED, case.house.backend.info)
    return decide(case.policy, known)


# --- people and care ---------------------------------------------------------------------------


async def _bring_people_in(case: Case, decision: Decision, *, fresh: bool, said: str = "") -> None:
    """Commit incident, outbox and audit rows if the decision asks for people.

    Without a conversation id, a crisis that only the history holds is raised once: when it was new, or now, if
    this gateway never met it.  When the store fails, the finding is kept on disk until it can be committed,
    and the person is answered: silence would harm them more.
    """
    if decision.escalation is None:
        return
    if case.turn.conversation_id is None and case.heard.lead >= 0:
        told_before = case.house.raised.add(case.house.recorder.mark(case.turn, case.heard.lead))
        if told_before and not fresh:
            return
        fresh = True
    finding = Finding(
        decision=decision,
        kind=kind_of(decision),
        evidence=evidence_of(case.turn, case.heard, said),
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


def _care(case: Case) -> Delta:
    """Reviewed words in place of the model's, or after those already released."""
    care = render(case.policy, case.decision, case.turn.region, today=_today(case))
    case.progress.resources = care.resources
    case.progress.cared = True
    separator = "\n\n" if case.progress.delivered_chars else ""
    return _deliver(case, separator + care.text)


async def _end_with_care(case: Case, decision: Decision, finish: FinishReason, *, said: str = "") -> Delta:
    """End an answer that cannot go on: the backend first, then the record, then the care text."""
    if case.progress.speech is not None:
        await case.progress.speech.abort()
    case.progress.decision = decision
    case.progress.finish_reason = finish
    await see_through(_bring_people_in(case, decision, fresh=True, said=said))
    return _care(case)


async def _backend_failed(case: Case, error: BackendError) -> Delta:
    """The model is gone: a person still gets words and a place to turn to."""
    case.house.observer.backend_failed(error.kind)
    case.progress.backend_error = error.kind
    return await _end_with_care(case, _without_backend(case), "stop")


def _without_backend(case: Case) -> Decision:
    return decide(
        case.policy,
        facts.of_backend_failure(case.turn, case.progress.decision, case.heard, case.house.backend.info),
    )


async def _make_good(case: Case) -> list[Piece]:
    """A fault of ours, wherever it happened: what is missing of the turn, with care in place of the rest."""
    if case.progress.settled:
        return [Closed(_outcome(case))]
    delta = await _end_with_care(case, _without_backend(case), "stop")
    opening: list[Piece] = [] if case.progress.opened else [Opened(case.decision)]
    return [*opening, delta, Closed(await _settle(case, client_gone=False))]


def _today(case: Case) -> date:
    return datetime.fromtimestamp(case.house.clock.now_s(), tz=UTC).date()


def _deliver(case: Case, text: str) -> Delta:
    if case.progress.delivered_chars == 0:
        case.seen.first_text(case.house.clock.monotonic_s())
    case.progress.delivered_chars += len(text)
    return Delta(text)


# --- the end -----------------------------------------------------------------------------------


async def _settle(case: Case, *, client_gone: bool) -> Outcome:
    """Write how the turn ended, once.  A store that fails here is counted; the person has their answer."""
    progress = case.progress
    progress.settled = True
    outcome = _outcome(case)
    kept = progress.kept
    if kept is not None and progress.cared and not client_gone:
        kept = kept.then(answered(kept.after, outcome.decision.severity))
    try:
        await case.house.recorder.close(case.turn, outcome, kept, client_gone=client_gone)
    except StoreError as error:
        case.house.observer.store_failed("close", error.kind)
    case.seen.closed(outcome, case.house.clock.monotonic_s(), client_gone=client_gone)
    return outcome


async def _leave(case: Case) -> None:
    """However the turn ends: the backend is let go, and what happened is on record."""
    if case.progress.speech is not None:
        await case.progress.speech.abort()
    if case.progress.decision is None:
        case.seen.broke()
    elif not case.progress.settled:
        await _settle(case, client_gone=True)


def _outcome(case: Case) -> Outcome:
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


def _estimate(case: Case) -> Usage:
    """Tokens when the backend did not count: none if no model spoke, else four characters a token."""
    if case.progress.generated_chunks == 0:
        return Usage(prompt_tokens=0, completion_tokens=0)
    prompt_chars = sum(len(line.text) for line in case.turn.lines)
    return Usage(
        prompt_tokens=math.ceil(prompt_chars / CHARS_PER_TOKEN),
        completion_tokens=case.progress.generated_chunks,
    )
