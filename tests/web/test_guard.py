"""What stands before every page: hosts, methods, paths, sizes, time, and the answers' headers."""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from referrals.errors import OutboxUnusable
from referrals.settings import Settings, WebSettings
from referrals.web import guard as guard_module
from referrals.web import wire as wire_module
from referrals.web.guard import CSP, Guard, Hosts
from tests.web.conftest import Serving, browsing, web_settings
from tests.web.signing import sign_in

ADDRESS = "https://referrals.council.example.com"
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture
def public(tmp_path: Path) -> Iterator[TestClient]:
    """A browser at a page that the world reaches by https."""
    settings = web_settings(tmp_path, host="0.0.0.0", login="accounts", address=ADDRESS)
    with browsing(settings) as browser:
        yield browser


# Hosts


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8080", True),
        ("localhost:1", True),
        ("LOCALHOST", True),
        ("[::1]:8080", True),
        ("", False),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example:127.0.0.1", False),
        ("127.0.0.1@evil.example", False),
        ("evil.example@127.0.0.1", False),
        ("127.0.0.1/evil", False),
        ("127.0.0.1:", False),
        ("127.0.0.1:80:80", False),
        ("127.0.0.1:080000", False),
        ("127.0.0.1#", False),
        ("127.0.0.1,evil.example", False),
        ("127.0.0.1 ", False),
        ("[::1", False),
        ("0.0.0.0", False),
        ("１２７.0.0.1", False),
    ],
)
def test_hosts_of_a_page_for_this_machine(host: str, known: bool) -> None:
    assert Hosts(WebSettings()).knows(host) is known


def test_a_public_page_knows_its_address_alone() -> None:
    web = WebSettings(host="0.0.0.0", login="accounts", address=ADDRESS)  # type: ignore[arg-type]
    assert Hosts(web).knows("Referrals.Council.example.com:443")
    for host in ("0.0.0.0", "127.0.0.1", "localhost", "council.example.com"):
        assert not Hosts(web).knows(host)


def test_another_host_is_answered_nothing(client: TestClient) -> None:
    answer = client.get("/", headers={"Host": "evil.example"})
    assert answer.status_code == 421
    assert "set-cookie" not in answer.headers
    assert "evil" not in answer.text


