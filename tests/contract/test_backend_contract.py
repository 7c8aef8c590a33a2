"""Every built-in backend, found in pyproject.toml's entry points, against the one contract."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.api import BackendInfo, Chunk, Prompt
from tests.contract import backend_checks
from tests.contract.backend_checks import CHECKS, Subject, Tally, ask
from tests.support.openai_server import MODEL, Behaviour, StandInServer

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
KINDS: dict[str, str] = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["havengate.backends"]

LONG_TEXT = "Tell me slowly, one gentle sentence after another, how a garden changes from March until October " * 3


def implementer(kind: str) -> Any:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


@asynccontextmanager
async def llama_cpp_subject() -> AsyncIterator[Subject]:
    kind = implementer("llama_cpp")
    backend = await kind.load(kind.config_type())

    async def ended() -> Tally:
        await backend.aclose()
        return Tally(backend.finished, backend.aborted)

    async def fail(text: str) -> Prompt:
        return ask(f"{text} " * 2000)  # more than the context holds

    yield Subject("llama_cpp", backend, LONG_TEXT, ended, fail)
    await backend.aclose()


@asynccontextmanager
async def openai_http_subject() -> AsyncIterator[Subject]:
    kind = implementer("openai_http")
    async with StandInServer() as server:
        backend = await kind.load(kind.config_type(url=server.url, model=MODEL))

        async def ended() -> Tally:
            if not server.finished:
                await server.disconnected.wait()
            return Tally(server.finished, server.disconnects)

        async def fail(text: str) -> Prompt:
            server.behave = Behaviour(status=400)
            return ask(text)

        yield Subject("openai_http", backend, LONG_TEXT * 20, ended, fail)
        await backend.aclose()


@asynccontextmanager
async def scripted_subject() -> AsyncIterator[Subject]:
    kind = implementer("scripted")
    turns = (
        {"match": backend_checks.CANARY, "chunks": ["One."], "fail": "overloaded", "fail_after": 1},
        {"match": "garden", "chunks": [f"Sentence number {number}. " for number in range(50)]},
        {"chunks": ["Pale ", "gold ", "and ", "rose."]},
    )
    backend = await kind.load(msgspec.convert({"script": turns}, kind.config_type))

    async def ended() -> Tally:
        return Tally(backend.finished, backend.aborted)

    async def fail(text: str) -> Prompt:
        return ask(text)

    yield Subject("scripted", backend, LONG_TEXT, ended, fail)
    await backend.aclose()


SUBJECTS: dict[str, Callable[[], AbstractAsyncContextManager[Subject]]] = {
    "llama_cpp": llama_cpp_subject,
    "openai_http": openai_http_subject,
    "scripted": scripted_subject,
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("kind", KINDS)
async def test_keeps_the_contract(kind: str, check: Callable[[Subject], Any]) -> None:
    async with SUBJECTS[kind]() as subject:
        await check(subject)


def test_every_registered_kind_has_exactly_one_subject() -> None:
    assert set(SUBJECTS) == set(KINDS)


def test_no_check_is_left_out_of_the_list() -> None:
    written = {name for name, _ in inspect.getmembers(backend_checks, inspect.isfunction) if name.startswith("check_")}
    assert {check.__name__ for check in CHECKS} == written


class Careless:
    """A backend with the faults the checks exist for: they must tell it from a good one."""

    config_type = msgspec.defstruct("Config", [("trusted_to", int, 0)])
    finished = aborted = 0
    info = BackendInfo("careless", "none", 0, trusted_to=4)

    async def health(self) -> None:
        return None

    async def aclose(self) -> None:
        return None

    async def stream(self, prompt: Prompt) -> AsyncIterator[Any]:
        for _ in range(2):
            yield Chunk(text=prompt.messages[-1].content, finish_reason="stop")
        self.finished += 1


@pytest.mark.parametrize(
    "check",
    [
        backend_checks.check_info_is_sane,
        backend_checks.check_config_refuses_unknown_keys,
        backend_checks.check_text_then_exactly_one_finish,
        backend_checks.check_max_tokens_end_as_length,
        backend_checks.check_stop_strings_end_the_answer,
        backend_checks.check_closing_the_generator_aborts,
        backend_checks.check_cancelling_the_consumer_aborts,
        backend_checks.check_a_failure_never_quotes_the_prompt,
        backend_checks.check_nothing_works_after_aclose,
    ],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
async def test_the_checks_catch_a_careless_backend(check: Callable[[Subject], Any]) -> None:
    backend: Any = Careless()

    async def ended() -> Tally:
        return Tally(backend.finished, backend.aborted)

    async def fail(text: str) -> Prompt:
        return ask(text)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check(Subject("careless", backend, LONG_TEXT, ended, fail))
