"""An eighth intervention and a second region are data: folders to copy and add to, no Python."""

from __future__ import annotations

import json
import shutil
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from referrals.postcodes import encode_table
from referrals.sink import Sink
from tests.conftest import CONFIG, TEMPLATES
from tests.e2e.conftest import Beside, Command, RelayEnv, process

INTERVENTION = """\
id = "listening-circle"
title = "Listening circle"
summary = "A small group that meets to listen to somebody who was harmed."
source = "a test"
areas = ["city", "north"]
acknowledge_within_days = 4

[routes]
city = "victim-care"
north = "north-circle"
lower = "lower-circle"

[facts]
required = ["people.victim.name", "people.victim.safe_contact.method", "location.place"]
optional = ["people.victim.safe_contact.times", "location.district", "consents.victim",
  "lawful_basis", "incidents.on", "incidents.what"]

[[fields]]
name = "hopes"
label = "What they hope for"
type = "text"
required = true
sensitivity = "personal"
min_length = 10
sample = "To be heard without being asked to prove anything."

[[fields]]
name = "first_day"
label = "First day that suits"
type = "date"
sensitivity = "public"
sample = "today+7"

[[fields]]
name = "begins"
label = "Begins at"
type = "moment"
sensitivity = "public"
sample = "today+7T18:00"

[[fields]]
name = "group_size"
label = "Largest group that is comfortable"
type = "number"
minimum = 2
maximum = 12
sensitivity = "personal"
sample = 6

[[fields]]
name = "setting"
label = "Setting"
type = "choice"
required = true
sensitivity = "public"
sample = "online"
options = [{ value = "online", label = "Online" }, { value = "hall", label = "In a hall" }]

[[fields]]
name = "interpreter"
label = "Is an interpreter needed?"
type = "yes-no"
sensitivity = "special"
sample = false

[[rules]]
code = "LIS-001"
check = "consent-given"
person = "victim"
text = "The person must have agreed to the circle."
source = "a test"

[[rules]]
code = "LIS-002"
check = "incidents-at-least"
level = "advise"
number = 1
text = "The circle likes to know of one incident at least."
source = "a test"
"""
REGION = {
    "region.toml": 'id = "northshire"\ntitle = "Northshire"\ntimezone = "Europe/London"\n',
    "areas.toml": """\
[[areas]]
id = "north"
title = "North"

[[areas.districts]]
id = "upper"
title = "Upper"

[[areas.districts]]
id = "lower"
title = "Lower"
""",
    "agencies.toml": """\
[[agencies]]
id = "north-circle"
title = "North Circle"
email = "Circle@North.example.org"
source = "a test"

[[agencies]]
id = "lower-circle"
title = "Lower Circle"
email = "Lower.Circle@north.example.org"
source = "a test"

[[agencies]]
id = "north-mediators"
title = "North Mediators"
email = "mediators@north.example.org"
source = "a test"
""",
    "routes.toml": '[mediation]\nnorth = "north-mediators"\n',
}
POSTCODES = {"ZE1 1AA": "upper", "ZE1 1AB": "upper", "ZE1 1AD": "lower"}
ELSEWHERE = ["ZE1 1AE"]
NEW = "listening-circle"