# Headers of answers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/nowhere", 404),
        ("POST", "/nowhere", 404),
        ("PUT", "/you", 405),
        ("POST", "/you", 403),
        ("TRACE", "/", 501),
        ("GET", "/static/nothing.css", 404),
        ("GET", "/you/", 308),
        ("GET", "/a//b", 404),
        ("GET", "/api/v1/outbox", 401),
        ("GET", "/health/live", 200),
    ],
)
def test_every_answer_has_the_headers(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "strict-transport-security" not in answer.headers, "it is not by TLS that we are reached"
    assert "server" not in answer.headers


def test_an_answer_to_a_fault_of_ours_has_them_too_and_tells_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CANARY of a victim")

    monkeypatch.setattr("referrals.web.store.Store.listed", fail)
    answer = client.get("/")
    assert answer.status_code == 500
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "went wrong on our side" in answer.text
    log = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    assert "RuntimeError at " in log
    assert "test_guard.py" in log
    assert "CANARY" not in log + answer.text


def test_what_fails_outside_of_all_pages_is_answered_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("CANARY of a victim")

    answer = TestClient(Guard(fail, WebSettings()), "http://127.0.0.1").get("/")
    assert answer.status_code == 500
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "RuntimeError at " in caplog.text
    assert "CANARY" not in caplog.text + answer.text


def test_a_store_that_can_not_be_used_is_told_of(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutboxUnusable("web.sqlite3 can't be used: the disk is full. Nothing was changed.")

    client.cookies.set("referrals", "x", "127.0.0.1")
    monkeypatch.setattr("referrals.web.store.Store.session", fail)
    answer = client.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert "the disk is full" in answer.text
    assert "<title>Referrals can’t be used just now – Referrals</title>" in answer.text
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


def test_strangers_are_not_told_what_is_wrong_with_it(
    public: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutboxUnusable("The outbox in x on db.example.org can't be used: no such role.")

    monkeypatch.setattr("referrals.web.throttle.Throttle.begin", fail)
    signing_in = sign_in(public)
    public.cookies.clear()
    public.cookies.set("__Host-referrals", "x")
    monkeypatch.setattr("referrals.web.store.Store.session", fail)
    for answer in (signing_in, public.get("/outbox")):
        assert answer.status_code == 503
        assert "What was saved before is safe." in answer.text
        assert "db.example.org" not in answer.text
    assert "db.example.org" in caplog.text


def test_a_page_that_the_world_reaches_says_that_it_is_by_tls_alone(public: TestClient) -> None:
    answer = public.get("/sign-in")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    [cookie] = answer.headers.get_list("set-cookie")
    name, _, rest = cookie.partition("=")
    assert name == "__Host-referrals"
    assert {part.strip().lower() for part in rest.split(";")[1:]} == {
        "path=/", "secure", "httponly", "samesite=lax",
    }  # fmt: skip


def test_the_cookie_of_a_page_for_this_machine(client: TestClient) -> None:
    [cookie] = client.get("/").headers.get_list("set-cookie")
    assert cookie.startswith("referrals=")
    assert {part.strip().lower() for part in cookie.split(";")[1:]} == {
        "path=/", "httponly", "samesite=lax",
    }  # fmt: skip
    assert client.get("/").headers.get("set-cookie") is None, "it has it now"
    assert "set-cookie" not in client.get("/static/app.css").headers


def test_static_files_may_be_kept_and_nothing_else(client: TestClient) -> None:
    link = client.get("/").text.partition('rel="stylesheet" href="')[2].partition('"')[0]
    assert client.get(link).headers["cache-control"] == "public, max-age=31536000, immutable"
    assert client.get(link.partition("?")[0]).headers["cache-control"] == "no-cache"


# Methods and paths


@pytest.mark.parametrize("path", ["/", "/you", "/outbox", "/static/app.css", "/health/live"])
def test_head_is_get_without_a_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/you/", "/you"),
        ("/outbox/?status=x", "/outbox"),
        ("/static/", "/static"),
        ("/referrals/x%0d%0aSet-Cookie:a/", None),
        ("//evil.example/", None),
        ("//evil.example/%2e%2e/", None),
        ("/%2fevil.example/", None),
        ("/\\evil.example/", None),
        ("/%5cevil.example/", None),
        ("/%09/evil.example/", None),
    ],
)
def test_a_slash_at_the_end_leads_to_the_same_host(
    client: TestClient, path: str, location: str | None
) -> None:
    answer = raw_path(client, path)
    assert answer.headers.get("location") == location
    assert answer.status_code == (308 if location else 404)
    assert client.get("/static").status_code == 404, "and round in no circle"


def raw_path(client: TestClient, path: str) -> httpx2.Response:
    """Tidied up no more than a browser does."""
    url = httpx2.URL("http://127.0.0.1").copy_with(raw_path=path.encode())
    return client.send(client.build_request("GET", url))


# Other sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),  # no token: but that is the form's business
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "http://evil.example"}, 0),
        ({"Origin": "null"}, 0),
        ({"Origin": ""}, 0),
        ({"Origin": "http://127.0.0.1:81"}, 0),
        ({"Origin": "http://127.0.0.1.evil.example"}, 0),
        ({"Origin": "http://["}, 0),
        ({"Sec-Fetch-Site": "cross-site"}, 0),
        ({"Sec-Fetch-Site": "same-site"}, 0),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"}, 0),
    ],
)
def test_a_form_of_another_site_is_not_even_looked_at(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    answer = client.post("/you", data={"name": "x"}, headers=headers)
    foreign = "sent from another site" in answer.text
    assert foreign is (status == 0)
    assert answer.status_code == 403


def test_by_tls_the_same_host_without_it_is_another_site(public: TestClient) -> None:
    ours = {"Origin": ADDRESS}
    assert "another site" not in public.post("/sign-in", headers=ours).text
    plain = {"Origin": ADDRESS.replace("https", "http")}
    assert "another site" in public.post("/sign-in", headers=plain).text


# Bodies


def taking(path: str = "/take", **web: Any) -> TestClient:
    """An application that reads the whole body, behind the guard."""

    async def take(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Route(path, take, methods=["POST"])])
    return TestClient(Guard(app, WebSettings(**web)), "http://127.0.0.1")


def chunks(total: int) -> Iterator[bytes]:
    while total > 0:
        yield b"x" * min(total, 65_536)
        total -= 65_536


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/take", 1_000_000, 200),
        ("/take", 1_000_001, 413),
        ("/batch", 2_000_000, 200),
        ("/batch", 2_000_001, 413),
        ("/batch/x", 2_000_000, 200),
        ("/batches", 1_000_001, 413),
    ],
)
def test_a_body_may_be_so_large(path: str, size: int, status: int) -> None:
    """Declared, and in chunks of which nobody knows the end."""
    client = taking(path, largest_upload_mb=2)
    assert client.post(path, content=b"x" * size).status_code == status
    assert client.post(path, content=chunks(size)).status_code == status


