"""The command line as people and scripts meet it: words, JSON, exit codes, and no traceback."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import jsonschema
import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from referrals.cli import _MODULES, EXIT_CODES, cli
from referrals.directory import Directory
from referrals.rendering import environment
from referrals.samples import sample_case
from tests.conftest import CONFIG, TEMPLATES, TODAY
from tests.e2e.conftest import DOCUMENTED, REFERRALS, Command, Done, process

MEDIATION = ("mediation", "case.json")
RUNNING = {"sink", "serve", "worker"}  # until they are stopped


def leaf_commands() -> Iterator[str]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            yield from (f"{name} {inner}" for inner in command.list_commands(context))
        else:
            yield name


LEAF_COMMANDS = list(leaf_commands())
CANARY = "Zyxcanary Qwert"


def changed(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


# Each command


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("list", "mediation\tcity\tNCH (Nottingham City Homes), community@"),
        ("show mediation", "MED-002 block"),
        ("show police-dispersal-order", "no address: drafts only"),
        ("suggest case.json", "✓ mediation: fits"),
        ("new mediation", '"reference": "SAMPLE-001"'),
        ("new --csv mediation", "reference,referrer.name"),
        ("schema", "https://json-schema.org/draft/2020-12/schema"),
        ("schema mediation", "party_a_tenure"),
        ("check case.json", "✓ victim-hardening: fits"),
        ("check case.json mediation", "GEN-004"),
        ("preview mediation case.json", "To: community@nottinghamcityhomes.org.uk"),
        ("preview --part text mediation case.json", "PARTY A"),
        ("preview --part html mediation case.json", "<!doctype html>"),
        ("preview --part eml mediation case.json", "X-Unsent: 1"),
        ("preview police-dispersal-order case.json", "To: (empty: for you to address)"),
        ("draft mediation case.json", "mediation: drafted"),
        ("draft mediation victim-hardening case.json", "victim-hardening: drafted"),
        ("draft --all case.json --out drafts", "target-hardening: drafted"),
        ("draft mediation case.json --out -", "X-Unsent: 1"),
        ("send mediation case.json", "Nothing was submitted. Add --yes to submit it."),
        ("templates check", "✓ mediation"),
        ("templates check mediation", "✓ mediation"),
        ("doctor", "relay.security = starttls   (REFERRALS_RELAY_SECURITY)"),
        ("--version", "referrals 0."),
    ],
)
def test_says_in_words(argv: str, words: str, case_file: Path, referrals: Command) -> None:
    done = referrals(*argv.split())

    assert (done.code, done.err) == (0, "")
    assert words in done.out
    assert "\x1b" not in done.out, "nobody is looking, so no colour"


@pytest.mark.parametrize(
    "argv",
    [
        "list",
        "show mediation",
        "suggest case.json",
        "new",
        "schema",
        "check case.json",
        "preview mediation case.json",
        "draft mediation case.json",
        "draft --all case.json",
        "send mediation case.json",
        "templates check mediation",
        "doctor",
    ],
)
def test_says_it_in_json(argv: str, case_file: Path, referrals: Command) -> None:
    done = referrals(*argv.split(), "--json")

    assert (done.code, done.err) == (0, "")
    assert done.json
    assert "✓" not in done.out


@pytest.mark.parametrize(
    ("argv", "code", "kind"),
    [
        ("list extra", 2, "usage"),
        ("show", 2, "usage"),
        ("suggest case.json --row 0", 2, "usage"),
        ("new --part", 2, "usage"),
        ("check case.json --set reference", 2, "usage"),
        ("preview --part pdf mediation case.json", 2, "usage"),
        ("draft case.json", 2, "usage"),
        ("draft --all mediation case.json", 2, "usage"),
        ("draft --all case.json --out -", 2, "usage"),
        ("send mediation", 2, "usage"),
        ("nope", 2, "usage"),
        ("relay nope", 2, "usage"),
        ("suggest missing.json", 3, "case-unreadable"),
        ("check .", 3, "case-unreadable"),
        ("check case.json --set location.area=county", 3, "case-invalid"),
        ("draft mediation case.json --set people.victim.name=", 3, "case-invalid"),
        ("suggest case.json --set answers=x", 3, "case-invalid"),
        ("preview mediation case.json --row 2", 3, "case-unreadable"),
        ("preview mediation case.json --set consents.1.given=no", 4, "blocked"),
        ("draft mediation case.json --set answers.mediation.domestic_abuse=yes", 4, "blocked"),
        ("send mediation case.json --set location.area=county --set location.district=", 4,
         "blocked"),
        ("draft mediation case.json --out case.json", 6, "draft-unwritable"),
        ("show medation", 7, "intervention-unknown"),
        ("new medation", 7, "intervention-unknown"),
        ("schema medation", 7, "intervention-unknown"),
        ("check case.json medation", 7, "intervention-unknown"),
        ("draft medation case.json", 7, "intervention-unknown"),
        ("templates check medation", 7, "intervention-unknown"),
        ("templates new medation", 7, "intervention-unknown"),
        ("send police-dispersal-order case.json --yes", 7, "no-address"),
        ("send mediation case.json --yes", 7, "address-unverified"),
        ("send mediation case.json --yes --accept-unverified", 5, "configuration"),
        ("relay check", 5, "configuration"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_in_words_and_in_json(
    argv: str, code: int, kind: str, case_file: Path, referrals: Command
) -> None:
    words, as_json = referrals(*argv.split()), referrals(*argv.split(), "--json")

    assert (words.code, as_json.code) == (code, code)
    assert "Error: " in words.err
    assert words.err.strip().splitlines()[-1]
    error = as_json.json["error"]
    assert (as_json.json["ok"], error["code"], as_json.err) == (False, kind, "")
    assert error["message"] in words.err or kind == "configuration"


@pytest.mark.parametrize("argv", ["new --csv", "draft mediation case.json --out -"])
def test_json_is_refused_beside_what_is_not_json(
    argv: str, case_file: Path, referrals: Command
) -> None:
    done = referrals(*argv.split(), "--json")

    assert (done.code, done.json["error"]["code"]) == (2, "usage")


def test_a_check_that_fails_still_says_everything(case_file: Path, referrals: Command) -> None:
    missing = changed("people.victim.address=", "consents.1.given=no")
    done = referrals("check", "case.json", "mediation", *missing, "--json")

    assert done.code == 3, "what is missing comes before what a rule blocks"
    (one,) = done.json
    assert not one["fits"]
    assert [problem["where"] for problem in one["problems"]] == ["people.victim.address"]
    assert "MED-002" in [finding["code"] for finding in one["findings"]]
    assert referrals("check", "case.json", *changed("consents.1.given=no")).code == 4


def test_the_schema_accepts_what_new_prints(referrals: Command, directory: Directory) -> None:
    for name in directory.interventions:
        schema, case = referrals("schema", name).json, referrals("new", name).json
        jsonschema.Draft202012Validator(schema).validate(case)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_what_new_prints_can_be_drafted(
    form: str, referrals: Command, directory: Directory, home: Path
) -> None:
    for name in directory.interventions:
        printed = referrals("new", *(["--csv"] if form == "csv" else []), name).out
        done = referrals("draft", name, "-", "--json", stdin=printed.encode())
        assert done.code == 0, done.said
        (drafted,) = done.json["drafts"]
        assert (home / drafted["path"]).is_file()
        assert drafted["status"] == "drafted"
    assert len(list((home / "outbox" / "drafts").iterdir())) == len(directory.interventions)


def test_draft_all_says_which_were_not_drafted_and_why(case_file: Path, referrals: Command) -> None:
    refusal = changed("consents.1.given=no", "consents.2.given=no")
    done = referrals("draft", "--all", "case.json", *refusal, "--json")

    assert done.code == 0
    drafted = {one["intervention"] for one in done.json["drafts"]}
    others = {one["intervention"]: one for one in done.json["not_drafted"]}
    assert "target-hardening" in drafted
    assert not drafted & set(others)
    assert [one["code"] for one in others["mediation"]["findings"] if one["level"] == "block"] == [
        "MED-002",
        "MED-003",
    ]


def test_draft_all_with_nothing_to_draft_is_a_block(referrals: Command) -> None:
    case = referrals("new", "mediation").out.encode()
    done = referrals("draft", "--all", "-", *changed("consents.1.given=no"), stdin=case)

    assert done.code == 4
    assert "Not drafted:" in done.out


def test_a_draft_that_was_edited_keeps_only_itself_from_being_saved(
    case_file: Path, referrals: Command, home: Path
) -> None:
    referrals("draft", "mediation", "case.json")
    (edited,) = (home / "outbox" / "drafts").iterdir()
    edited.write_bytes(b"edited")

    words = referrals("draft", "--all", "case.json")
    assert words.code == 6
    assert "victim-hardening: drafted" in words.out
    assert "was kept as it is" in words.err
    as_json = referrals("draft", "--all", "case.json", "--json")
    assert (as_json.code, as_json.json["error"]["code"]) == (6, "draft-changed")
    assert len(as_json.json["drafts"]) == 6
    assert edited.read_bytes() == b"edited"

    beside = referrals("draft", "mediation", "case.json", "--beside", "--json")
    assert (beside.code, beside.json["drafts"][0]["path"][-6:]) == (0, "-2.eml")
    assert edited.read_bytes() == b"edited"


def test_open_hands_the_draft_to_the_desktop(
    case_file: Path, referrals: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("click.launch", opened.append)

    referrals("draft", "mediation", "case.json", "--open")
    assert [Path(path).name.endswith("-mediation.eml") for path in opened] == [True]


def test_a_mailto_link_is_given_where_it_fits(case_file: Path, referrals: Command) -> None:
    done = referrals("preview", "mediation", "case.json", "--mailto")

    assert done.code != 0
    assert "too long for a mailto: link" in done.err
    assert referrals("preview", *MEDIATION, "--json").json["mailto"] is None


def test_a_row_of_a_spreadsheet_is_chosen(referrals: Command, home: Path) -> None:
    header, row = referrals("new", "--csv", "mediation").out.split("\r\n", 1)
    other = row.replace("SAMPLE-001", "SAMPLE-002")
    (home / "cases.csv").write_text(f"{header}\r\n{row}{other}", encoding="utf-8", newline="")

    assert "2 rows: choose one with --row" in referrals("check", "cases.csv").err
    assert "no row 3" in referrals("check", "cases.csv", "--row", "3").err
    references = {
        referrals("preview", "mediation", "cases.csv", "--row", row, "--json").json["reference"]
        for row in "12"
    }
    assert len(references) == 2


def test_one_row_is_read_with_the_same_care_as_many(referrals: Command, home: Path) -> None:
    """A number that a spreadsheet shortened is one in `send` as in `batch`."""
    header, row, _ = referrals("new", "--csv", "mediation").out.split("\r\n", 2)
    cells = dict(zip(*csv.reader([header, row]), strict=True))
    cells |= {"people.victim.phone": "7.7009E+09", "intervention": "mediation"}
    cells = {name.replace("consents.2.", "consents.4."): cell for name, cell in cells.items()}
    cells["consents.4.how"] = "by pigeon"
    with (home / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([cells, cells.values()])
    book = openpyxl.Workbook()
    for line in (list(cells), list(cells.values())):
        book.worksheets[0].append(line)
    book.save(home / "cases.xlsx")

    for name in ("cases.csv", "cases.xlsx"):
        done = referrals("draft", "mediation", name)
        assert done.code == 3
        assert "people.victim.phone: holds a long number" in done.err
        assert "consents.4.how: is not one of the choices" in done.err
    mended = ["--set", "people.victim.phone=07700 900123", "--set", "consents.2.how=phone"]
    assert referrals("check", "cases.xlsx", "mediation", *mended).code == 0


def test_a_template_is_started_and_kept(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new intervention: its config, a first letter, and the checks."""
    config, templates = deployment(home)
    monkeypatch.setenv("REFERRALS_CONFIG", str(config))
    monkeypatch.setenv("REFERRALS_TEMPLATES", str(templates))
    text = (config / "interventions" / "mediation.toml").read_text(encoding="utf-8")
    text = text.replace('id = "mediation"', 'id = "talks"', 1).replace('"MED-', '"TLK-')
    (config / "interventions" / "talks.toml").write_text(text, encoding="utf-8")

    first = referrals("templates", "new", "talks", "--json").json
    again = referrals("templates", "new", "talks")
    assert len(first["written"]) == 3
    assert again.out.count("kept  ") == 3
    assert referrals("templates", "check", "talks").code == 0
    assert "talks" in referrals("list").out

    (templates / "talks" / "body.txt.j2").write_text("{{ nothing }}", encoding="utf-8")
    for argv in (["templates", "check", "talks"], ["templates", "check", "talks", "--json"]):
        broken = referrals(*argv)
        assert broken.code == 5
        assert "nothing, which it is not given" in broken.said


