"""A spreadsheet on the page: checked whole, then drafted or queued once each, and nothing left."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import io
import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from openpyxl import Workbook
from starlette.testclient import TestClient

from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.samples import sample_case
from referrals.settings import RelaySettings, Security, Settings, WebSettings
from referrals.sink import Sink
from referrals.web import batch_folder, batch_job, batch_pages
from referrals.web.app import build_app, build_site
from referrals.web.batch_folder import BatchFolder
from referrals.web.site import Role, Site, User, roles_with
from tests.e2e.conftest import Beside
from tests.rows import as_csv, rows_of

Response = Any  # of whichever client Starlette's tests use

NCH = "community@nottinghamcityhomes.org.uk"
CANARY = "Canary Quillfeather"
WAIT_S = 30.0


class As:
    """Everybody is this user."""

    can_sign_out = False

    def __init__(self, role: Role, name: str = "jo") -> None:
        self._user = User(name, roles_with([role]))

    def user(self, *_: Any) -> User:
        return self._user

    def first(self, _: Any) -> Any:
        raise AssertionError

    def routes(self) -> tuple[()]:
        return ()


class Visit:
    """A browser without scripts, for one user."""

    def __init__(self, site: Site, role: Role = Role.SENDER, name: str = "jo") -> None:
        self.site = dataclasses.replace(site, sign_in=As(role, name))
        self._client = TestClient(build_app(self.site), "http://127.0.0.1", follow_redirects=True)
        self.csrf = ""

    def get(self, path: str) -> Response:
        answer = self._client.get(path)
        token = re.search(r'name="csrf" value="([^"]+)"', answer.text)
        self.csrf = token[1] if token else self.csrf
        return answer

    def post(self, path: str, **more: Any) -> Response:
        if not self.csrf:
            self.get("/batch")
        data = {"csrf": self.csrf, **more.pop("data", {})}
        return self._client.post(path, data=data, **more)

    def upload(self, content: bytes | str, name: str = "cases.csv", sheet: str = "") -> Seen:
        octets = content.encode() if isinstance(content, str) else content
        answer = self.post("/batch", files={"file": (name, octets)}, data={"sheet": sheet})
        return self.seen(answer)

    def seen(self, answer: Response) -> Seen:
        """The page once nothing is under way."""
        until = time.monotonic() + WAIT_S
        path = answer.url.path
        assert answer.status_code == 200, answer.text
        while self._client.get(f"{path}/state").json()["running"]:
            assert time.monotonic() < until
            time.sleep(0.02)
        return Seen(self, path, self.get(path))


class Seen:
    def __init__(self, visit: Visit, path: str, answer: Response) -> None:
        self.visit = visit
        self.path = path
        self.answer = answer

    @property
    def heading(self) -> str:
        found = re.search(r"<h1[^>]*>(.*?)</h1>", self.answer.text, re.DOTALL)
        return found[1].strip() if found else ""

    @property
    def text(self) -> str:
        return " ".join(re.sub(r"<[^>]+>", " ", self.answer.text).split())

    @property
    def folder(self) -> BatchFolder:
        outbox = self.visit.site.settings.outbox
        return BatchFolder(batch_folder.folders(outbox) / self.path.rpartition("/")[2])

    def then(self, action: str, **data: str) -> Seen:
        return self.visit.seen(self.visit.post(f"{self.path}/{action}", data=data))

    def submit(self, count: int) -> Seen:
        return self.then("submit", accept="yes", count=str(count), **self.shown())

    def shown(self) -> dict[str, str]:
        """Which addresses the page that submits has shown, as its form says."""
        found = re.search(r'name="seen" value="(\w+)"', self.visit.get(f"{self.path}/submit").text)
        return {"seen": found[1]} if found else {}

    def file(self, name: str) -> bytes:
        answer = self.visit.get(f"{self.path}/{name}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-disposition"].startswith("attachment")
        content: bytes = answer.content
        return content


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    # Nothing listens there: what is queued stays queued.
    relay = RelaySettings(host="127.0.0.1", port=1, security=Security.NONE)
    made = build_site(Settings(outbox=tmp_path / "outbox", relay=relay))
    yield made
    made.store.close()


@pytest.fixture
def cells(site: Site) -> dict[str, str]:
    today = site.service.today()
    return dict(flatten(sample_case(site.service.directory, ["mediation"], today)))


def with_wrong(cells: Mapping[str, str]) -> list[dict[str, str]]:
    rows = rows_of(cells, 5)
    rows[1]["referrer.email"] = CANARY
    rows[3]["consents.1.given"] = "no"
    return rows


def counts(site: Site) -> dict[str, int]:
    with SqliteOutbox.open(site.settings.outbox / "outbox.sqlite3", "test") as outbox:
        return dict(outbox.counts())


def drafts_in(packed: bytes) -> dict[str, bytes]:
    with ZipFile(io.BytesIO(packed)) as file:
        return {name: file.read(name) for name in file.namelist()}


def case_of(draft: bytes) -> str:
    body = message_from_bytes(draft, policy=default).get_body(("plain",))
    assert body is not None
    found = re.search(r"Our case: (\S+)", body.get_content())
    assert found
    return found[1]


# Uploading


def test_a_file_must_be_chosen(site: Site) -> None:
    visit = Visit(site)
    for files in ({"file": ("", b"")}, {"file": ("cases.csv", b"")}, None):
        answer = visit.post("/batch", files=files, data={"sheet": "Sheet <b>"})

        assert answer.status_code == 422
        assert '<a href="#file">' in answer.text
        assert "<title>Error: " in answer.text
        assert "Sheet &lt;b&gt;" in answer.text
    assert list((site.settings.outbox).glob("web/*")) == []


def test_without_the_form_s_token_nothing_is_kept(site: Site, cells: dict[str, str]) -> None:
    visit = Visit(site)
    visit.csrf = "another"
    answer = visit.post("/batch", files={"file": ("cases.csv", as_csv(rows_of(cells, 1)))})

    assert answer.status_code == 403
    assert not (site.settings.outbox / "web").exists()


def test_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    web = WebSettings(largest_upload_mb=1)
    site = build_site(Settings(outbox=tmp_path / "outbox", web=web))
    answer = Visit(site).post("/batch", files={"file": ("cases.csv", b"x" * 1_100_000)})
    site.store.close()

    assert answer.status_code == 413


def test_what_is_kept_is_private_and_has_no_name_of_the_user_s(
    site: Site, cells: dict[str, str]
) -> None:
    seen = Visit(site).upload(as_csv(with_wrong(cells)), f"{CANARY}.csv")
    kept = [seen.folder.path, *seen.folder.path.iterdir()]

    assert {stat.S_IMODE(path.stat().st_mode) for path in kept[1:]} == {0o600}
    assert stat.S_IMODE(kept[0].stat().st_mode) == 0o700
    assert {path.name for path in kept[1:]} == {
        "errors.csv", "left-out", "lock", "status.json", "upload",
    }  # fmt: skip
    assert CANARY not in (seen.folder.path / "status.json").read_text()


def test_of_too_many_one_must_be_deleted_first(
    site: Site, cells: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.web.batch_pages.MOST_KEPT", 1)
    visit = Visit(site)
    first = visit.upload(as_csv(rows_of(cells, 1)))
    again = visit.post("/batch", files={"file": ("cases.csv", as_csv(rows_of(cells, 1)))})
    assert again.status_code == 422
    assert "Delete one of them first" in again.text

    visit.post(f"{first.path}/delete")
    assert visit.upload(as_csv(rows_of(cells, 1))).heading == "1 referral ready"


def a_workbook(rows: list[dict[str, str]], *sheets: str) -> bytes:
    book = Workbook()
    for number, title in enumerate(sheets):
        sheet = book.create_sheet(title, number)
        sheet.append(list(rows[0]))
        for row in rows[number:]:
            sheet.append(list(row.values()))
    del book[book.sheetnames[-1]]
    octets = io.BytesIO()
    book.save(octets)
    content: bytes = octets.getvalue()
    return content


def as_lines(rows: list[dict[str, str]]) -> bytes:
    from referrals.case_files import unflatten

    return "".join(f"{json.dumps(unflatten(row.items()))}\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cases.csv", lambda rows: as_csv(rows).encode()),
        ("cases.xlsx", lambda rows: as_csv(rows, ";").encode("utf-16")),
        ("cases.csv", lambda rows: a_workbook(rows, "Cases")),
        ("cases.txt", as_lines),
    ],
)
def test_a_file_s_kind_is_told_by_its_content(
    name: str, make: Callable[[Any], bytes], site: Site, cells: dict[str, str]
) -> None:
    seen = Visit(site).upload(make(rows_of(cells, 3)), name)

    assert seen.heading == "3 referrals ready"
    assert f"{NCH.partition('@')[0]}<wbr>@nottinghamcityhomes<wbr>.org.uk" in seen.answer.text
    assert "Nobody has checked this address lately" in seen.text


def test_of_several_sheets_one_is_named(site: Site, cells: dict[str, str]) -> None:
    visit = Visit(site)
    book = a_workbook(rows_of(cells, 3), "First", "Second")
    unclear = visit.upload(book, "cases.xlsx")
    assert unclear.heading == "Your spreadsheet can’t be read"
    assert "Start again and name one under “Sheet”" in unclear.text

    assert visit.upload(book, "cases.xlsx", "Second").heading == "2 referrals ready"
    assert visit.upload(book, "cases.xlsx", "1").heading == "3 referrals ready"


@pytest.mark.parametrize(
    "content",
    [
        b"\n\n",
        b"one,two\n1,2\n",
        b"reference,people.victim.nam\nA-1,x\n",
        b'{\n "reference": "A-1"\n}\n',
        b"<html><table></table></html>",
        b"\xd0\xcf\x11\xe0 an old workbook",
        b"PK\x03\x04 no zip at all",
        b'"reference\nA-1',
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)),
    ],
)
def test_what_is_no_file_of_cases_is_said_without_paths_or_commands(
    content: bytes, site: Site
) -> None:
    seen = Visit(site).upload(content)

    assert seen.heading == "Your spreadsheet can’t be read"
    assert str(site.settings.outbox) not in seen.answer.text
    assert "`" not in seen.text
    assert "--" not in seen.text
    assert not seen.folder.has("upload")


def test_a_path_is_told_as_the_file() -> None:
    path = Path("/srv/outbox/web/abc/upload")
    told = batch_job.page_words(f"{path} is empty. Rows of {path} can be written.", path)

    assert told == "The file is empty. Rows of the file can be written."


def test_no_words_of_the_core_speak_of_commands() -> None:
    """Every text about a file, as its source has it."""
    root = Path(batch_job.__file__).parents[1]
    speaking = re.compile(r"`referrals|--[a-z]|pip install|run the same command", re.IGNORECASE)
    for name in ("row_files.py", "tables.py", "sheets.py"):
        # Texts that stand on several lines are one.
        source = re.sub(r'"\s*\n\s*f?"', "", (root / name).read_text("utf-8"))
        for line in source.splitlines():
            if speaking.search(line):
                assert not speaking.search(batch_job.page_words(line)), line


# Wrong rows


def test_while_a_row_is_wrong_nothing_is_made(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site).upload(as_csv(with_wrong(cells)))
    assert seen.heading == "2 rows to put right"
    assert "Nothing is made while a row is wrong" in seen.text
    assert "3 referrer.email Is not an e-mail address." in seen.text
    assert CANARY not in seen.answer.text
    listed = list(csv.DictReader(io.StringIO(seen.file("errors.csv").decode("utf-8-sig"))))
    assert [row["row"] for row in listed] == ["3", "5"]

    for action in ("drafts", "submit"):
        assert seen.then(action, accept="yes", count="3").heading == "2 rows to put right"
    assert seen.visit.get(f"{seen.path}/submit").url.path == seen.path
    assert not seen.folder.has("drafts.zip")
    assert counts(site) == {}


def test_only_the_first_errors_are_shown(site: Site, cells: dict[str, str]) -> None:
    rows = [{**row, "referrer.email": "no"} for row in rows_of(cells, 230)]
    seen = Visit(site).upload(as_csv(rows))

    assert f"The first {batch_job.MOST_SHOWN} of 230 errors" in seen.text
    assert seen.answer.text.count("Is not an e-mail address.") == batch_job.MOST_SHOWN
    assert seen.file("errors.csv").decode().count("is not an e-mail address.") == 230
    assert "leave-out" not in seen.answer.text  # there are no others


@pytest.mark.parametrize("kind", ["csv", "xlsx", "jsonl"])
def test_wrong_rows_can_be_left_out_and_are_given_back(
    kind: str, site: Site, cells: dict[str, str]
) -> None:
    rows = with_wrong(cells)
    content = {"csv": as_csv(rows).encode(), "xlsx": a_workbook(rows, "Cases"),
               "jsonl": as_lines(rows)}[kind]  # fmt: skip
    visit = Visit(site)
    seen = visit.upload(content).then("leave-out")
    assert seen.heading == "3 referrals ready"
    assert "2 rows are left out" in seen.text
    drafted = seen.then("drafts")
    assert drafted.heading == "3 drafts to download"
    made = drafts_in(drafted.file("drafts.zip"))
    assert {case_of(draft) for draft in made.values()} == {"CASE-1", "CASE-3", "CASE-5"}

    left = drafted.file("left-out")
    assert (
        f"rows-left-out.{kind}" in visit.get(f"{seen.path}/left-out").headers["content-disposition"]
    )
    assert visit.upload(left).heading == "2 rows to put right"


def test_rows_are_left_out_of_a_long_file_too(site: Site, cells: dict[str, str]) -> None:
    """A wrong row does not end the making of others; and of a repeated one, neither is made."""
    rows = rows_of(cells, 700)
    rows[0]["referrer.email"] = CANARY
    rows[699]["reference"] = "CASE-100"
    seen = Visit(site).upload(as_csv(rows)).then("leave-out")
    assert seen.heading == "697 referrals ready"
    made = drafts_in(seen.then("drafts").file("drafts.zip"))

    left = {"CASE-1", "CASE-100", "CASE-700"}
    assert {case_of(draft) for draft in made.values()} == {
        row["reference"] for row in rows if row["reference"] not in left
    }


# Drafts


def test_all_as_drafts(site: Site, cells: dict[str, str]) -> None:
    rows = [{**row, "people.victim.name": CANARY} for row in rows_of(cells, 3)]
    seen = Visit(site, Role.REFERRER).upload(as_csv(rows))
    assert "Somebody with the role of sender can submit" in seen.text
    drafted = seen.then("drafts")
    made = drafts_in(drafted.file("drafts.zip"))

    assert len(made) == 3
    for name, draft in made.items():
        assert re.fullmatch(r"[A-Z0-9-]+-mediation\.eml", name)
        message = message_from_bytes(draft, policy=default)
        assert (message["To"], message["X-Unsent"]) == (NCH, "1")
        assert CANARY in draft.decode()
    assert stat.S_IMODE((drafted.folder.path / "drafts.zip").stat().st_mode) == 0o600
    assert not drafted.folder.has("upload")
    assert counts(site) == {}


def test_a_draft_is_the_one_that_the_journey_makes(site: Site, cells: dict[str, str]) -> None:
    from referrals.case_files import unflatten

    (row,) = rows_of(cells, 1)
    seen = Visit(site).upload(as_csv([row])).then("drafts")
    case, place = site.service.read(unflatten(row.items()))
    referral = site.service.prepare(site.service.assess(case, place, "mediation"))

    assert drafts_in(seen.file("drafts.zip")) == {referral.file_name: site.service.draft(referral)}


# Submitting


def test_a_referrer_can_t_submit(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site, Role.REFERRER).upload(as_csv(rows_of(cells, 1)))

    assert seen.visit.get(f"{seen.path}/submit").status_code == 403
    posted = seen.visit.post(f"{seen.path}/submit", data={"accept": "yes", "count": "1"})
    assert posted.status_code == 403
    assert counts(site) == {}


def test_without_a_relay_there_are_drafts_only(tmp_path: Path, cells: dict[str, str]) -> None:
    site = build_site(Settings(outbox=tmp_path / "without"))
    seen = Visit(site).upload(as_csv(rows_of(cells, 1)))
    assert "no relay is set up" in seen.text
    assert seen.submit(1).heading == "1 referral ready"
    site.store.close()


def test_submitting_is_confirmed_by_the_number_and_the_tick(
    site: Site, cells: dict[str, str]
) -> None:
    seen = Visit(site).upload(as_csv(rows_of(cells, 3)))
    asked = seen.visit.get(f"{seen.path}/submit")
    assert "Submit 3 referrals?" in asked.text
    assert "Nottingham City Homes was wound up" in asked.text  # the address's alert

    for data, fields in (
        ({}, ["accept", "count"]),
        ({"count": "3"}, ["accept"]),
        ({"accept": "yes", "count": "4"}, ["count"]),
        ({"accept": "yes", "count": "<b>"}, ["count"]),
    ):
        refused = seen.visit.post(f"{seen.path}/submit", data={**data, **seen.shown()})
        assert refused.status_code == 422
        assert re.findall(r'<a href="#([a-z]+)">', refused.text) == fields
        assert "<b>" not in refused.text
    assert counts(site) == {}
    assert seen.submit(3).heading == "3 referrals queued"


def test_queued_once_each_in_the_user_s_name(site: Site, cells: dict[str, str]) -> None:
    visit = Visit(site, name="sam.sender")
    content = as_csv(rows_of(cells, 3))
    assert visit.upload(content).submit(3).heading == "3 referrals queued"
    assert counts(site) == {"queued": 3}
    again = visit.upload(as_csv(rows_of(cells, 5))).submit(5)
    assert again.heading == "2 referrals queued"
    assert "3 queued" in again.text
    assert visit.upload(content).submit(3).heading == "All of these were queued before"

    assert counts(site) == {"queued": 5}
    with SqliteOutbox.open(site.settings.outbox / "outbox.sqlite3", "test") as outbox:
        entries = list(outbox.audit())
    assert {entry.actor for entry in entries} == {"sam.sender"}
    assert all(entry.detail["accepted_unverified"] for entry in entries)
    assert not again.folder.has("upload")


def test_what_was_queued_is_looked_at_at_once(
    site: Site, cells: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kicked: list[int] = []
    monkeypatch.setattr(site.courier, "kick", lambda: kicked.append(sum(counts(site).values())))
    seen = Visit(site).upload(as_csv(rows_of(cells, 2)))
    assert kicked == []
    seen.submit(2)
    until = time.monotonic() + WAIT_S
    while not kicked and time.monotonic() < until:
        time.sleep(0.02)

    assert kicked == [2]


def test_what_has_no_address_is_not_submitted(site: Site, directory: Directory) -> None:
    case = sample_case(directory, ["police-dispersal-order"], site.service.today())
    seen = Visit(site).upload(as_csv(rows_of(dict(flatten(case)), 2)))
    assert "These can’t all be submitted" in seen.text

    assert seen.submit(2).answer.status_code == 200
    assert counts(site) == {}
    assert seen.then("drafts").heading == "2 drafts to download"


def test_what_came_to_something_else_since_is_asked_again(
    site: Site, cells: dict[str, str]
) -> None:
    """The rows are checked again before they are queued: rules may go by the day."""
    seen = Visit(site).upload(as_csv(rows_of(cells, 5)))
    seen.folder.upload.write_text(as_csv(with_wrong(cells)))
    after = seen.submit(5)

    assert after.heading == "2 rows to put right"
    assert "Nothing was made" in after.text
    assert counts(site) == {}


def order_of(site: Site, **more: Any) -> batch_job.Order:
    return batch_job.Order.model_validate(
        {
            "parent": os.getppid(),
            "actor": "jo",
            "settings": site.settings.model_dump(include={"outbox"}),
            "agencies": dict(site.service.directory.agencies),
            **more,
        }
    )


def test_an_address_that_went_unchecked_since_is_asked_again(
    site: Site, cells: dict[str, str]
) -> None:
    seen = Visit(site).upload(as_csv(rows_of(cells, 2)))
    going = seen.folder.status()["going"]
    batch_job.Job(order_of(site, task="submit", expected=2, going=going), seen.folder).run()

    assert seen.folder.status()["again"] == "unverified"
    assert counts(site) == {}


def test_a_relay_gets_them_all(tmp_path: Path, cells: dict[str, str]) -> None:
    with Beside(Sink(keep=tmp_path / "arrived")) as sink:
        relay = RelaySettings(host="127.0.0.1", port=sink.port, security=Security.NONE)
        site = build_site(Settings(outbox=tmp_path / "relaying", relay=relay))
        visit = Visit(site)
        with visit._client:  # with its courier
            visit.upload(as_csv(rows_of(cells, 4))).submit(4)
            until = time.monotonic() + WAIT_S
            while counts(site) != {"relayed": 4}:
                assert time.monotonic() < until
                time.sleep(0.05)
    arrived = [path.read_bytes() for path in (tmp_path / "arrived").glob("*.eml")]
    assert {case_of(one) for one in arrived} == {f"CASE-{number}" for number in range(1, 5)}


# Stopped


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.web.batch_pages._WAIT_S", 0.1)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes, as they are begun."""
    found: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            found.append(self)

    monkeypatch.setattr("referrals.web.batch_folder.subprocess.Popen", Noted)
    return found


