"""The composition root: the only module that may know every other.  `create_app` builds the application from settings.

Nothing is opened at import; the store, the detectors and the backend come and go with the application's lifespan.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from typing import Any, Final

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from dashboards import home
from gateway import parts
from gateway.auth.apikeys import ApiKeyAuthenticator
from gateway.auth.guards import Guard, check_routes
from gateway.auth.signin import SignIn
from gateway.http import chat, faults, health, models, moderations, openapi
from gateway.http.front import Front, Slots
from gateway.pipeline.case import House
from gateway.pipeline.observe import Observer, bus_observer, detector_observer
from gateway.pipeline.record import Recorder
from gateway.policy.loader import PolicyHolder, default_policy_path
from gateway.registry import load_backend
from gateway.settings import Settings
from gateway.store.uow import Store
from gateway.telemetry.start import Telemetry

PAY_EVERY_S: Final = 5.0
_INJECTED: Final = ("front", "about", "pages", "signin", "readiness")
_ROUTES: Final = (
    chat.chat_completions,
    models.list_models,
    models.retrieve_model,
    moderations.create_moderation,
    health.healthz,
    health.readyz,
    health.metrics,
    openapi.openapi_json,
    home.home,
    home.offer_login,
    home.login,
)


def create_app(settings: Settings) -> Litestar:
    """The application.  Raises `StartupError` with one clear line for whatever would keep it from serving."""
    telemetry = Telemetry.start(settings.telemetry)
    store = parts.open_store(settings)
    policy = PolicyHolder(settings.policy.path or default_policy_path())
    telemetry.metrics.policy_loaded(policy.current.version)
    signin = SignIn(parts.SystemClock().monotonic_s)
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
    app.state.update(
        {"signin": signin, "pages": home.Pages(), "readiness": health.Readiness(parts.SystemClock().monotonic_s)}
    )
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
        # Side by side: half a second of a person's wait.  If one fails the process ends, and the other with it.
        backend, (panel, detectors) = await asyncio.gather(
            load_backend(settings.backend.kind, settings.backend.options, log=telemetry.log),
            parts.open_panel(settings, log=telemetry.log, observe=detector_observer(telemetry)),
        )
        stack.push_async_callback(backend.aclose)
        stack.push_async_callback(panel.aclose)
        bus = await stack.enter_async_context(parts.open_bus(settings, bus_observer(telemetry)))
        observer = Observer(telemetry, backend.info)
        await parts.import_dev_key(settings, store)
        clock = parts.SystemClock()
        recorder = Recorder(store, bus, clock, parts.owed(settings, store))
        house = House(
            panel=panel,
            policy=policy,
            backend=backend,
            recorder=recorder,
            clock=clock,
            observer=observer,
            persona=settings.persona.system_prompt,
            holdback=parts.holdback(settings),
            silence_s=settings.backend.silence_s,
        )
        app.state.front = Front(
            house=house,
            store=store,
            limits=parts.limits(settings),
            models=tuple(dict.fromkeys((settings.models.alias, backend.info.model))),
            slots=Slots(settings.server.max_streams, observer),
        )
        app.state.about = home.About(
            version=version("havengate"),
            profile=settings.profile,
            store=settings.database_url.partition(":")[0].partition("+")[0],
            detectors=tuple(detectors),
        )
        for work in (
            _watch_policy(policy, observer, settings.policy.reload_check_s),
            _pay_what_is_owed(recorder, observer),
        ):
            stack.push_async_callback(_end, asyncio.create_task(work))
        yield


async def _watch_policy(policy: PolicyHolder, observer: Observer, every_s: float) -> None:
    """Put a changed policy file into force while the gateway runs; a file that fails leaves the old one."""
    while True:
        await asyncio.sleep(every_s)
        if policy.changed_on_disk():
            result = await asyncio.to_thread(policy.reload)
            observer.policy_reloaded(result.version, result.error)


async def _pay_what_is_owed(recorder: Recorder, observer: Observer) -> None:
    """Commit findings that the store could not take, as soon as it can: at start, then every few seconds."""
    while True:
        try:
            if waiting := await recorder.pay():
                observer.owed(waiting)
        except Exception as error:  # noqa: BLE001 - whatever it was, what is owed is tried again
            observer.store_failed("pay", type(error).__name__)
        await asyncio.sleep(PAY_EVERY_S)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


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