def deployment(home: Path) -> tuple[Path, Path]:
    """Folders of config and templates to change."""
    import shutil

    return (
        Path(shutil.copytree(CONFIG, home / "config")),
        Path(shutil.copytree(TEMPLATES, home / "templates")),
    )


def test_doctor_masks_secrets_and_fails_on_what_is_wrong(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFERRALS_RELAY_HOST", "relay.example.com")
    monkeypatch.setenv("REFERRALS_RELAY_USERNAME", "someone")
    monkeypatch.setenv("REFERRALS_RELAY_PASSWORD", CANARY)
    for argv in (["doctor"], ["doctor", "--json"]):
        done = referrals(*argv)
        assert done.code == 0
        assert CANARY not in done.said
        assert "(set, not shown)" in done.out

    (home / "config" / "regions").mkdir(parents=True)
    monkeypatch.setenv("REFERRALS_CONFIG", str(home / "config"))
    done = referrals("doctor", "--json")
    assert (done.code, done.json["ok"], bool(done.json["problems"])) == (5, False, True)


# Help


def test_help_groups_every_command_and_tells_the_exit_codes(referrals: Command) -> None:
    out = referrals("--help").out

    for section in ("Look things up:", "Write a case:", "Refer:", "Follow it:", "Look after it:"):
        assert section in out
    for name in _MODULES:
        assert re.search(rf"^  {name} +\S", out, re.MULTILINE)
    assert {int(number) for number in re.findall(r"^ +(\d+)  ", out, re.MULTILINE)} == DOCUMENTED
    assert len(re.findall(r"^  \d{1,2} ", EXIT_CODES, re.MULTILINE)) == len(DOCUMENTED)
    assert "referrals draft mediation case.json" in out
    assert referrals("-h").out == out


@pytest.mark.parametrize("command", [*LEAF_COMMANDS, "templates", "relay"])
def test_every_command_explains_itself(command: str, referrals: Command) -> None:
    out = referrals(*command.split(), "--help").out

    assert out.startswith(f"Usage: referrals {command}")
    name = command.split()[-1]
    takes_words = re.search(r"Usage: .*\b(CASE|INTERVENTION)\b", out)
    if takes_words and not command.startswith("templates"):
        assert re.search(rf"Examples?:\s.*referrals {name}", out, re.DOTALL)
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("command", sorted(set(LEAF_COMMANDS) - RUNNING))
def test_every_command_that_ends_has_json(command: str, referrals: Command) -> None:
    assert "--json" in referrals(*command.split(), "--help").out


@pytest.mark.parametrize(
    ("typed", "meant"), [("drat", "draft"), ("templats", "templates"), ("checks", "check")]
)
def test_a_mistyped_command_is_met_with_the_one_meant(
    typed: str, meant: str, referrals: Command
) -> None:
    done = referrals(typed)

    assert done.code == 2
    assert f"Did you mean '{meant}'?" in done.err
    assert "Did you mean" not in referrals("xyzzy").err


@pytest.mark.parametrize("argv", ["", "relay", "templates"])
def test_without_a_command_the_help_is_shown(argv: str, referrals: Command) -> None:
    done = referrals(*argv.split())

    assert done.code == 2
    assert "Usage: referrals" in done.said


# In a shell


def completed(words: str, monkeypatch: pytest.MonkeyPatch, referrals: Command) -> list[str]:
    with monkeypatch.context() as patch:
        patch.setenv("_REFERRALS_COMPLETE", "bash_complete")
        patch.setenv("COMP_WORDS", f"referrals {words}")
        patch.setenv("COMP_CWORD", str(words.count(" ") + 1))
        done = referrals()
    assert (done.code, done.err) == (0, "")
    return done.out.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dr", ["plain,draft"]),
        ("relay ", ["plain,check", "plain,list"]),
        ("show me", ["plain,mediation"]),
        ("draft po", ["plain,positive-engagement", "plain,police-dispersal-order"]),
        ("draft mediation vi", ["plain,victim-hardening"]),
        ("draft mediation cas", ["file,cas"]),
        ("check cas", ["file,cas"]),
        ("check case.json ta", ["plain,target-hardening"]),
        ("new fi", ["plain,fire-resistant-mailbox"]),
        ("schema rep", ["plain,repeat-victim-panel"]),
        ("preview --part t", ["plain,text"]),
    ],
)
def test_the_shell_completes_words(
    words: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, referrals: Command
) -> None:
    assert sorted(completed(words, monkeypatch, referrals)) == sorted(offered)


