"""The page at ``/`` in Chromium, as the person who started the gateway meets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.conftest import StartGateway
from tests.support import scripts
from tests.support.gateway import Gateway, running, scripted

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = Path(__file__).parents[1] / "node" / "node_modules" / "axe-core" / "axe.min.js"
CRISIS = "I want to end my life tonight."
EVERYDAY = "How does sourdough work?"
WIDTH = 1200


@dataclass
class Visit:
    """A page, where it asked for things, and what it complained about."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        def asked(request: Request) -> None:
            self.asked.append(request.url)

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.complaints.append(message.text)

        self.page.on("request", asked)
        self.page.on("console", said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def check_quiet(self, gateway: Gateway) -> None:
        origins = {urlsplit(url)._replace(path="", query="", fragment="").geturl() for url in self.asked}
        assert origins == {gateway.base_url}, "nothing is fetched from anywhere else"
        assert self.complaints == []

    def send(self, text: str) -> None:
        self.page.get_by_role("textbox", name="Message").fill(text)
        self.page.get_by_role("button", name="Send").click()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.fail(f"{CHROMIUM} is missing: install it (Debian: apt install chromium)", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of this module's own, because its sign-in link works once."""
    with running(tmp_path_factory.mktemp("page") / "home", settings=scripted(scripts.SCRIPT)) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def session(browser: Browser, page_gateway: Gateway) -> dict[str, Any]:
    """The cookie of someone who came in by the link and pressed the button."""
    context = browser.new_context()
    visit = open_page(context, page_gateway.sign_in_link)
    visit.page.get_by_role("button", name="Sign in").click()
    visit.page.wait_for_url(page_gateway.base_url + "/")
    (cookie,) = context.cookies()
    visit.check_quiet(page_gateway)
    context.close()
    return dict(cookie)


@pytest.fixture(params=["light", "dark"])
def visit(
    browser: Browser, page_gateway: Gateway, session: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[Visit]:
    """The home page, signed in, in either colour scheme.  Leaving it checks that it stayed quiet."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": WIDTH, "height": 900})
    context.add_cookies([session])  # type: ignore[list-item]
    visit = open_page(context, page_gateway.base_url)
    yield visit
    visit.check_quiet(page_gateway)
    context.close()


def open_page(context: BrowserContext, url: str) -> Visit:
    visit = Visit(context.new_page())
    visit.watch()
    visit.page.goto(url)
    return visit


def violations(page: Page) -> list[str]:
    """What axe-core finds (WCAG 2.2 A and AA, and its best practices).  Evaluated, not added: the page's policy holds."""
    if not AXE.exists():
        pytest.fail("axe-core is missing: run 'npm ci' in tests/node, or 'make test'", pytrace=False)
    page.evaluate(AXE.read_text("utf-8") + "\n;undefined")
    found = page.evaluate("() => axe.run()")
    return [f"{item['id']}: {node['html']}" for item in found["violations"] for node in item["nodes"]]


# --- the link -----------------------------------------------------------------------------------


def test_the_link_works_once(browser: Browser, start_gateway: StartGateway) -> None:
    gateway = start_gateway(settings=scripted([]))
    context = browser.new_context()
    page = open_page(context, gateway.sign_in_link).page
    assert context.cookies() == [], "opening the link signs nobody in: previews open links too"
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(gateway.base_url + "/")
    (cookie,) = context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert page.get_by_label("API key").count() == 0

    stranger = browser.new_context()
    page = open_page(stranger, gateway.sign_in_link).page
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("used already")
    assert stranger.cookies() == []
    stranger.close()
    context.close()


def test_without_the_link_the_page_tells_and_a_key_lets_in(browser: Browser, page_gateway: Gateway) -> None:
    context = browser.new_context()
    visit = open_page(context, page_gateway.base_url)
    expect(visit.page.get_by_role("heading", name="Havengate")).to_be_visible()
    visit.send(EVERYDAY)
    expect(visit.page.locator("#verdict")).to_contain_text("API key")
    visit.complaints.clear()  # Chromium itself reports the 401 that this part asked for.
    visit.page.get_by_label("API key").fill(page_gateway.key)
    visit.send(EVERYDAY)
    expect(visit.page.locator("#answer")).to_have_text(scripts.BENIGN)
    visit.check_quiet(page_gateway)
    context.close()


def test_a_cookie_from_another_origin_does_nothing(
    browser: Browser, page_gateway: Gateway, session: dict[str, Any]
) -> None:
    context = browser.new_context()
    context.add_cookies([session])  # type: ignore[list-item]
    answer = context.request.post(
        f"{page_gateway.api_url}/chat/completions",
        headers={"origin": "https://elsewhere.example"},
        data={"model": "havengate", "messages": [{"role": "user", "content": EVERYDAY}]},
    )
    assert answer.status == 401
    context.close()


# --- the box ------------------------------------------------------------------------------------


def test_an_everyday_message(visit: Visit) -> None:
    visit.send(EVERYDAY)
    expect(visit.page.locator("#answer")).to_have_text(scripts.BENIGN)
    verdict = visit.page.locator("#verdict")
    expect(verdict).to_contain_text("allow")
    expect(verdict).to_contain_text("S0")
    expect(visit.page.locator("#answer")).not_to_have_class(re.compile("care"))
    assert violations(visit.page) == []


def test_a_crisis(visit: Visit, page_gateway: Gateway) -> None:
    visit.send(CRISIS)
    verdict = visit.page.locator("#verdict")
    expect(verdict).to_contain_text("replace")
    expect(verdict).to_contain_text(re.compile("S[34]"))
    expect(verdict).to_contain_text("suicide")
    expect(visit.page.locator("#answer")).to_contain_text("findahelpline.com")
    expect(visit.page.locator("#answer")).to_have_class(re.compile("care"))
    incident = re.search(r"inc_\w+", verdict.inner_text())
    assert incident is not None
    assert page_gateway.incident(incident[0])["state"] == "open"
    assert violations(visit.page) == []


def test_the_region_picks_the_places(visit: Visit) -> None:
    visit.page.get_by_label("Region").select_option("US")
    visit.send(CRISIS)
    expect(visit.page.locator("#answer")).to_contain_text("988")


def test_an_answer_that_turns(visit: Visit) -> None:
    visit.send(scripts.ASK_TURNING)
    answer = visit.page.locator("#answer")
    expect(answer).to_contain_text("stopped that answer")
    expect(answer).to_contain_text("gardener")
    expect(answer).not_to_contain_text(scripts.HARM)


def test_the_examples_send_themselves(visit: Visit) -> None:
    for name, decision in (("an everyday question", "allow"), ("a figure of speech", "allow"), ("a crisis", "replace")):
        visit.page.get_by_role("button", name=name).click()
        expect(visit.page.locator("#verdict")).to_contain_text(decision)
        expect(visit.page.get_by_role("button", name="Send")).to_be_enabled()


def test_what_a_person_writes_is_shown_as_text_never_run(visit: Visit) -> None:
    visit.send('<img src=x onerror="document.title=1"><script>document.title=2</script>')
    expect(visit.page.locator("#answer")).to_have_text(scripts.BENIGN)
    expect(visit.page).to_have_title("Havengate")


def test_it_works_by_keyboard_and_on_a_small_screen(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 740})
    visit.page.get_by_role("textbox", name="Message").focus()
    visit.page.keyboard.type(EVERYDAY)
    visit.page.keyboard.press("Tab")
    expect(visit.page.get_by_label("Region")).to_be_focused()
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#answer")).to_have_text(scripts.BENIGN)
    sideways = visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert sideways <= 0
    assert violations(visit.page) == []


def test_it_says_what_runs_and_how_to_call_it(visit: Visit, page_gateway: Gateway) -> None:
    text = visit.page.locator("main").inner_text()
    assert f"{page_gateway.base_url}/v1" in text
    for part in ("scripted", "lexicon", "encoder", "sqlite", "default"):
        assert part in text
    assert violations(visit.page) == []


def test_the_sign_in_page_is_accessible(browser: Browser, page_gateway: Gateway) -> None:
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        visit = open_page(context, f"{page_gateway.base_url}/login?token=none")
        assert violations(visit.page) == []
        visit.check_quiet(page_gateway)
        context.close()


def test_the_pages_policy_is_strict(browser: Browser, page_gateway: Gateway) -> None:
    context = browser.new_context()
    for path in ("/", "/login?token=none"):
        answer = context.request.get(page_gateway.base_url + path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
    context.close()
