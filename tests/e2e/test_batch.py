"""`batch` from a file to drafts and to a relay: all or none, once each, and to be gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.samples import sample_case
from referrals.sink import Sink
from tests.conftest import ROOT, TODAY
from tests.e2e.conftest import REFERRALS, Beside, Command, RelayEnv, process
from tests.peers import ScriptedRelay
from tests.workbooks import Book

NCH = "community@nottinghamcityhomes.org.uk"
CANARY = "Canary Quillfeather"
SEND = ("batch", "cases.csv", "--send", "--accept-unverified")


@pytest.fixture
def cells(directory: Directory) -> dict[str, str]:
    return dict(flatten(sample_case(directory, ["mediation"], TODAY)))


def rows_of(cells: Mapping[str, str], count: int) -> list[dict[str, str]]:
    """Cases 1 and so on, each with a name of its own."""
    return [
        {**cells, "reference": f"CASE-{number}", "people.victim.name": f"Person {number}."}
        for number in range(1, count + 1)
    ]


def write(rows: Sequence[Mapping[str, str]], name: str = "cases.csv", **how: Any) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with Path(name).open("w", newline="", encoding=how.get("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, columns, delimiter=how.get("delimiter", ","))
        writer.writeheader()
        writer.writerows(rows)
    return Path(name)


def read(path: Path | str) -> list[dict[str, str]]:
    text = Path(path).read_text("utf-8-sig")
    delimiter = ";" if text.partition("\n")[0].count(";") > 3 else ","
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def queued() -> dict[str, int]:
    with SqliteOutbox.open(Path("outbox/outbox.sqlite3"), "test") as outbox:
        return dict(outbox.counts())


def made() -> list[Path]:
    return [path for path in Path("outbox").rglob("*") if path.is_file()]


# The dry run


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_dry_run_says_what_would_go_where(
    more: list[str], cells: dict[str, str], referrals: Command, relay_env: RelayEnv
) -> None:
    write(rows_of(cells, 3))
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        done = referrals("batch", "cases.csv", *more)

    assert (done.code, done.err) == (0, "")
    assert f"3\tNCH (Nottingham City Homes)\t{NCH}\tmediation" in done.out
    assert "3 rows, 3 referrals." in done.out
    assert "Nothing was made." in done.out
    assert (relay.connections, made()) == (0, [])


def test_a_dry_run_writes_nothing_anywhere(
    cells: dict[str, str], referrals: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(rows_of(cells, 3))

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a file was to be made")

    monkeypatch.setattr("referrals.batch.tempfile.TemporaryFile", refused)
    before = sorted(Path().rglob("*"))

    assert referrals("batch", "cases.csv").code == 0
    assert sorted(Path().rglob("*")) == before


def test_as_json(cells: dict[str, str], referrals: Command) -> None:
    write(rows_of(cells, 2))
    told = referrals("batch", "cases.csv", "--json").json

    assert (told["ok"], told["rows"], told["rows_wrong"], told["errors"]) == (True, 2, 0, [])
    (agency,) = told["by_agency"]
    assert (agency["to"], agency["referrals"], agency["verified"]) == (NCH, 2, False)


def test_the_sample_file_is_right(referrals: Command) -> None:
    done = referrals("batch", ROOT / "samples" / "batch.csv")

    assert (done.code, done.err) == (0, "")
    assert "4 rows, 5 referrals." in done.out


# What is wrong


def wrong_rows(cells: Mapping[str, str]) -> list[dict[str, str]]:
    rows = rows_of(cells, 5)
    rows[1]["referrer.email"] = CANARY
    rows[1]["consents.1.on"] = CANARY
    rows[3]["consents.1.given"] = "no"
    return rows


@pytest.mark.parametrize("action", [[], ["--draft"], ["--send", "--accept-unverified"]])
@pytest.mark.parametrize("as_json", [False, True])
def test_while_a_row_is_wrong_nothing_is_made(
    as_json: bool,
    action: list[str],
    cells: dict[str, str],
    referrals: Command,
    relay_env: RelayEnv,
) -> None:
    write(wrong_rows(cells))
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        done = referrals("batch", "cases.csv", *action, *(["--json"] if as_json else []))

    assert done.code == 3
    assert (relay.connections, made()) == (0, [])
    assert not list(Path("outbox").rglob("*.referral-tmp"))
    assert CANARY not in done.said
    if as_json:
        assert {(one["row"], one["where"], one["code"]) for one in done.json["errors"]} == {
            (3, "referrer.email", "email"),
            (3, "consents.1.on", "date"),
            (5, "consents", "MED-002"),
        }
        assert done.json["status"] == "nothing made"
    else:
        assert "row 3: referrer.email: is not an e-mail address." in done.err
        assert "row 3: consents.1.on: is not a date." in done.err
        assert "row 5: " in done.err
        assert "2 rows to put right" in done.out


def test_the_list_of_errors_tells_which_cells_to_mend(
    cells: dict[str, str], referrals: Command
) -> None:
    """Mended where it says, the file is right, and the list is empty again."""
    right = rows_of(cells, 5)
    rows = wrong_rows(cells)
    write(rows, encoding="cp1252", delimiter=";")
    assert referrals("batch", "cases.csv", "--errors", "errors.csv").code == 3

    errors = read("errors.csv")
    assert CANARY not in Path("errors.csv").read_text()
    assert Path("errors.csv").stat().st_mode & 0o777 == 0o600
    assert all(one["what"] and one["remedy"] and one["code"] for one in errors)
    for one in errors:
        row = int(one["row"]) - 2
        for column in [name for name in rows[row] if name.startswith(one["column"])]:
            rows[row][column] = right[row][column]
    assert rows == right
    write(rows)
    done = referrals("batch", "cases.csv", "--draft", "--errors", "errors.csv")

    assert (done.code, done.err) == (0, "")
    assert read("errors.csv") == []
    assert len(made()) == 5


def test_rows_left_out_are_written_as_they_were_to_be_mended(
    cells: dict[str, str], referrals: Command
) -> None:
    rows = wrong_rows(cells)
    write(rows, encoding="cp1252", delimiter=";")
    skip = ("--skip-invalid", "--skipped", "left.csv")
    assert not Path("left.csv").exists()
    first = referrals("batch", "cases.csv", "--draft", *skip)
    again = referrals("batch", "cases.csv", "--draft", *skip)

    assert (first.code, again.code) == (3, 3)
    assert "2 rows left out, written to left.csv." in first.out
    assert "3 drafted in" in first.out
    assert "0 drafted in outbox/drafts; 3 drafted before, unchanged." in again.out
    left = read("left.csv")
    assert left == [rows[1], rows[3]]

    right = rows_of(cells, 5)
    write([right[1], right[3]], "mended.csv")
    assert referrals("batch", "mended.csv", "--draft").code == 0
    assert len(made()) == 5


def test_rows_being_mended_are_never_written_over(
    cells: dict[str, str], referrals: Command
) -> None:
    write(wrong_rows(cells))
    Path("left.csv").write_text("half mended")
    done = referrals("batch", "cases.csv", "--draft", "--skip-invalid", "--skipped", "left.csv")

    assert done.code == 6
    assert Path("left.csv").read_text() == "half mended"
    assert made() == []
    assert list(Path().glob(".*tmp")) == []


def test_an_agency_without_address_is_an_error_where_it_is_to_be_sent(
    directory: Directory, referrals: Command, relay_env: RelayEnv
) -> None:
    case = sample_case(directory, ["police-dispersal-order"], TODAY)
    write([dict(flatten(case))])
    relay_env(1)

    assert referrals("batch", "cases.csv").code == 0
    done = referrals(*SEND)
    assert done.code == 3
    assert "row 2: intervention: " in done.err
    assert "can only be drafted" in done.err
    assert made() == []
    assert referrals("batch", "cases.csv", "--draft").code == 0


def test_addresses_that_nobody_verified_stop_it_once(
    cells: dict[str, str], referrals: Command, relay_env: RelayEnv
) -> None:
    write(rows_of(cells, 3))
    relay_env(1)
    done = referrals("batch", "cases.csv", "--send")

    assert done.code == 7
    assert done.err.count(NCH) == 1
    assert made() == []


@pytest.mark.parametrize(
    "argv",
    [
        ["-"],
        ["cases.csv", "--draft", "--send"],
        ["cases.csv", "--draft", "--dry-run"],
        ["cases.csv", "--draft", "--skip-invalid"],
        ["cases.csv", "--draft", "--skipped", "left.csv"],
        ["cases.csv", "--send", "--out", "x"],
        ["cases.csv", "--errors", "cases.csv"],
        ["cases.csv", "--errors", "./cases.csv"],
        ["cases.csv", "--errors", "a", "--skip-invalid", "--skipped", "a"],
    ],
)
def test_wrong_use(argv: list[str], cells: dict[str, str], referrals: Command) -> None:
    path = write(rows_of(cells, 1))
    before = path.read_bytes()
    done = referrals("batch", *argv)

    assert done.code == 2
    assert path.read_bytes() == before


def test_a_workbook_from_excel_is_read_as_its_sheet_shows_it(
    cells: dict[str, str], referrals: Command
) -> None:
    """Shared texts, a title, dates, a lost zero, a filter; mended in the skipped file, all go."""
    book = Book()
    rows: list[list[Any]] = [list(row.values()) for row in rows_of(cells, 5)]
    columns = list(cells)
    for row in rows:
        row[columns.index("consents.1.on")] = book.number("46328", "dd/mm/yyyy")
    phone = columns.index("people.victim.phone")
    rows[1][phone] = book.number("7700900123")
    rows[3][phone] = book.number("7700900123", "00000000000")
    book.add([["Referrals"], [], columns, *rows], "Cases", hidden=(6,))
    book.add([["mediation"]], "Lists", state="hidden")
    book.save(Path("cases.xlsx"))
    skip = ("--skip-invalid", "--skipped", "left.xlsx")
    done = referrals("batch", "cases.xlsx", "--draft", *skip)

    assert done.code == 3
    assert "row 5: people.victim.phone: is stored as a number" in done.err
    assert "row 6: (the row): is hidden, by a filter perhaps. Show the row" in done.err
    assert done.err.count("row ") == done.err.count("row 5: ") + done.err.count("row 6: ") + 1
    assert "3 drafted in" in done.out

    left = openpyxl.load_workbook("left.xlsx")
    assert left.worksheets[0].cell(2, phone + 1).value == 7700900123
    left.worksheets[0].cell(2, phone + 1).value = "07700 900123"
    left.save("mended.xlsx")
    assert "row 3: (the row): is hidden" in referrals("batch", "mended.xlsx", "--draft").err
    left = openpyxl.load_workbook("mended.xlsx")
    left.worksheets[0].row_dimensions[3].hidden = False
    left.save("mended.xlsx")
    assert referrals("batch", "mended.xlsx", "--draft").code == 0
    assert len(made()) == 5


def test_rows_behind_an_open_quotation_mark_are_told_and_kept(
    cells: dict[str, str], referrals: Command
) -> None:
    lines = write(rows_of(cells, 4)).read_text().split("\nCASE-3", 1)
    Path("cases.csv").write_text(f'{lines[0]}\nCASE-3"'.replace("\nCASE-3\"", '\n"CASE-3')
                                 + lines[1])  # fmt: skip
    skip = ("--skip-invalid", "--skipped", "left.csv")
    done = referrals("batch", "cases.csv", "--draft", *skip)

    assert done.code == 3
    assert "row 4: (the row): has a quotation mark that is not closed." in done.err
    assert "2 drafted in" in done.out
    left = Path("left.csv").read_text("utf-8-sig")
    Path("mended.csv").write_text(left.replace('\n"CASE-3', "\nCASE-3"))
    assert referrals("batch", "mended.csv", "--draft").code == 0
    assert len(made()) == 4


def test_no_file_that_we_write_runs_a_formula(cells: dict[str, str], referrals: Command) -> None:
    rows = wrong_rows(cells)
    formula = '=HYPERLINK("http://x.test","open")'
    rows[1]["people.victim.access_needs"] = rows[3]["people.victim.access_needs"] = formula
    write(rows)
    argv = ["batch", "cases.csv", "--draft", "--errors", "errors.csv"]
    referrals(*argv, "--skip-invalid", "--skipped", "left.csv")

    for name in ("errors.csv", "left.csv"):
        found = [cell for row in read(name) for cell in row.values()]
        assert found
        assert not [cell for cell in found if cell[:1] in tuple("=+-@\t\r")]
    assert [row["people.victim.access_needs"] for row in read("left.csv")] == [f"'{formula}"] * 2


def test_hostile_cells_do_nothing(cells: dict[str, str], referrals: Command) -> None:
    rows = rows_of(cells, 4)
    rows[0]["reference"] = "../../etc/passwd1"
    rows[1]["people.victim.name"] = "Sam\r\nBcc: other@example.com"
    rows[2]["people.victim.name"] = "{{ 7*7 }} <script>alert(1)</script>"
    rows[3]["people.victim.access_needs"] = '=HYPERLINK("http://x.test")'
    for row in rows:
        row["intervention"] = "mediation"
    rows[1]["intervention"] = f"{CANARY}; mediation"
    write(rows)
    done = referrals("batch", "cases.csv", "--draft")

    assert done.code == 3
    assert CANARY not in done.said
    assert "row 2: reference: " in done.err
    assert "row 3: people.victim.name: has more than one line." in done.err
    assert "row 4:" not in done.err
    assert "row 5: people.victim.access_needs: holds a formula" in done.err

    rows[3]["people.victim.access_needs"] = '@SUM("http://x.test")'
    write(rows[2:])
    assert referrals("batch", "cases.csv", "--draft").code == 0
    texts = [message_from_bytes(path.read_bytes(), policy=default) for path in made()]
    html = "".join(str(text.get_body(("html",)).get_content()) for text in texts)  # type: ignore[union-attr]
    assert "<script>" not in html
    assert "{{ 7*7 }}" in html


# Drafting and sending


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred rows are several groups, on every processor, with lines of progress."""
    monkeypatch.setattr("referrals.cli.batch.GROUP", 40)
    monkeypatch.setattr("referrals.cli.batch._EVERY", 100)
    monkeypatch.setattr("referrals.batch._ROWS_AT_ONCE", 25)


