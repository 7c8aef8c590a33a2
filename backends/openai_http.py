"""Any server that speaks OpenAI's chat completions: vLLM, llama.cpp's server, TGI, Ollama, a hosted one.

One streamed POST per prompt over one pooled client.  No retries, breakers or tracing here: those are
decorators over the contract.  The words of a server's error are never repeated, for they quote prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Annotated, ClassVar, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from backends.api import BackendError, BackendInfo, Chunk, Prompt
from backends.openai_wire import DONE, Answer, Event, kind_of_status, request_body
from backends.sse import EventTooLarge, SSEReader

_KEEPALIVE_S = 4.0
"""Below uvicorn's 5 s, which vLLM uses: a pooled connection is dropped before its server drops it."""
_DRAIN_S = 0.05
_HEALTH_S = 5.0
_MAX_LISTING_BYTES = 1024 * 1024

T = TypeVar("T")
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class OpenAIHTTPConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    """The server's base, with or without ``/v1``: ``http://127.0.0.1:8001``."""
    model: str
    api_key: str | None = None
    context_tokens: Annotated[int, msgspec.Meta(ge=1)] = 8192
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 4096
    """The most tokens of one answer, whatever the prompt asks for."""
    trusted_to: Annotated[int, msgspec.Meta(ge=0, le=2)] = 0
    connect_timeout_s: Seconds = 5.0
    first_token_timeout_s: Seconds = 60.0
    """From the request to the first text or the end."""
    idle_timeout_s: Seconds = 30.0
    """The longest silence after the first text."""
    total_timeout_s: Seconds = 300.0
    max_event_bytes: Annotated[int, msgspec.Meta(ge=1024, le=16 * 1024 * 1024)] = 256 * 1024
    max_answer_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 16 * 1024 * 1024
    """Of the stream as sent, framing and ignored fields included."""
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 256
    check_model: bool = True
    """Whether `health` requires the server to list ``model`` (where it lists any)."""

    def __post_init__(self) -> None:
        base_url(self.url)

    def __repr__(self) -> str:
        """Without the key, which must not reach a log through an error about settings."""
        return f"OpenAIHTTPConfig(model={self.model!r})"


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Listing(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...] = ()


def base_url(url: str) -> str:
    """``url`` without a trailing slash and with its version segment, ``/v1`` unless it names another.

    Raises ValueError for what is not a plain http(s) base.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("url: expected http://HOST[:PORT] or https://HOST[:PORT]")
    if parts.port == 0:  # reading it also refuses what is not a port at all
        raise ValueError("url: port 0 cannot be called")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("url: no credentials, query or fragment; a key belongs in api_key")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    last = path.rpartition("/")[2]
    if not (last.startswith("v") and last[1:].isdigit()):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


class OpenAIHTTPBackend:
    """Speaks to one remote server."""

    config_type: ClassVar[type[OpenAIHTTPConfig]] = OpenAIHTTPConfig

    def __init__(self, config: OpenAIHTTPConfig, session: aiohttp.ClientSession) -> None:
        self._config = config
        self._base = base_url(config.url)
        self._session = session

    @classmethod
    async def load(cls, config: OpenAIHTTPConfig) -> Self:
        """Open the client, not a connection: a server that is down shows in `health`."""
        headers = {"Accept-Encoding": "identity"}
        if config.api_key is not None:
            headers["Authorization"] = f"Bearer {config.api_key}"
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.max_connections, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            auto_decompress=False,
        )
        return cls(config, session)

    @property
    def info(self) -> BackendInfo:
        config = self._config
        return BackendInfo("openai_http", config.model, config.context_tokens, trusted_to=config.trusted_to)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """As the contract.  Closing the generator closes its connection, which is how servers learn of it."""
        self._require_open()
        patience = _Patience(self._config)
        body = request_body(prompt, max_tokens=self._config.max_tokens) | {"model": self._config.model}
        response = await patience.spend(
            self._session.post(
                f"{self._base}/chat/completions",
                data=msgspec.json.encode(body),
                headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
                allow_redirects=False,
            )
        )
        try:
            _require_ok(response)
            if response.content_type != "text/event-stream":
                raise BackendError("protocol", "the server did not answer with an event stream")
            reading = _Reading(self._config, response, patience)
            while not reading.over:
                for text in await reading.advance():
                    yield Chunk(text=text)
            yield await reading.last_chunk()
        finally:
            # Drops the connection of an answer that was cut short; one that was read whole is pooled already.
            response.close()

    async def health(self) -> None:
        """Asks for the list of models: the cheapest request that shows the server up and the key good."""
        self._require_open()
        listing = await _answered(self._fetch_models(), _HEALTH_S)
        if listing and self._config.check_model and self._config.model not in listing:
            raise BackendError("rejected", "the server does not list the configured model")

    async def aclose(self) -> None:
        await self._session.close()

    async def _fetch_models(self) -> frozenset[str]:
        async with self._session.get(f"{self._base}/models", allow_redirects=False) as response:
            if response.status == 404:
                return frozenset()  # not every server has the route; it is up, and answers
            _require_ok(response)
            body = b""
            while piece := await response.content.readany():
                body += piece
                if len(body) > _MAX_LISTING_BYTES:
                    raise BackendError("protocol", f"the list of models passes {_MAX_LISTING_BYTES} bytes")
        try:
            return frozenset(model.id for model in msgspec.json.decode(body, type=_Listing).data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BackendError("protocol", "the list of models cannot be parsed") from None

    def _require_open(self) -> None:
        if self._session.closed:
            raise BackendError("unavailable", "the client is closed")


class _Patience:
    """How long to wait for the server's next move: for its first word, between words, in all."""

    def __init__(self, config: OpenAIHTTPConfig) -> None:
        self._clock = asyncio.get_running_loop().time
        self._idle_s = config.idle_timeout_s
        self._end = self._clock() + config.total_timeout_s
        self._first = self._clock() + config.first_token_timeout_s
        self.heard = False
        """Set once the first text is there: silence counts from then on."""

    async def spend(self, wait: Awaitable[T]) -> T:
        now = self._clock()
        limit = now + self._idle_s if self.heard else self._first
        return await _answered(wait, min(limit, self._end) - now)


