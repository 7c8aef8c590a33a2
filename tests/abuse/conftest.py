"""A gateway that costs little: the lexicon alone before a scripted model.  Tests do not change what it holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.abuse.raw import LEXICON_ALONE
from tests.support import scripts
from tests.support.gateway import Gateway, running, scripted


@pytest.fixture(scope="session")
def light_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = scripted(scripts.SCRIPT) + LEXICON_ALONE
    with running(tmp_path_factory.mktemp("light") / "home", settings=settings) as gateway:
        yield gateway