@pytest.mark.usefixtures("small_groups")
def test_many_rows_are_drafted_once_each(cells: dict[str, str], referrals: Command) -> None:
    write(rows_of(cells, 300))
    done = referrals("batch", "cases.csv", "--draft", "--out", "drafts")

    assert done.code == 0
    assert "300 drafted in drafts." in done.out
    assert "Checking: 300" in done.err
    assert "Drafting: 300 of 300" in done.err
    drafts = list(Path("drafts").iterdir())
    assert len(drafts) == 300
    told = {re.search(rb"Person \d+\.", path.read_bytes()) for path in drafts}
    assert len({found[0] for found in told if found}) == 300


@pytest.mark.usefixtures("small_groups")
def test_many_rows_are_queued_and_arrive_once_each(
    cells: dict[str, str], referrals: Command, relay_env: RelayEnv
) -> None:
    write(rows_of(cells, 300))
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        done = referrals(*SEND)

    assert done.code == 0
    assert "300 queued." in done.out
    assert "300 relayed" in done.out
    assert queued() == {"relayed": 300}
    assert len(relay.arrived) == 300
    assert {one.recipients for one in relay.arrived} == {(NCH,)}
    told = [re.search(rb"Person \d+\.", one.content) for one in relay.arrived]
    assert len({found[0] for found in told if found}) == 300


