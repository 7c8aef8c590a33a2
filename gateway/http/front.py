"""What the routes share: the house, the limits, and the few things every request needs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from litestar import Request
from litestar.exceptions import HTTPException

from gateway.errors import BadRequest, BodyTooLarge, RequestTimeout
from gateway.http.openai import Limits
from gateway.pipeline.case import House
from gateway.pipeline.observe import Observer
from gateway.store.uow import Store

BODY_WITHIN_S: Final = 30.0


class Lease:
    """One conversation's place; giving it back twice counts once, for a stream can end in two ways."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def end(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class Slots:
    """How many conversations may be under way at once.  A full house is a value, not a wait."""

    def __init__(self, limit: int, observer: Observer) -> None:
        self._limit = limit
        self._taken = 0
        self._observer = observer

    def lease(self) -> Lease | None:
        """A place, or None when all are taken."""
        if self._taken >= self._limit:
            return None
        self._taken += 1
        self._observer.answer_begun()
        return Lease(self._one_less)

    def _one_less(self) -> None:
        self._taken -= 1
        if self._taken < 0:
            raise AssertionError("more places given back than taken")
        self._observer.answer_ended()


@dataclass(frozen=True, slots=True)
class Front:
    """Everything that ``gateway/http`` works with.  Built once, in `gateway/main.py`."""

    house: House
    store: Store
    limits: Limits
    models: tuple[str, ...]
    slots: Slots


def request_id_of(request: Request[Any, Any, Any]) -> str:
    """The id of this request.  Always ours: an id chosen outside could make two turns look like one."""
    state = request.scope.setdefault("state", {})
    known = state.get("havengate_request_id")
    if isinstance(known, str):
        return known
    request_id = uuid.uuid4().hex
    state["havengate_request_id"] = request_id
    return request_id


async def read_body(request: Request[Any, Any, Any]) -> bytes:
    """The whole body, within the limit.  A compressed body is refused: its size says nothing."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequest("Compressed request bodies are not accepted.", param=None)
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            body = await request.body()
    except TimeoutError:
        raise RequestTimeout("The request body did not arrive in time.") from None
    except HTTPException as error:
        if error.status_code == BodyTooLarge.status:
            raise BodyTooLarge("The request body is too large.") from None
        raise BadRequest("The request body could not be read.") from None
    if not body:
        raise BadRequest("The request body is empty.", param=None)
    return body