def test_completion_is_silent_where_the_configuration_is_broken(
    monkeypatch: pytest.MonkeyPatch, referrals: Command, home: Path
) -> None:
    monkeypatch.setenv("REFERRALS_CONFIG", str(home))
    assert completed("show me", monkeypatch, referrals) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_set_up_by_a_script(shell: str, home: Path) -> None:
    done = process(env={"_REFERRALS_COMPLETE": f"{shell}_source"})

    assert (done.code, "_REFERRALS_COMPLETE" in done.out) == (0, True)


def piped(command: str) -> Done:
    """A line of shell, in which `referrals` is the command."""
    words = " ".join(f"'{word}'" for word in REFERRALS)
    line = f'referrals() {{ {words} "$@"; }}; {command}'
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "command",
    [
        "show mediation",
        "schema --json",
        "--help",
        "preview --part eml mediation case.json",
        "draft mediation case.json --out -",
        "nope --json",
    ],
)
def test_a_reader_who_leaves_ends_it_quietly(command: str, case_file: Path) -> None:
    """141, as with any command in a pipe: 128 and SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)  # from the start, so that nothing depends on who is faster
    done = subprocess.run(
        [*REFERRALS, *command.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_first_lines_are_enough_for_head(home: Path) -> None:
    done = piped("referrals list | head -1")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("fire-resistant-mailbox\t")


@pytest.mark.parametrize(
    "command", ["list", "list --json", "--help", "draft mediation case.json --out -"]
)
def test_output_that_could_not_be_written_is_said(command: str, case_file: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*REFERRALS, *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert "could not be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("referrals list >&-", 0),
        ("referrals list 2>&-", 0),
        ("referrals show 2>&-", 2),
        ("referrals check - <&-", 3),
        ("referrals draft mediation case.json >&- 2>&- <&-", 0),
    ],
)
def test_streams_may_be_closed(command: str, code: int, case_file: Path) -> None:
    done = piped(command)

    assert done.code == code, done.err
    assert "Traceback" not in done.err


def test_a_case_comes_through_standard_input(home: Path) -> None:
    done = piped("referrals new mediation | referrals draft mediation - --out - ")

    assert (done.code, done.err) == (0, "")
    assert "X-Unsent: 1\r\n".strip() in done.out


def test_a_locale_without_the_letters_is_no_fault(home: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    case = process("new", "mediation").out.encode()
    done = process("suggest", "-", stdin=case, env=env)

    assert (done.code, done.err) == (0, "")
    assert "mediation: fits" in done.out


# On a terminal


def on_terminal(*argv: str, env: Mapping[str, str] | None = None) -> Done:
    """What somebody at a terminal sees."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [*REFERRALS, *argv],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "90", **(env or {})},
    )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # EIO: the other end was closed
        while part := os.read(ours, 65_536):
            seen += part
    os.close(ours)
    return Done(running.wait(60), seen.decode(), "")