class _Reading:
    """One response body on its way to being an answer."""

    def __init__(self, config: OpenAIHTTPConfig, response: aiohttp.ClientResponse, patience: _Patience) -> None:
        self._response = response
        self._patience = patience
        self._events = SSEReader(config.max_event_bytes)
        self._answer = Answer()
        self._room = config.max_answer_bytes
        self.over = False

    async def advance(self) -> list[str]:
        """The texts in the next piece that the network brings."""
        try:
            piece = await self._patience.spend(self._response.content.readany())
        except BackendError:
            if not self._answer.finished:
                raise
            piece = b""  # whole but for its usage, which is a loss the contract allows
        self.over = not piece
        self._room -= len(piece)
        if self._room < 0:
            raise BackendError("protocol", "the answer passed its bound in bytes")
        texts = [text for text in self._fold(piece) if text]
        self._patience.heard = self._patience.heard or bool(texts)
        return texts

    def _fold(self, piece: bytes) -> list[str]:
        texts: list[str] = []
        try:
            for data in self._events.feed(piece):
                if data.strip() == DONE:
                    self.over = True
                    break
                if data:
                    texts.append(self._answer.fold(msgspec.json.decode(data, type=Event)))
        except EventTooLarge as error:
            raise BackendError("protocol", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BackendError("protocol", "an event cannot be parsed") from None
        return texts

    async def last_chunk(self) -> Chunk:
        """The ending, after a moment for the body's own end, without which the connection cannot be used again."""
        last = self._answer.last_chunk()
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._response.content.readany()
        except (TimeoutError, aiohttp.ClientError):
            return last
        return last


def _require_ok(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        raise BackendError(kind_of_status(response.status), f"the server answered {response.status}")


async def _answered(wait: Awaitable[T], within_s: float) -> T:
    """Await with a bound, and turn the client's errors into the contract's."""
    try:
        async with asyncio.timeout(within_s):
            return await wait
    except TimeoutError:
        raise BackendError("timeout", "the server did not answer in time") from None
    except aiohttp.ClientConnectionError:
        raise BackendError("unavailable", "the server cannot be reached") from None
    except aiohttp.ClientPayloadError:
        raise BackendError("unavailable", "the connection broke in the middle of the answer") from None
    except aiohttp.ClientError:
        raise BackendError("protocol", "the server's answer is not HTTP as expected") from None
