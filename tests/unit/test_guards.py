"""Deny by default: what is open is listed, what is neither open nor guarded does not start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.auth.guards import OPEN_ROUTES, Guard, check_routes, scope
from gateway.auth.principal import Principal
from gateway.auth.signin import LINK_LIFE_S, MAX_ENTRIES, SESSION_COOKIE, SESSION_LIFE_S, SignIn
from gateway.errors import Forbidden, StartupError, Unauthenticated

CHAT = Principal("k1", "test", frozenset({"chat"}), "assistant", "unknown")


class Keys:
    """One key, as the authenticator would know it."""

    async def authenticate(self, presented: str) -> Principal | None:
        return CHAT if presented == "right" else None


def connection(
    headers: dict[str, str] | None = None, cookies: dict[str, str] | None = None, path: str = "/v1/x"
) -> Any:
    return SimpleNamespace(headers=headers or {}, cookies=cookies or {}, scope={"path_template": path, "state": {}})


def handler(options: dict[str, Any]) -> Any:
    return SimpleNamespace(opt=options)


def guard(signin: SignIn | None = None) -> Guard:
    return Guard(cast("Any", Keys()), signin or SignIn(lambda: 0.0))


def test_the_open_routes_are_these_and_no_others() -> None:
    assert {"/", "/login", "/healthz", "/readyz", "/metrics", "/openapi.json", "/static/{file_path}"} == OPEN_ROUTES


def test_a_route_that_is_neither_open_nor_guarded_keeps_the_gateway_from_starting() -> None:
    check_routes([("/healthz", {}), ("/v1/chat/completions", scope("chat")), ("/static/{file_path:path}", {})])
    with pytest.raises(StartupError, match="/v1/new"):
        check_routes([("/v1/new", {})])


async def test_a_route_without_a_scope_is_refused_even_with_a_key() -> None:
    with pytest.raises(Forbidden):
        await guard()(connection({"authorization": "Bearer right"}), handler({}))
    await guard()(connection(path="/healthz"), handler({}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {'x' * 600}"},
    ],
)
async def test_without_a_valid_key_nobody_gets_in(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        await guard()(connection(headers), handler(scope("chat")))


async def test_a_key_opens_only_what_its_scopes_name() -> None:
    await guard()(connection({"authorization": "Bearer right"}), handler(scope("chat")))
    with pytest.raises(Forbidden, match="models"):
        await guard()(connection({"authorization": "Bearer right"}), handler(scope("models")))


def test_a_link_works_once_and_not_for_long() -> None:
    now = [0.0]
    signin = SignIn(lambda: now[0])
    token, late = signin.new_link_token(), signin.new_link_token()
    session = signin.redeem(token, CHAT)
    assert session is not None
    assert signin.redeem(token, CHAT) is None
    now[0] = LINK_LIFE_S + 1
    assert signin.redeem(late, CHAT) is None
    assert signin.principal(session) == CHAT
    now[0] = SESSION_LIFE_S + 1
    assert signin.principal(session) is None
    assert signin.redeem("made up", CHAT) is None


def test_links_are_bounded_in_number() -> None:
    signin = SignIn(lambda: 0.0)
    first = signin.new_link_token()
    for _ in range(MAX_ENTRIES):
        signin.new_link_token()
    assert signin.redeem(first, CHAT) is None


@pytest.mark.parametrize(("origin", "allowed"), [("http://here:1", True), ("http://elsewhere:1", False), (None, False)])
async def test_a_session_counts_for_our_own_page_only(origin: str | None, allowed: bool) -> None:
    signin = SignIn(lambda: 0.0)
    session = signin.redeem(signin.new_link_token(), CHAT)
    assert session is not None
    headers = {"host": "here:1"} | ({"origin": origin} if origin else {})
    call = guard(signin)(connection(headers, {SESSION_COOKIE: session}), handler(scope("chat")))
    if allowed:
        await call
    else:
        with pytest.raises(Unauthenticated):
            await call