COLOUR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-7]|4[0-7]|38|48|9[0-7])[;m]")


@pytest.mark.parametrize("argv", [["list"], ["show", "nope"]])
def test_a_terminal_gets_styles_and_no_color_is_honoured(argv: list[str], home: Path) -> None:
    coloured, plain = on_terminal(*argv), on_terminal(*argv, env={"NO_COLOR": "1"})

    assert "\x1b[" in coloured.out
    assert argv == ["list"] or COLOUR.search(coloured.out), "or this proves nothing"
    assert not COLOUR.search(plain.out)
    assert coloured.code == plain.code


def test_a_table_fits_the_terminal(home: Path) -> None:
    out = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("list", env={"COLUMNS": "60"}).out)

    assert "Intervention" in out
    assert max(map(len, out.splitlines())) <= 60


def test_json_on_a_terminal_is_json(home: Path) -> None:
    assert json.loads(on_terminal("list", "--json").out)


def started_sink(*argv: str) -> tuple[subprocess.Popen[str], int]:
    running = subprocess.Popen(
        [*REFERRALS, "sink", "--port", "0", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    ready, _, _ = select.select([running.stderr], [], [], 30)
    assert ready
    found = re.search(r"Listening on 127\.0\.0\.1:(\d+); nothing", running.stderr.readline())
    assert found
    return running, int(found[1])


def test_ctrl_c_stops_the_sink_and_what_came_is_shown_and_kept(
    case_file: Path, directory: Directory, home: Path
) -> None:
    case = process("new", "mediation").out.encode()
    sink, port = started_sink()
    relay = {"HOST": "localhost", "PORT": str(port), "SECURITY": "none"}
    env = {f"REFERRALS_RELAY_{name}": value for name, value in relay.items()}
    sent = process("send", "mediation", "-", "--yes", "--accept-unverified", stdin=case, env=env)
    sink.send_signal(signal.SIGINT)
    out, err = sink.communicate(timeout=30)

    assert (sent.code, sent.err) == (0, "")
    assert (sink.returncode, err) == (0, "Stopped.\n")
    assert "to community@nottinghamcityhomes.org.uk, " in out
    assert "PARTY A" in out
    (kept,) = (home / "outbox" / "sink").iterdir()
    assert b"X-Unsent" not in kept.read_bytes()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ("--tls tls", 5, "TLS needs one"),
        ("--certificate x", 2, "belong together"),
        ("--tls tls --certificate x --key y", 5, "cannot be read"),
        ("--username someone", 2, "set SINK_PASSWORD"),
        ("--keep /", 5, "others can read"),
    ],
)
def test_a_sink_that_can_not_start_says_why(argv: str, code: int, words: str, home: Path) -> None:
    done = process("sink", "--port", "0", *argv.split())

    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert "Traceback" not in done.err
    assert "echo" not in done.err