@pytest.fixture
def extended(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped folders with one region and one intervention more; its letter is not written."""
    config = Path(shutil.copytree(CONFIG, home / "config"))
    shutil.copytree(TEMPLATES, home / "templates")
    (config / "interventions" / f"{NEW}.toml").write_text(INTERVENTION, encoding="utf-8")
    region = config / "regions" / "northshire"
    region.mkdir()
    for name, text in REGION.items():
        (region / name).write_text(text, encoding="utf-8")
    table = encode_table(POSTCODES, ELSEWHERE, edition="a test")
    (region / "postcodes.bin").write_bytes(table)
    monkeypatch.setenv("REFERRALS_CONFIG", "config")
    monkeypatch.setenv("REFERRALS_TEMPLATES", "templates")
    return home


@pytest.fixture
def ready(extended: Path, referrals: Command) -> Command:
    """The command, with a first letter for the new intervention and a case in case.json."""
    assert referrals("templates", "new", NEW).code == 0
    write_case(referrals)
    return referrals


def write_case(referrals: Command, **location: str) -> dict[str, Any]:
    done = referrals("new", NEW, "mediation")
    assert done.code == 0, done.said
    case: dict[str, Any] = json.loads(done.out)
    case["location"] = {"place": "Harbour hall", "postcode": "ZE1 1AA"} | location
    Path("case.json").write_text(json.dumps(case), encoding="utf-8")
    return case


def test_without_its_letter_the_intervention_is_refused_and_the_way_is_shown(
    extended: Path, referrals: Command
) -> None:
    done = referrals("list")
    assert done.code == 5
    assert f"config/interventions/{NEW}.toml: template" in done.err
    assert "referrals templates new" in done.err


def test_a_first_letter_is_made_and_passes(extended: Path, referrals: Command) -> None:
    made = referrals("templates", "new", NEW, "--json").json
    assert {Path(path).name for path in made["written"]} == {
        "subject.txt.j2",
        "body.txt.j2",
        "body.html.j2",
    }
    again = referrals("templates", "new", NEW, "--json").json
    assert (again["written"], len(again["kept"])) == ([], 3)
    checked = referrals("templates", "check", "--json").json
    assert checked["ok"], checked
    assert NEW in checked["checked"]
    assert len(checked["checked"]) == 8


def test_it_is_listed_with_the_agencies_of_both_regions(ready: Command) -> None:
    listed = {entry["id"]: entry for entry in ready("list", "--json").json}
    assert len(listed) == 8
    assert "Circle@North.example.org" in json.dumps(listed[NEW])
    assert "mediators@north.example.org" in json.dumps(listed["mediation"])
    shown = ready("show", NEW).out
    for words in ("LIS-001", "Listening circle", "hopes", "North Circle", "Lower Circle"):
        assert words in shown


def test_its_fields_are_in_the_schema(ready: Command) -> None:
    schema = ready("schema", NEW).out
    for name in ("hopes", "first_day", "begins", "group_size", "setting", "interpreter"):
        assert f'"{name}"' in schema


def test_its_rules_and_fields_check_a_case(ready: Command) -> None:
    assert ready("check", "case.json", NEW).code == 0
    wrong = ready("check", "case.json", NEW, "--set", f"answers.{NEW}.group_size=13")
    assert wrong.code == 3
    assert f"answers.{NEW}.group_size: is too large. Use 12 or less." in wrong.said
    case = json.loads(Path("case.json").read_text(encoding="utf-8"))
    case["consents"] = []
    Path("case.json").write_text(json.dumps(case), encoding="utf-8")
    refused = ready("draft", NEW, "case.json")
    assert refused.code == 4
    assert "LIS-001" in refused.err


@pytest.mark.parametrize(
    ("location", "new", "mediation"),
    [
        ({"postcode": "ZE1 1AA"}, "Circle@North.example.org", "mediators@north.example.org"),
        ({"postcode": "ze11ad"}, "Lower.Circle@north.example.org", "mediators@north.example.org"),
        (
            {"postcode": "ZE1 1AB", "district": "Upper"},
            "Circle@North.example.org",
            "mediators@north.example.org",
        ),
        (
            {"postcode": "NG7 5HN"},
            "admin@nottsvictimcare.org.uk",
            "community@nottinghamcityhomes.org.uk",
        ),
    ],
)
def test_the_postcode_decides_between_regions_and_districts(
    ready: Command, location: dict[str, str], new: str, mediation: str
) -> None:
    write_case(ready, **location)
    assert ready("preview", NEW, "case.json", "--json").json["to"] == new
    assert ready("preview", "mediation", "case.json", "--json").json["to"] == mediation


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ({"postcode": "ZE1 1AE"}, "outside"),
        ({"postcode": "ZE1 1AF"}, "not in the list of postcodes"),
        ({"postcode": "ZE1 1AA", "district": "lower"}, "contradicts the district"),
        ({"postcode": "ZE1 1AA", "area": "city"}, "contradicts the area"),
        ({"postcode": "NG7 5HN", "area": "north"}, "contradicts the area"),
    ],
)
def test_a_postcode_that_does_not_fit_is_a_problem(
    ready: Command, location: dict[str, str], words: str
) -> None:
    write_case(ready, **location)
    done = ready("check", "case.json", NEW)
    assert done.code == 3
    assert words in done.said


def test_an_intervention_without_a_route_in_the_new_region_is_not_offered_there(
    ready: Command,
) -> None:
    done = ready("suggest", "case.json", "--json")
    fits = {entry["intervention"]: entry["fits"] for entry in done.json}
    assert fits[NEW]
    assert fits["mediation"]
    assert not fits["target-hardening"]


def test_it_is_drafted(ready: Command) -> None:
    done = ready("draft", NEW, "case.json", "--out", "drafts")
    assert done.code == 0, done.said
    (file,) = Path("drafts").glob("*.eml")
    assert file.name.endswith(f"-{NEW}.eml")
    message = message_from_bytes(file.read_bytes(), policy=default)
    assert message["To"] == "Circle@North.example.org"
    body = message.get_body(("plain",))
    assert body
    text = body.get_content()
    for words in (
        "Alex Sample",
        "To be heard without being asked to prove anything.",
        "1 December 2026",
        "18:00 on 1 December 2026",
        "Harbour hall",
        "Online",
    ):
        assert words in text


def test_it_is_submitted(ready: Command, relay_env: RelayEnv) -> None:
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        done = ready("send", NEW, "case.json", "--yes", "--accept-unverified")
        assert done.code == 0, done.said
        (arrived,) = sink.arrived
    assert arrived.recipients == ("Circle@North.example.org",)
    assert b"\r\nTo: Circle@North.example.org\r\n" in arrived.content
    assert b"X-Unsent" not in arrived.content


def test_the_same_works_in_a_process_of_its_own(ready: Command) -> None:
    """With the real clock: a case of that day, from standard input."""
    made = process("new", NEW)
    assert made.code == 0, made.said
    case = json.loads(made.out)
    case["location"] = {"postcode": "ZE1 1AD", "place": "Harbour hall"}
    done = process("draft", NEW, "-", "--out", "-", stdin=json.dumps(case).encode())
    assert done.code == 0, done.err
    assert "\nTo: Lower.Circle@north.example.org" in done.out.replace("\r", "")
