"""Fixtures that start the real gateway.  The two session-wide ones are shared: tests do not change what they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import scripts
from tests.support.columns import Column, Embedded, Production
from tests.support.gateway import Gateway, running, scripted
from tests.support.servers import Databases, Valkey, postgres_databases

StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def embedded_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway as `make serve` starts it: the bundled detectors and the bundled model."""
    with running(tmp_path_factory.mktemp("embedded") / "home") as gateway:
        yield gateway


@pytest.fixture(scope="session")
def scripted_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The bundled detectors before a model that says what `tests.support.scripts` has it say."""
    with running(tmp_path_factory.mktemp("scripted") / "home", settings=scripted(scripts.SCRIPT)) as gateway:
        yield gateway


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Start gateways of the test's own: ``start_gateway(*arguments, settings=None, **variables)``.  All stop with it."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, home: Path | None = None, settings: str | None = None, **variables: str) -> Gateway:
            folder = home or tmp_path / f"home-{len(list(tmp_path.glob('home-*')))}"
            return stack.enter_context(running(folder, *arguments, settings=settings, **variables))

        yield start


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    """Databases on a real PostgreSQL."""
    with postgres_databases() as databases:
        yield databases


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A real Valkey."""
    server = Valkey()
    yield server
    server.close()


@pytest.fixture(params=["sqlite+inprocess", "postgres+valkey"])
def column(request: pytest.FixtureRequest, tmp_path: Path) -> Column:
    """Both columns, one after the other.  The servers start when the first test asks for them."""
    if request.param == "sqlite+inprocess":
        return Embedded(tmp_path)
    return Production(tmp_path, request.getfixturevalue("postgres"), request.getfixturevalue("valkey"))