# Whatever comes in


def test_a_fault_of_ours_is_said_without_its_values(
    case_file: Path, referrals: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("referrals.schema.case_schema", broken)
    for argv in (["schema"], ["schema", "--json"]):
        done = referrals(*argv)
        assert done.code == 1
        assert "a fault of ours (RuntimeError)" in done.said
        assert CANARY not in done.said
        assert "Traceback" not in done.said
    assert referrals("schema", "--json").json["error"]["code"] == "fault"

    monkeypatch.setenv("_REFERRALS_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match=CANARY):
        referrals("schema")


FUZZED = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def quick(
    referrals: Command, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """The command with its configuration read already; what it says is checked."""
    letters = environment(TEMPLATES)
    monkeypatch.setattr("referrals.bootstrap.read_directory", lambda *_: directory)
    monkeypatch.setattr("referrals.bootstrap.environment", lambda *_: letters)

    def run(*argv: str, stdin: bytes = b"") -> Done:
        done = referrals(*argv, stdin=stdin)
        assert done.code in DOCUMENTED - {1}, (argv, done.code, done.err)
        assert "Traceback" not in done.said
        if "--json" in argv and "--help" not in argv:
            assert done.json is not None
        return done

    return run


COMMANDS: list[list[str]] = [
    ["check", "-", "--json"],
    ["suggest", "-"],
    ["draft", "--all", "-"],
    ["preview", "mediation", "-", "--json"],
    ["send", "repeat-victim-panel", "-", "--json"],
    ["check", "-", "--set", "people.victim.name=A", "--json"],
]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(["city", "2026-11-01", "yes", "{{ 7*7 }}", "\ud800", "\x00", "a\nb", "x;y"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=10) | st.sampled_from(["name", "on", "1"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
NUMBERS = st.sampled_from(["9" * 5000, "1e999", "-0", "NaN", "Infinity", "1" * 400 + ".5"])


@FUZZED
@given(content=st.binary(max_size=200) | JSON.map(json.dumps).map(str.encode), data=st.data())
def test_no_content_of_a_case_is_a_fault_of_ours(
    quick: Callable[..., Done], content: bytes, data: st.DataObject
) -> None:
    """Random bytes and random JSON."""
    quick(*data.draw(st.sampled_from(COMMANDS)), stdin=content)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, its own first."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from leaves(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 1_000),
        st.sampled_from(["replace", "drop", "add", "wrap", "long", "very long"]),
        JSON,
        st.text(max_size=10),
    ),
    min_size=1,
    max_size=3,
)


@FUZZED
@given(mutations=MUTATIONS, command=st.sampled_from(COMMANDS))
def test_no_mutation_of_a_case_is_a_fault_of_ours(
    quick: Callable[..., Done],
    directory: Directory,
    mutations: list[tuple[int, str, Any, str]],
    command: list[str],
) -> None:
    """A whole case with values replaced, keys dropped, added and renamed."""
    case = json.loads(json.dumps(sample_case(directory, sorted(directory.interventions), TODAY)))
    for where, change, value, new_key in mutations:
        places = list(leaves(case))[1:]
        *groups, key = places[where % len(places)]
        group = at(case, tuple(groups))
        match change:
            case "drop":
                del group[key]
            case "add" if isinstance(group, dict):
                group[new_key] = value
            case "wrap":
                group[key] = [group[key]]
            case "long" | "very long":
                group[key] = "long " * (100 if change == "long" else 5_000)
            case _:
                group[key] = value
    quick(*command, stdin=json.dumps(case).encode())


@FUZZED
@given(number=NUMBERS, command=st.sampled_from(COMMANDS))
def test_no_number_in_a_case_is_a_fault_of_ours(
    quick: Callable[..., Done], number: str, command: list[str]
) -> None:
    text = '{"reference": "A1", "incidents": [%s], "people": {"victim": {"name": %s}}}'
    assert quick(*command, stdin=(text % (number, number)).encode()).code == 3


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"answers":{"mediation":', '[{"a":'])
@pytest.mark.parametrize("depth", [11, 13, 900, 100_000])
def test_no_depth_of_a_case_is_a_fault_of_ours(
    quick: Callable[..., Done], opening: str, depth: int
) -> None:
    closing = opening.translate(str.maketrans("[{", "]}"))
    closing = "".join(reversed(re.sub(r"[^]}]", "", closing)))
    text = opening * depth + "1" + closing * depth
    assert quick("check", "-", stdin=text.encode()).code == 3


@FUZZED
@given(data=st.data())
def test_no_mutation_of_a_spreadsheet_is_a_fault_of_ours(
    quick: Callable[..., Done], data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    """Bytes of a CSV cut out, doubled, replaced."""
    content = bytearray(spreadsheet(request))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 40))
        put = data.draw(
            st.binary(max_size=8)
            | st.sampled_from([b"\n", b'"', b",", b";;", b"\xff", b"\x00", b".1.", b"people"])
        )
        content[place : place + length] = put
    quick(*data.draw(st.sampled_from(COMMANDS)), stdin=bytes(content))


def spreadsheet(request: pytest.FixtureRequest) -> bytes:
    return (request.config.rootpath / "samples" / "county.csv").read_bytes()


WORDS = st.sampled_from(
    [
        *_MODULES, "relay", "templates", "check", "new", "mediation", "target-hardening", "-",
        "case.json", "missing", ".", "/", "--json", "--all", "--help", "--row", "1", "2", "-1",
        "--set", "a=b", "people.victim.name=x", "answers=", "=", "reference=1.2", "--part",
        "html", "--mailto", "--csv", "--beside", "--out", "drafts", "case.json/x", "--version",
        "--yes", "--accept-unverified", "--", "",
    ]
)  # fmt: skip


@FUZZED
@given(argv=st.lists(WORDS | st.text(max_size=8), max_size=6))
def test_no_words_are_a_fault_of_ours(
    quick: Callable[..., Done], case_file: Path, argv: list[str]
) -> None:
    if not RUNNING & set(argv):
        quick(*argv)


def test_a_name_that_no_file_can_have_is_said(quick: Callable[..., Done]) -> None:
    case = quick("new", "mediation").out.encode()
    assert quick("check", "x" * 5_000).code == 3
    assert quick("draft", "mediation", "-", "--out", "x" * 5_000, stdin=case).code == 6

    done = process("check", os.fsdecode(b"\xff.json"))
    assert (done.code, "can't be read" in done.err) == (3, True)


VARIABLES = st.sampled_from(
    [
        "REFERRALS_CONFIG", "REFERRALS_SECRETS", "REFERRALS_TEMPLATES", "REFERRALS_OUTBOX",
        "REFERRALS_MAIL_SENDER", "REFERRALS_MAIL_SENDER_NAME", "REFERRALS_MAIL_MARKING",
        "REFERRALS_RELAY_HOST", "REFERRALS_RELAY_PORT", "REFERRALS_RELAY_SECURITY",
        "REFERRALS_RELAY_TIMEOUT_S", "REFERRALS_RELAY_CA_FILE", "REFERRALS_RELAY", "REFERRALS_X",
        "REFERRALS_MAIL", "REFERRALS_RELAY_LOCAL_HOSTNAME",
    ]
)  # fmt: skip


@FUZZED
@given(
    lines=st.lists(
        st.tuples(
            VARIABLES,
            st.text(max_size=12) | st.sampled_from(["case.json", ".", "{", "none", "0", "é", "'"]),
        ).map("=".join)
        | st.text(max_size=12)
        | st.just("REFERRALS_OUTBOX=a\0b"),
        max_size=4,
    ),
    command=st.sampled_from([["doctor"], ["doctor", "--json"], ["list"], ["draft", "--all", "-"]]),
    tail=st.sampled_from([b"", b"\xff\xfe", b"\x00"]),
)
def test_no_dotenv_is_a_fault_of_ours(
    referrals: Command, home: Path, lines: list[str], command: list[str], tail: bytes
) -> None:
    (home / ".env").write_bytes("\n".join(lines).encode(errors="replace") + tail)
    assert_ours(referrals(*command))


def assert_ours(done: Done) -> None:
    assert done.code in DOCUMENTED - {1}, done.said
    assert "Traceback" not in done.said


TOML = st.one_of(
    st.text(max_size=8).map(json.dumps),
    st.sampled_from(
        ["1", "-1", "1.5", "true", "[]", "{}", "2026-11-24", '"none"', "inf", "nan", r'"a\u0000\r"']
    ),
)


@FUZZED
@given(
    entries=st.lists(
        st.tuples(
            st.sampled_from(
                ["outbox", "templates", "config", "mail.sender", "mail.marking", "mail", "relay",
                 "relay.host", "relay.port", "relay.security", "relay.timeout_s", "relay.password",
                 "relay.username", "relay.ca_file", "other", "mail.sender_name"]
            ),
            TOML,
        ).map(" = ".join)
        | st.text(max_size=12),
        max_size=3,
    ),
    command=st.sampled_from([["doctor"], ["doctor", "--json"], ["relay", "check", "--json"]]),
)  # fmt: skip
def test_no_settings_file_is_a_fault_of_ours(
    referrals: Command,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    entries: list[str],
    command: list[str],
) -> None:
    monkeypatch.setattr("referrals.settings_sources.shipped_folder", lambda _name: home)
    (home / "settings.toml").write_text("\n".join(entries), "utf-8", errors="replace")
    assert_ours(referrals(*command))