@pytest.mark.parametrize("length", ["-1", "+1", "1e9", "0x10", " ", "1,1", "9" * 30, "１"])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    headers = httpx2.Headers([(b"content-length", length.encode())])
    assert taking().post("/take", content=b"", headers=headers).status_code in (400, 413)


@pytest.mark.parametrize(
    "charset", ["punycode", "utf-7", "unicode_escape", "idna", "utf-16", "latin-1", "zlib", "x"]
)
def test_a_form_in_another_charset_is_refused(client: TestClient, charset: str) -> None:
    """Decoding punycode takes minutes for a megabyte, and would hold up everybody."""
    body = b'--b\r\nContent-Disposition: form-data; name="csrf"\r\n\r\nxyz-abc\r\n--b--\r\n'
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = client.post("/you", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    kind = f'multipart/form-data; boundary=b; Charset="{charset.upper()}"'
    assert client.post("/you", content=body, headers={"Content-Type": kind}).status_code == 400
    kind = "multipart/form-data; boundary=b; charset=UTF-8"
    assert client.post("/you", content=body, headers={"Content-Type": kind}).status_code == 403


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"a=" + b"&a=1" * 5_001),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=b", b"--b\r\nX: y\r\n\r\nz\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"\0\r\n" * 100),
        ("text/plain", b"csrf=x"),
        ("application/json", b'{"csrf": "x"}'),
        ("", b"csrf=x"),
    ],
)
def test_a_body_that_is_no_form_is_refused(client: TestClient, kind: str, body: bytes) -> None:
    answer = client.post("/you", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 403)


# Over the wire


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As short as a test can wait."""
    monkeypatch.setattr(wire_module, "HEADERS_WITHIN_S", 0.5)
    monkeypatch.setattr(wire_module, "READ_WITHIN_S", 0.5)
    monkeypatch.setattr(guard_module, "_BODY_WITHIN_S", 0.5)
    monkeypatch.setattr(guard_module, "_SLOWEST_BODY", 10_000_000)


PATHS = (
    "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/%2e%2e%2fapp.py",
    "/static/....//app.py", "/static//etc/passwd", "/static/%00", "/static/app.css%00.js",
    "/static/..%5capp.py", "/static/..\\app.py", "/static/%c0%ae%c0%ae/app.py",
    "/static/%252e%252e/app.py", "/static/./app.css", "/static/fonts/../app.css", "/static",
    "/static/fonts", "/static/app.css%0d%0aX:y", "//static/app.css", "/./static/app.css",
)  # fmt: skip


def test_only_the_files_that_we_ship_are_to_be_had(wire: Wire) -> None:
    for path in PATHS:
        answer = wire.ask(b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), HEAD))
        assert answer.startswith(b"HTTP/1.1 404 "), path
    assert wire.ask(b"GET /static/app.css HTTP/1.1\r\n%b\r\n" % HEAD).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def wire(serving: Serving, site_settings: Settings, limits: None) -> Wire:
    page = serving(
        site_settings.model_copy(update={"web": WebSettings(port=0, largest_upload_mb=2)})
    )
    return Wire(page.base_url.port or 0)


class Wire:
    """A connection on which a test may write what it likes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=10)

    def ask(self, octets: bytes) -> bytes:
        """Everything that comes until the server closes."""
        with self.connect() as link:
            link.sendall(octets)
            return read_all(link)

    def drip(self, octets: bytes, every_s: float = 0.1, limit_s: float = 8.0) -> float:
        """Write an octet now and then; how long it was until the server had enough."""
        with self.connect() as link:
            began = time.monotonic()
            link.settimeout(every_s)
            for octet in octets:
                if time.monotonic() - began > limit_s:
                    break
                try:
                    link.sendall(bytes([octet]))
                    if link.recv(1_000) == b"":
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            return time.monotonic() - began


def read_all(link: socket.socket) -> bytes:
    whole = b""
    while True:
        try:
            some = link.recv(65_536)
        except ConnectionResetError:
            return whole
        if not some:
            return whole
        whole += some


HEAD = b"Host: 127.0.0.1\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200,
        b"\r\n" * 100,
        b"G" * 100,
        b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + b"\r\n" * 100,
    ],
)
def test_slow_headers_are_not_waited_for(wire: Wire, octets: bytes) -> None:
    assert wire.drip(octets) < 7


