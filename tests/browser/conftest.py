"""The page in a real browser: `referrals serve`, a sink as its relay, Debian's Chromium, axe-core.

The browser lasts for one file of tests: while Playwright is up, its event loop counts as running
in this thread, and other tests' asyncio.run would be refused.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    FloatRect,
    Page,
    sync_playwright,
)
from playwright.sync_api import Request as BrowserRequest
from playwright.sync_api import Response as BrowserResponse

from referrals.sink import Sink
from tests.e2e.conftest import REFERRALS, Beside
from tests.smtp_sink import need, wait_until

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).with_name("node_modules") / "axe-core" / "axe.min.js"
# Read before a test begins, which takes all of our settings out of the environment.
_SCREENSHOTS = os.environ.get("REFERRALS_SCREENSHOTS")
_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
_CHROMIUM_OPTIONS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--no-first-run",
    # No name but this machine's is ever looked up; `faults` tells of whoever tried.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True)
class Site:
    """A running page: where it is, what its relay took, what it keeps, what it said."""

    address: str
    sink: Sink
    outbox: Path
    log: Path


@contextmanager
def serving(folder: Path, env: Mapping[str, str] | None = None, *options: str) -> Iterator[Site]:
    """`referrals serve` as a process of its own, in an empty folder, until the block ends.

    A traceback in what it says fails the test that started it.

    Args:
        env: settings besides those of the relay and the outbox.
        options: of the command, besides `--port 0`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, outbox = folder / "serve.log", folder / "outbox"
    with Beside(Sink()) as sink, log.open("wb") as said:
        process = subprocess.Popen(
            [*REFERRALS, "serve", "--port", "0", *options],
            cwd=folder,
            env={
                **{name: text for name, text in os.environ.items() if not _is_ours(name)},
                "PYTHONUNBUFFERED": "1",
                "REFERRALS_OUTBOX": str(outbox),
                "REFERRALS_RELAY_HOST": sink.host,
                "REFERRALS_RELAY_PORT": str(sink.port),
                "REFERRALS_RELAY_SECURITY": "none",
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Site(_address(process, log), sink, outbox, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            finally:
                process.kill()
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    assert "Traceback (most recent call last)" not in text, text


def _is_ours(name: str) -> bool:
    return name.startswith("REFERRALS_")


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    def told() -> re.Match[str] | None:
        text = log.read_text(encoding="utf-8", errors="replace")
        return re.search(r"http://127\.0\.0\.1:\d+", text)

    wait_until(lambda: told() or process.poll() is not None, "the address of the page")
    found = told()
    assert found, f"the page did not start:\n{log.read_text(encoding='utf-8', errors='replace')}"
    return found[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One page for a file of tests; for a page of one's own there is `serving`."""
    with serving(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need(CHROMIUM, AXE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=list(_CHROMIUM_OPTIONS),
            chromium_sandbox=os.geteuid() != 0,  # root can't have it
        )
        yield chromium
        chromium.close()


@dataclass(frozen=True)
class Look:
    """How the page is looked at."""

    device: str
    javascript: bool = True

    def __str__(self) -> str:
        return self.device if self.javascript else f"{self.device}-without-javascript"

    @property
    def options(self) -> dict[str, Any]:
        """As Playwright's new_context takes them."""
        phone = self.device == "phone"
        return {
            "viewport": {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900},
            "is_mobile": phone,
            "has_touch": phone,
            "java_script_enabled": self.javascript,
        }


DESKTOP, PHONE = Look("desktop"), Look("phone")
LOOKS = (DESKTOP, PHONE, Look("desktop", javascript=False), Look("phone", javascript=False))
every_look = pytest.mark.parametrize("look", LOOKS, ids=str)
both_devices = pytest.mark.parametrize("look", [DESKTOP, PHONE], ids=str)


@pytest.fixture
def look() -> Look:
    """A desktop with JavaScript, unless the test says `every_look` or parametrizes `look`."""
    return DESKTOP


@pytest.fixture
def address(site: Site) -> str:
    """Where `page` begins, and the only origin that it may ask for anything."""
    return site.address


@dataclass
class Faults:
    """What no page may do: ask another origin, miss a part, offend its CSP, throw an error.

    A test that means to cause one checks it and clears the list.
    """

    origin: str
    found: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        context.on("request", self._request)
        context.on("response", self._response)
        context.on("console", self._console)
        context.on("weberror", lambda error: self.found.append(f"error in a script: {error.error}"))

    def _request(self, request: BrowserRequest) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and _origin(request.url) != self.origin:
            self.found.append(f"asked another origin: {request.url}")

    def _response(self, response: BrowserResponse) -> None:
        if response.status >= 400 and not response.request.is_navigation_request():
            self.found.append(f"a part is missing: {response.status} {response.url}")

    def _console(self, message: ConsoleMessage) -> None:
        # A form that is answered with 422 is logged too; _response tells what matters of those.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.found.append(f"console: {message.text}")


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


@pytest.fixture
def faults(address: str) -> Faults:
    return Faults(_origin(address))


@pytest.fixture
def new_page(
    browser: Browser, look: Look, address: str, faults: Faults
) -> Iterator[Callable[[], Page]]:
    """Each call is another person's browser, with cookies of its own."""
    contexts: list[BrowserContext] = []

    def open_page() -> Page:
        context = browser.new_context(
            base_url=address,
            locale="en-GB",
            timezone_id="Europe/London",
            reduced_motion="reduce",
            **look.options,
        )
        context.set_default_timeout(10_000)
        contexts.append(context)
        faults.watch(context)
        return context.new_page()

    yield open_page
    for context in contexts:
        context.close()
    assert not faults.found, "\n".join(faults.found)


@pytest.fixture
def page(new_page: Callable[[], Page]) -> Page:
    return new_page()


def assert_accessible(page: Page) -> None:
    """axe-core finds no fault in WCAG 2.2 AA or good practice, and the page scrolls one way only.

    What is in frames isn't looked at: a sandboxed one runs no script.

    Source: https://github.com/dequelabs/axe-core/blob/develop/doc/API.md; reflow is WCAG 1.4.10.
    """
    if _evaluated(page, "matchMedia('(scripting: none)').matches"):
        with _copy_for_axe(page) as copy:
            assert_accessible(copy)
        return
    options = f"""{{
        runOnly: {list(_RULES)},
        rules: {{"target-size": {{enabled: true}}}},
        resultTypes: ["violations"],
        iframes: false,
    }}"""
    axe = AXE.read_text(encoding="utf-8")
    violations = _evaluated(page, f"{axe}\n;axe.run(document, {options})")["violations"]
    assert not violations, f"{page.url}\n" + "\n".join(map(_shown, violations))
    wide, seen = _evaluated(
        page, "(it => [it.scrollWidth, it.clientWidth])(document.scrollingElement)"
    )
    assert wide <= seen, f"{page.url} is {wide} px wide in a window of {seen} px"


def _evaluated(page: Page, expression: str) -> Any:
    """As the debugger does it, which no CSP is in the way of; a promise needs JavaScript on."""
    debugger = page.context.new_cdp_session(page)
    try:
        answer = debugger.send(
            "Runtime.evaluate",
            {"expression": expression, "awaitPromise": True, "returnByValue": True},
        )
    finally:
        debugger.detach()
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"]["value"]


@contextmanager
def _copy_for_axe(page: Page) -> Iterator[Page]:
    """The page as it stands, in a window where axe-core can run and the page's own script can't."""
    browser, size = page.context.browser, page.viewport_size
    assert browser
    assert size
    context = browser.new_context(viewport=size, is_mobile=size["width"] < 600)
    try:
        copy = context.new_page()
        made, policy = page.content(), {"Content-Security-Policy": "script-src 'none'"}
        copy.route(
            page.url,
            lambda route: route.fulfill(body=made, content_type="text/html", headers=policy),
        )
        copy.goto(page.url)
        yield copy
    finally:
        context.close()


def _shown(violation: Mapping[str, Any]) -> str:
    lines = [f"{violation['id']} ({violation['impact']}): {violation['help']}"]
    for node in violation["nodes"]:
        lines.append(f"    {' '.join(map(str, node['target']))}: {node['html']}")
        why = node["failureSummary"].splitlines()
        lines.extend(f"        {line.strip()}" for line in why)
    return "\n".join(lines)


@pytest.fixture
def shoot(page: Page, look: Look) -> Callable[[str], None]:
    """Keeps two pictures, of all and of the top, in the folder that REFERRALS_SCREENSHOTS names."""

    def keep(name: str) -> None:
        if not _SCREENSHOTS:
            return
        window = page.viewport_size
        assert window
        path = Path(_SCREENSHOTS) / f"{name}-{look}"
        top = FloatRect(x=0, y=0, width=window["width"], height=720)
        page.screenshot(path=path.with_name(f"{path.name}-top.png"), clip=top)
        if page.locator("iframe").count():
            # A frame is painted where it was once in view.
            page.set_viewport_size({"width": window["width"], "height": 6_000})
        page.screenshot(path=path.with_name(f"{path.name}.png"), full_page=True)
        page.set_viewport_size(window)

    return keep
