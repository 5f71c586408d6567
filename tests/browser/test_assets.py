"""The vendored style, script and font, in every component that our pages use."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from jinja2 import Environment, FileSystemLoader, PackageLoader, PrefixLoader
from playwright.sync_api import Page, expect

from tests.browser.conftest import DESKTOP, Faults, Look, assert_accessible, every_look
from tests.conftest import ROOT

STATIC = ROOT / "referrals" / "web" / "static"
CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; font-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'"
)
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FONT = "Atkinson Hyperlegible Next"


class Pages(BaseHTTPRequestHandler):
    """/ shows the components, /static/ the assets; each test may add pages of its own."""

    pages: dict[str, str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/static/"):
            file = STATIC / path.removeprefix("/static/")
            self._answer(200, TYPES.get(file.suffix, "font/woff2"), file.read_bytes())
        elif path in self.pages:
            self._answer(200, "text/html; charset=utf-8", self.pages[path].encode())
        else:
            self._answer(404, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CSP)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what matters."""


@pytest.fixture
def pages() -> dict[str, str]:
    components = Environment(
        loader=PrefixLoader(
            {
                "here": FileSystemLoader(Path(__file__).parent),
                "govuk_frontend_jinja": PackageLoader("govuk_frontend_jinja"),
            }
        ),
        autoescape=True,
        trim_blocks=True,
    ).get_template("here/components.html.j2")
    return {"/": components.render(), "/letter": "<p>The letter</p>"}


@pytest.fixture
def address(pages: dict[str, str]) -> Iterator[str]:
    handler = type("Handler", (Pages,), {"pages": pages})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@every_look
def test_every_component_is_accessible(page: Page, shoot: Callable[[str], None]) -> None:
    page.goto("/")
    page.wait_for_load_state("networkidle")
    shoot("components")
    assert_accessible(page)


def test_the_script_brings_components_to_life(page: Page) -> None:
    page.goto("/")
    page.wait_for_selector("body.govuk-frontend-supported")
    expect(page.locator(".govuk-error-summary")).to_be_focused()
    assert not page.get_by_label("Safe times").is_visible()
    page.get_by_label("Victim hardening").check()
    assert page.get_by_label("Safe times").is_visible()


@pytest.mark.parametrize("look", [Look("desktop", javascript=False)], ids=str)
def test_without_a_script_nothing_is_hidden(page: Page) -> None:
    page.goto("/")
    assert page.get_by_label("Safe times").is_visible()


def test_text_is_in_a_font_that_its_licence_allows(page: Page) -> None:
    """GDS Transport is for GOV.UK alone."""
    page.goto("/")
    fonts = page.evaluate(
        "async () => (await document.fonts.ready, [...document.fonts]"
        ".map(one => `${one.family} ${one.weight} ${one.status}`))"
    )
    assert [one.replace('"', "") for one in fonts] == [f"{FONT} 400 loaded", f"{FONT} 700 loaded"]


def test_the_style_asks_for_our_fonts_and_nothing_else() -> None:
    """No crest, no crown, no typeface of GOV.UK's, no other host."""
    style = (STATIC / "govuk.css").read_text(encoding="utf-8")
    wanted = re.findall(r"url\(\"?([^\")]*)\"?\)", style)
    assert wanted == [f"fonts/atkinson-hyperlegible-next-{weight}.woff2" for weight in (400, 700)]
    assert all((STATIC / one).is_file() for one in wanted)
    assert "GDS Transport" not in style


# What the tools find


def test_another_origin_is_found(
    page: Page, pages: dict[str, str], faults: Faults, address: str
) -> None:
    other = address.replace("127.0.0.1", "127.0.0.2")
    pages["/"] = f'<img src="https://cdn.example.com/a.png"><a href="{other}/">on</a>'
    page.goto("/")
    assert [one for one in faults.found if "Content Security Policy" in one]
    faults.found.clear()
    page.get_by_text("on").click()
    page.wait_for_timeout(100)
    assert any("asked another origin" in one for one in faults.found), faults.found
    faults.found.clear()


def test_an_inline_script_and_a_missing_part_are_found(
    page: Page, pages: dict[str, str], faults: Faults
) -> None:
    pages["/"] = "<script>document.title = 'x'</script><img src=/missing.png>"
    page.goto("/")
    assert any("Content Security Policy" in one for one in faults.found), faults.found
    assert any("404" in one and "/missing.png" in one for one in faults.found), faults.found
    faults.found.clear()


BAD = {
    "html-has-lang": "<!DOCTYPE html><title>t</title><main><h1>t</h1></main>",
    "label": "<!DOCTYPE html><html lang=en><title>t</title><main><h1>t</h1><input></main>",
    "target-size": "<!DOCTYPE html><html lang=en><title>t</title>"
    "<main><h1>t</h1>"
    "<button>a</button><button>b</button><button>c</button></main>",
    "region": "<!DOCTYPE html><html lang=en><title>t</title><main><h1>t</h1></main><p>out",
}


@pytest.mark.parametrize("look", [DESKTOP, Look("phone", javascript=False)], ids=str)
@pytest.mark.parametrize("rule", BAD)
def test_axe_finds(rule: str, page: Page, pages: dict[str, str]) -> None:
    pages["/"] = BAD[rule]
    page.goto("/")
    with pytest.raises(AssertionError, match=rule):
        assert_accessible(page)


def test_a_page_that_scrolls_sideways_is_found(page: Page, pages: dict[str, str]) -> None:
    pages["/"] = (
        "<!DOCTYPE html><html lang=en><title>t</title><main><h1>" + "W" * 400 + "</h1></main>"
    )
    page.goto("/")
    with pytest.raises(AssertionError, match="px wide"):
        assert_accessible(page)