def test_a_connection_that_says_nothing_is_closed(wire: Wire) -> None:
    with wire.connect() as link:
        assert read_all(link) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 1000\r\nContent-Type: application/x-www-form-urlencoded\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Type: application/x-www-form-urlencoded\r\n",
    ],
)
def test_a_slow_body_is_not_waited_for(wire: Wire, head: bytes) -> None:
    with wire.connect() as link:
        link.sendall(b"POST /you HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"\r\n")
        link.sendall(b"1\r\na\r\n" if b"chunked" in head else b"a")
        answer = read_all(link)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"content-security-policy: " in answer
    assert b"connection: close" in answer.lower()


def test_a_reader_who_stops_reading_is_not_waited_for(wire: Wire) -> None:
    with wire.connect() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        link.sendall(b"GET /static/govuk.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 400)
        gone = select.poll()
        gone.register(link, select.POLLHUP)
        assert gone.poll(8_000), "it waits still"


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 70_000,
        b"GET /" + b"a" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 12_000,
        b"POST /you HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\nX: " + b"a" * 200_000,
        b"POST /you HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1;" + b"a" * 200_000,
    ],
)
def test_endless_headers_are_not_kept(wire: Wire, octets: bytes) -> None:
    with wire.connect() as link:
        try:
            link.sendall(octets)
        except OSError:
            return
        answer = read_all(link)
    assert b" 431 " in answer or b" 403 " in answer or not answer
    assert len(answer) < 20_000


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n X: folded\r\n\r\n",
        b"GET / HTTP/1.1\nHost: 127.0.0.1\n\n",
        b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"TRACE / HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET \xff HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET /\xff HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /you HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /you HTTP/1.1\r\n" + HEAD + b"Content-Length: 5, 6\r\n\r\nabcdef",
        b"POST /you HTTP/1.1\r\n" + HEAD
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /you HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /you HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
        b"POST /you HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST /you HTTP/1.1\r\n" + HEAD + b"Content-Length: +5\r\n\r\nabcde",
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(wire: Wire, octets: bytes) -> None:
    """A proxy in front and we must agree on where a request ends (RFC 9112 §11.2)."""
    answer = wire.ask(octets + b"\r\nGET /outbox HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert answer.split(b" ")[1:2] in ([b"400"], [b"404"], [b"421"], [b"501"], [b"405"], [])
    assert answer.count(b"HTTP/1.1 ") <= 1, "and nothing of what follows is answered"
    assert b" 200 " not in answer


def test_a_refusal_of_the_parsers_own_has_headers_too(wire: Wire) -> None:
    answer = wire.ask(b"nonsense\r\n\r\n").lower()
    assert answer.startswith(b"http/1.1 400 ")
    assert b"x-content-type-options: nosniff" in answer
    assert b"cache-control: no-store" in answer


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_nothing_is_upgraded(wire: Wire, protocol: bytes) -> None:
    answer = wire.ask(
        b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: "
        + protocol
        + b"\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
        + b"GET /outbox HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_two_requests_in_one_go_are_both_answered(wire: Wire) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    answer = wire.ask(one + b"\r\n" + one + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 2


def test_a_body_that_nobody_asked_for_leaves_the_connection_in_order(wire: Wire) -> None:
    """Here it is refused before it is read: the rest of it must not pass for a request."""
    evil = b"GET /outbox HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with wire.connect() as link:
        link.sendall(
            b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(evil)
        )
        time.sleep(0.2)
        link.sendall(evil + b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n")
        answer = read_all(link)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"HTTP/1.1 200 " in answer


def test_an_oversize_upload_is_told_of_rather_than_cut_off(wire: Wire) -> None:
    """A browser that is cut off in the midst shows an error of its own."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{wire._port}", timeout=20) as client:
        for content in (b"x" * 8_000_000, chunks(2_100_000)):
            answer = client.post("/you", content=content)
            assert answer.status_code in (413, 403)
        answer = client.post("/you", content=b"x" * 1_000_001)
        assert answer.status_code == 413
        assert client.get("/health/live").status_code == 200


def test_many_slow_clients_do_not_keep_others_waiting(wire: Wire) -> None:
    links = [wire.connect() for _ in range(100)]
    try:
        for link in links:
            link.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        assert b" 200 " in wire.ask(b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n")
    finally:
        for link in links:
            link.close()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The server says what it refuses; that is for an operator."""
    logger = logging.getLogger("uvicorn.error")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before