def ended(folder: BatchFolder) -> None:
    until = time.monotonic() + WAIT_S
    while folder.is_running:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_check_that_is_killed_is_said_and_can_be_done_again(
    site: Site, cells: dict[str, str], started: list[subprocess.Popen[bytes]]
) -> None:
    folders = batch_folder.folders(site.settings.outbox)
    folders.mkdir(parents=True)
    visit = Visit(site)
    with BatchFolder(folders / "another").turn(lambda: None):
        answer = visit.post("/batch", files={"file": ("cases.csv", as_csv(rows_of(cells, 3)))})
        assert "Waiting for its turn" in answer.text
        assert 'name="csrf"' in answer.text
        seen = Seen(visit, answer.url.path, answer)
        (process,) = started
        process.send_signal(signal.SIGKILL)
        ended(seen.folder)
    (seen.folder.path / "drafts.zip.part").write_text(CANARY)
    stopped = visit.seen(visit.get(seen.path))

    assert stopped.heading == "This was stopped before it was done"
    assert "Nothing was made" in stopped.text
    assert not list(seen.folder.path.glob("*.part"))
    assert stopped.then("again").heading == "3 referrals ready"


def test_it_ends_with_the_page_s_process(
    site: Site, cells: dict[str, str], started: list[subprocess.Popen[bytes]]
) -> None:
    """Here with a process that is not its parent."""
    seen = Visit(site).upload(as_csv(rows_of(cells, 3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("referrals.web.batch_folder.os.getpid", lambda: 1)
        with BatchFolder(seen.folder.path.parent / "another").turn(lambda: None):
            assert seen.folder.start(
                order_of(site, task="draft", expected=3).model_dump(mode="json")
            )
            assert started[-1].wait(WAIT_S) == 1
    ended(seen.folder)

    assert seen.visit.get(seen.path).status_code == 200
    assert not seen.folder.has("drafts.zip")


def test_a_fault_of_the_server_s_is_said(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site).upload(as_csv(rows_of(cells, 2)))
    (site.settings.outbox / "outbox.sqlite3").mkdir()
    failed = seen.submit(2)

    assert failed.heading == "This was stopped before it was done"
    assert "Tell whoever runs this service" in failed.text
    (site.settings.outbox / "outbox.sqlite3").rmdir()
    assert failed.then("again").submit(2).heading == "2 referrals queued"


def test_one_that_is_under_way_can_be_stopped_and_deleted(
    site: Site, cells: dict[str, str], started: list[subprocess.Popen[bytes]]
) -> None:
    folders = batch_folder.folders(site.settings.outbox)
    folders.mkdir(parents=True)
    visit = Visit(site)
    with BatchFolder(folders / "another").turn(lambda: None):
        answer = visit.post("/batch", files={"file": ("cases.csv", as_csv(rows_of(cells, 3)))})
        after = visit.post(f"{answer.url.path}/delete")

        assert after.url.path == "/batch"
        assert started[0].wait(WAIT_S) == 1
    assert visit.get(answer.url.path).status_code == 404
    assert {path.name for path in folders.iterdir()} == {"turn"}


def test_two_at_once_are_one(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site).upload(as_csv(rows_of(cells, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_folder, "_TRIES", 2)
        handle = BatchFolder._lock(seen.folder.path / "lock")
        assert handle is not None
        assert not seen.folder.start({})
        os.close(handle)


# Whose, and how long


def test_nobody_else_sees_it(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site).upload(as_csv(with_wrong(cells))).then("leave-out").then("drafts")
    other = Visit(site, Role.ADMINISTRATOR, "another")

    for name in ("", "/state", "/errors.csv", "/left-out", "/drafts.zip", "/submit"):
        assert other.get(f"{seen.path}{name}").status_code == 404
    for name in ("/again", "/leave-out", "/drafts", "/submit", "/delete"):
        assert other.post(f"{seen.path}{name}").status_code == 404
    assert seen.path not in other.get("/batch").text
    assert seen.path in seen.visit.get("/batch").text


@pytest.mark.parametrize("path", ["/batch/%2e%2e", "/batch/%2e%2e%2fweb", "/batch/x%2fy"])
def test_no_path_leads_out_of_the_folders(path: str, site: Site) -> None:
    for name in ("", "/drafts.zip", "/left-out"):
        assert Visit(site).get(f"{path}{name}").status_code in (404, 405)


def test_deleting_leaves_nothing(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site).upload(as_csv(with_wrong(cells))).then("leave-out").then("drafts")
    after = seen.visit.post(f"{seen.path}/delete")

    assert after.url.path == "/batch"
    assert not seen.folder.path.exists()
    assert seen.visit.get(seen.path).status_code == 404


def test_what_nobody_uses_is_swept(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site).upload(as_csv(rows_of(cells, 1)))
    outbox, keep = site.settings.outbox, timedelta(hours=72)
    batch_folder.sweep(outbox, site.now + keep - timedelta(minutes=1), keep)
    assert seen.folder.path.exists()

    batch_folder.sweep(outbox, site.now + keep + timedelta(minutes=1), keep)
    assert not seen.folder.path.exists()


def test_it_is_swept_as_the_page_starts(site: Site, cells: dict[str, str]) -> None:
    seen = Visit(site).upload(as_csv(rows_of(cells, 1)))
    os.utime(seen.folder.path, (1, 1))

    async def while_it_runs() -> None:
        async with batch_pages.kept_tidy(site):
            while seen.folder.path.exists():  # noqa: ASYNC110 - no event of ours
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(while_it_runs(), WAIT_S))


def test_what_is_half_made_is_swept_but_where_somebody_is_at_work(
    site: Site, cells: dict[str, str]
) -> None:
    seen = Visit(site).upload(as_csv(rows_of(cells, 1)))
    part = seen.folder.path / "drafts.zip.part"
    part.touch()
    handle = BatchFolder._lock(seen.folder.path / "lock")
    assert handle is not None
    batch_folder.sweep(site.settings.outbox, site.now, timedelta(hours=72))
    assert part.exists()

    os.close(handle)
    batch_folder.sweep(site.settings.outbox, site.now, timedelta(hours=72))
    assert not part.exists()
    assert seen.folder.has("upload")


def test_what_can_t_be_kept_is_said_and_leaves_nothing(
    site: Site, cells: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("referrals.web.batch_folder.shutil.copyfileobj", full)
    answer = Visit(site).post("/batch", files={"file": ("cases.csv", as_csv(rows_of(cells, 1)))})

    assert answer.status_code == 422
    assert "disk is full" in answer.text
    assert list(batch_folder.folders(site.settings.outbox).iterdir()) == []
    assert "Uploaded" not in Visit(site).get("/batch").text


# A spreadsheet to start from


def test_a_spreadsheet_to_fill_in_is_right_as_it_is(site: Site) -> None:
    visit = Visit(site)
    assert visit.get("/batch/template").status_code == 200
    chosen = "intervention=mediation&intervention=victim-hardening"
    answer = visit.get(f"/batch/template.csv?{chosen}")
    assert answer.content.startswith(b"\xef\xbb\xbf")

    assert visit.upload(answer.content).heading == "2 referrals ready"


@pytest.mark.parametrize("query", ["", "?intervention=nothing", "?intervention=%3Cb%3E"])
def test_something_to_refer_to_must_be_chosen(query: str, site: Site) -> None:
    answer = Visit(site).get(f"/batch/template.csv{query}")

    assert answer.status_code == 422
    assert '<a href="#intervention">' in answer.text
    assert "<b>" not in answer.text