KILLED = """
import os, signal, sys
from referrals.cli import main
from referrals.outboxes.sqlite.outbox import SqliteOutbox
queue, calls = SqliteOutbox.queue_soon, []
def killed(self, *arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return queue(self, *arguments)
SqliteOutbox.queue_soon = killed
main(sys.argv[1:])
"""


def test_killed_between_groups_it_goes_on_and_doubles_nothing(
    cells: dict[str, str],
    referrals: Command,
    relay_env: RelayEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("referrals.cli.batch.GROUP", 20)
    script = "import referrals.cli.batch as b; b.GROUP = 20\n" + KILLED
    write(rows_of(cells, 50))
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        killed = subprocess.run(
            [sys.executable, "-c", script, *SEND], capture_output=True, timeout=60, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert queued() == {"queued": 40}
        assert relay.arrived == [], "all are queued before the first is submitted"
        done = referrals(*SEND)
        again = referrals(*SEND)

    assert (done.code, again.code) == (0, 0)
    assert "10 queued; queued before: 40 queued." in done.out
    assert "0 queued; queued before: 50 relayed." in again.out
    assert "Nothing was submitted." in again.out
    told = [re.search(rb"Person \d+\.", one.content) for one in relay.arrived]
    assert sorted(found[0] for found in told if found) == sorted(
        f"Person {number}.".encode() for number in range(1, 51)
    )


KILLED_AT_ONE = """
import os, signal, sys
from referrals.cli import main
from referrals.transports.smtp import Session
async def killed(self, outgoing):
    os.kill(os.getpid(), signal.SIGKILL)
Session.submit = killed
main(sys.argv[1:])
"""


def test_the_same_file_again_does_not_hide_what_was_cut_short(
    cells: dict[str, str],
    referrals: Command,
    relay_env: RelayEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits for a person is not tried again by itself."""
    monkeypatch.setenv("REFERRALS_DELIVERY_ON_UNCERTAIN", "hold")
    monkeypatch.setenv("REFERRALS_DELIVERY_LANES", "1")
    write(rows_of(cells, 3))
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        subprocess.run(
            [sys.executable, "-c", KILLED_AT_ONE, *SEND],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert queued() == {"sending": 1, "queued": 2}
        done = referrals(*SEND)

    assert queued() == {"uncertain": 1, "relayed": 2}
    assert done.code == 10
    assert "1 uncertain: the process that was submitting them ended" in done.err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_batch_that_is_stopped_leaves_no_draft_half_way(
    cells: dict[str, str], home: Path, how: signal.Signals
) -> None:
    write(rows_of(cells, 3_000))
    drafting = subprocess.Popen(
        [sys.executable, "-m", "referrals", "batch", "cases.csv", "--draft", "--out", "drafts"],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 30
    while not list(Path().glob("drafts/.*")) and time.monotonic() < until:
        time.sleep(0.01)
    drafting.send_signal(how)
    said = drafting.communicate(timeout=30)[1]

    assert drafting.returncode == 130
    assert said.endswith("Stopped.\n")
    assert not Path("drafts").exists()


def test_a_relay_out_of_reach_keeps_all_in_the_queue(
    cells: dict[str, str], referrals: Command, relay_env: RelayEnv
) -> None:
    write(rows_of(cells, 3))
    with Beside(Sink()) as gone:
        port = gone.port
    relay_env(port)
    done = referrals(*SEND)

    assert done.code == 8
    assert "3 queued." in done.out
    assert "kept in the outbox" in done.err
    assert queued() == {"queued": 3}


def test_a_draft_that_somebody_edited_is_kept_and_named(
    cells: dict[str, str], referrals: Command
) -> None:
    write(rows_of(cells, 3))
    referrals("batch", "cases.csv", "--draft")
    edited = min(made())
    edited.write_text("edited")
    done = referrals("batch", "cases.csv", "--draft")

    assert done.code == 6
    assert edited.name in done.err
    assert "0 drafted in outbox/drafts; 2 drafted before, unchanged." in done.out
    assert edited.read_text() == "edited"
    assert referrals("batch", "cases.csv", "--draft", "--beside").code == 0
    assert len(made()) == 4


def test_json_lines_and_workbooks_make_what_a_csv_makes(
    directory: Directory, cells: dict[str, str], referrals: Command
) -> None:
    rows = rows_of(cells, 2)
    write(rows)
    case = sample_case(directory, ["mediation"], TODAY)
    Path("cases.jsonl").write_text(
        "\n".join(
            json.dumps(
                {
                    **case,
                    "reference": row["reference"],
                    "people": case["people"]
                    | {"victim": case["people"]["victim"] | {"name": row["people.victim.name"]}},
                }
            )
            for row in rows
        )
    )
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(list(rows[0]))
    for row in rows:
        sheet.append(list(row.values()))
    book.save("cases.xlsx")

    for name in ("cases.csv", "cases.jsonl", "cases.xlsx"):
        done = referrals("batch", name, "--draft")
        assert (done.code, done.err) == (0, "")
    assert "0 drafted in outbox/drafts; 2 drafted before, unchanged." in done.out


# On a terminal


@pytest.mark.parametrize("plain", [False, True])
def test_a_bar_is_shown_to_whoever_looks_and_in_colour_unless_told(
    plain: bool, cells: dict[str, str], referrals: Command
) -> None:
    write(wrong_rows(cells))
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"} | ({"NO_COLOR": "1"} if plain else {})
    running = subprocess.Popen(
        [*REFERRALS, "batch", "cases.csv"], stderr=follower, stdout=subprocess.PIPE, env=env
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # how Linux ends a terminal
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert running.wait(30) == 3
    assert running.stdout is not None
    running.stdout.close()

    assert b"Checking" in shown
    assert b"row 3: referrer.email: is not an e-mail address." in shown
    assert (re.search(rb"\x1b\[[0-9;]*3[0-9](;[0-9]+)*m", shown) is None) == plain


def test_the_process_itself(cells: dict[str, str], home: Path) -> None:
    write(rows_of(cells, 1))
    done = process("batch", "cases.csv", "--draft")

    assert (done.code, done.err) == (0, "")
    assert len(made()) == 1


def test_one_of_several_sheets_is_chosen(cells: dict[str, str], referrals: Command) -> None:
    book = Book()
    for name, row in zip(("May", "June"), rows_of(cells, 2), strict=True):
        book.add([list(row), list(row.values())], name)
    book.save(Path("cases.xlsx"))
    unsaid = referrals("batch", "cases.xlsx", "--draft")
    june = referrals("batch", "cases.xlsx", "--sheet", "june", "--draft")
    first = referrals("batch", "cases.xlsx", "--sheet", "1", "--draft")

    assert (unsaid.code, june.code, first.code) == (3, 0, 0)
    assert "in more than one sheet: 1 and 2" in unsaid.err
    assert "1 drafted in outbox/drafts." in june.out
    assert len(made()) == 2
