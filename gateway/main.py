"""The composition root: the only module that may know every other.  `create_app` builds the application from settings.

Nothing is opened at import; the store, the detectors and the backend come and go with the application's lifespan.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from structlog.typing import FilteringBoundLogger

from dashboards import home
from detectors.api import Detector
from detectors.panel import Observe, Panel
from gateway.auth.apikeys import ApiKeyAuthenticator, import_key
from gateway.auth.guards import Guard, check_routes
from gateway.auth.signin import SignIn
from gateway.events.inprocess import InProcessBus
from gateway.http import chat, faults, health, models, moderations
from gateway.http.front import Front, Slots
from gateway.http.openai import Limits
from gateway.pipeline.holdback import Rules
from gateway.pipeline.observe import Observer
from gateway.pipeline.record import Recorder
from gateway.pipeline.turn import House
from gateway.policy.loader import PolicyHolder, default_policy_path
from gateway.registry import load_backend, load_detectors
from gateway.settings import Settings
from gateway.store.crypto import Keyring
from gateway.store.migrate import upgrade
from gateway.store.uow import Store
from gateway.telemetry.start import Telemetry

_INJECTED: Final = ("front", "about", "pages", "signin")
_ROUTES: Final = (
    chat.chat_completions,
    models.list_models,
    models.retrieve_model,
    moderations.create_moderation,
    health.healthz,
    health.readyz,
    health.metrics,
    home.home,
    home.offer_login,
    home.login,
)


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


def open_store(settings: Settings) -> Store:
    """The record, its schema brought up to date; its keys are kept beside it, not in it."""
    keyring = Keyring.load_or_create(settings.home.expanduser().absolute() / "keyring.json")
    upgrade(settings.database_url)
    return Store.open(settings.database_url, keyring)


async def open_panel(
    settings: Settings, *, log: FilteringBoundLogger | None = None, observe: Observe | None = None
) -> tuple[Panel, list[Detector]]:
    """The detectors that settings name, and the panel that asks them under one deadline, with one cache."""
    detectors = await load_detectors(settings.detectors, log=log)
    panel = Panel(
        detectors, timeout_s=settings.judge.timeout_s, cache_entries=settings.judge.cache_entries, observe=observe
    )
    return panel, detectors


def create_app(settings: Settings) -> Litestar:
    """The application.  Raises `StartupError` with one clear line for whatever would keep it from serving."""
    telemetry = Telemetry.start(settings.telemetry)
    store = open_store(settings)
    policy = PolicyHolder(settings.policy.path or default_policy_path())
    telemetry.metrics.policy_loaded(policy.current.version)
    signin = SignIn(time.monotonic)
    keys = ApiKeyAuthenticator(store, store.keyring, settings.auth.key_cache_ttl_s)
    app = Litestar(
        route_handlers=[*_ROUTES, home.static_files()],
        guards=[Guard(keys, signin)],
        dependencies={name: Provide(_from_state(name), sync_to_thread=False) for name in _INJECTED},
        exception_handlers=faults.handlers(_late_observer(telemetry)),
        lifespan=[lambda app: _lifespan(app, settings, telemetry, store, policy)],
        request_max_body_size=settings.server.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )
    app.state.update({"signin": signin, "pages": home.Pages()})
    check_routes((path, handler.opt) for path, handler in _handlers(app))
    return app


@contextlib.asynccontextmanager
async def _lifespan(
    app: Litestar, settings: Settings, telemetry: Telemetry, store: Store, policy: PolicyHolder
) -> AsyncIterator[None]:
    """Open what a turn works with, in order, and close it in reverse."""
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(telemetry.shutdown)
        stack.push_async_callback(store.aclose)
        backend = await load_backend(settings.backend.kind, settings.backend.options, log=telemetry.log)
        stack.push_async_callback(backend.aclose)
        observer = Observer(telemetry, backend.info)
        panel, detectors = await open_panel(settings, log=telemetry.log, observe=observer.detector)
        stack.push_async_callback(panel.aclose)
        await _import_dev_key(settings, store)
        clock = SystemClock()
        house = House(
            panel=panel,
            policy=policy,
            backend=backend,
            recorder=Recorder(store, InProcessBus(), clock),
            clock=clock,
            observer=observer,
            persona=settings.persona.system_prompt,
            holdback=_holdback(settings),
        )
        app.state.front = Front(
            house=house,
            store=store,
            limits=_limits(settings),
            models=tuple(dict.fromkeys((settings.models.alias, backend.info.model))),
            slots=Slots(settings.server.max_streams, observer),
        )
        app.state.about = home.About(
            version=version("havengate"),
            profile=settings.profile,
            store=settings.database_url.partition(":")[0].partition("+")[0],
            detectors=tuple(detectors),
        )
        watcher = asyncio.create_task(_watch_policy(policy, observer, settings.policy.reload_check_s))
        stack.push_async_callback(_end, watcher)
        yield


async def _watch_policy(policy: PolicyHolder, observer: Observer, every_s: float) -> None:
    """Put a changed policy file into force while the gateway runs; a file that fails leaves the old one."""
    while True:
        await asyncio.sleep(every_s)
        if policy.changed_on_disk():
            result = await asyncio.to_thread(policy.reload)
            observer.policy_reloaded(result.version, result.error)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _import_dev_key(settings: Settings, store: Store) -> None:
    """Make the development key valid, if there is one; a second start changes nothing."""
    if settings.auth.dev_api_key is None:
        return
    async with store.begin() as unit:
        await import_key(
            unit,
            store.keyring,
            settings.auth.dev_api_key.get_secret_value(),
            name="development",
            scopes=("chat", "moderations", "models"),
            region="unknown",
            now=datetime.now(tz=UTC),
        )


def _holdback(settings: Settings) -> Rules:
    sizes = settings.holdback
    return Rules(first_chars=sizes.first_chars, window_chars=sizes.window_chars, overlap_chars=sizes.overlap_chars)


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_messages=settings.server.max_messages,
        max_message_chars=settings.server.max_message_chars,
        max_tokens_default=settings.persona.default_max_tokens,
        max_tokens_cap=settings.persona.cap_max_tokens,
    )


def _from_state(name: str) -> Callable[[State], Any]:
    """A dependency that hands out one object of the application's state."""

    def provide(state: State) -> Any:
        return state[name]

    return provide


def _handlers(app: Litestar) -> Iterator[tuple[str, Any]]:
    """Every path with each handler of ours that serves it.  Litestar's own OPTIONS answers are refused by the guard."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", None) or [getattr(route, "route_handler", None)]:
            if handler is not None and getattr(handler, "http_methods", None) != {"OPTIONS"}:
                yield route.path, handler


def _late_observer(telemetry: Telemetry) -> faults.Observe:
    def observe(status: int, code: str, bug: BaseException | None) -> None:
        telemetry.metrics.http_error(status, code)
        if bug is not None:
            telemetry.log.error("internal_error", status=status, code=code, exc_info=bug)

    return observe
