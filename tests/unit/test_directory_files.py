"""Reading config/: what ships is what the source says; a mistake is named by file and key."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from referrals.directory import Directory
from referrals.directory_files import TEMPLATE_PARTS, read_directory, read_intervention
from referrals.errors import ConfigurationError, InterventionUnknown, Problem
from referrals.postcodes import encode_table

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "templates" / "email"
REGION = "regions/nottinghamshire"
AGENCIES = f"{REGION}/agencies.toml"
AREAS = f"{REGION}/areas.toml"
MEDIATION = "interventions/mediation.toml"
PANEL = "interventions/repeat-victim-panel.toml"
DISPERSAL = "interventions/police-dispersal-order.toml"
DISTRICTS = {
    "ashfield": "county",
    "bassetlaw": "county",
    "broxtowe": "county",
    "gedling": "county",
    "mansfield": "county",
    "newark-and-sherwood": "county",
    "nottingham": "city",
    "rushcliffe": "county",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The shipped config/, to break."""
    return Path(shutil.copytree(ROOT / "config", tmp_path / "config"))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {file.name}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def problems(config: Path, templates: Path = TEMPLATES) -> tuple[Problem, ...]:
    with pytest.raises(ConfigurationError) as raised:
        read_directory(config, templates)
    return raised.value.problems


def the_problem(config: Path, templates: Path = TEMPLATES) -> Problem:
    found = problems(config, templates)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


# What ships


def paragraphs_of_source() -> dict[str, str]:
    """The source document's sections by their titles."""
    text = (ROOT / "docs/source/interventions.md").read_text(encoding="utf-8")
    parts = re.split(r"^# (.+)$", text, flags=re.MULTILINE)[1:]
    return {title.strip(): body for title, body in zip(parts[::2], parts[1::2], strict=True)}


SECTIONS = {
    "mediation": "Mediation",
    "victim-hardening": "Victim hardening",
    "repeat-victim-panel": "Repeat victim panels",
    "positive-engagement": "Positive engagement",
    "target-hardening": "Target Hardening",
    "police-dispersal-order": "Police Dispersal Order",
    "fire-resistant-mailbox": "Fire-resistant Mailbox",
}


def test_every_section_of_the_source_is_an_intervention(directory: Directory) -> None:
    assert set(directory.interventions) == set(SECTIONS)
    assert set(paragraphs_of_source()) == set(SECTIONS.values())


@pytest.mark.parametrize("intervention_id", SECTIONS)
def test_areas_are_those_of_the_source(directory: Directory, intervention_id: str) -> None:
    section = paragraphs_of_source()[SECTIONS[intervention_id]]
    areas = ("city", "county") if "City and County wide" in section else ("city",)
    assert directory.interventions[intervention_id].areas == areas
    if areas == ("city",):
        assert "Available in Nottingham City." in section


@pytest.mark.parametrize("intervention_id", SECTIONS)
def test_addresses_are_spelled_as_in_the_source(directory: Directory, intervention_id: str) -> None:
    """To the letter: the local part's case is the receiver's own affair (RFC 5321 §2.4)."""
    section = paragraphs_of_source()[SECTIONS[intervention_id]]
    given = set(re.findall(r"mailto:([^)]+)\)", section))
    intervention = directory.interventions[intervention_id]
    agencies = [directory.agency_for(intervention, place) for place in directory.places]
    assert {agency.email for agency in agencies if agency and agency.email} == given


@pytest.mark.parametrize("intervention_id", SECTIONS)
def test_phone_numbers_are_those_of_the_source(directory: Directory, intervention_id: str) -> None:
    section = paragraphs_of_source()[SECTIONS[intervention_id]]
    given = set(re.findall(r"\b0\d{3} \d{3} \d{4}\b", section))
    routes = directory.interventions[intervention_id].routes.values()
    assert {directory.agencies[agency].phone for agency in routes} - {None} == given


@pytest.mark.parametrize(("word", "area"), [("City", "city"), ("County", "county")])
def test_the_panel_of_each_area_gets_its_own_referrals(
    directory: Directory, word: str, area: str
) -> None:
    section = paragraphs_of_source()["Repeat victim panels"]
    line = re.search(rf"- {word}: .*?mailto:([^)]+)\)", section, re.DOTALL)
    assert line
    panel = directory.interventions["repeat-victim-panel"]
    for place in directory.places:
        agency = directory.agency_for(panel, place)
        if place.area.id == area:
            assert agency
            assert agency.email == line[1]


def test_the_dispersal_order_has_no_address_as_the_source_gives_none(directory: Directory) -> None:
    assert "@" not in paragraphs_of_source()["Police Dispersal Order"]
    routes = directory.interventions["police-dispersal-order"].routes.values()
    assert [directory.agencies[agency].email for agency in set(routes)] == [None]


def test_no_address_ships_as_verified(directory: Directory) -> None:
    for agency in directory.agencies.values():
        assert agency.verified_on is None
        assert agency.verified_by == ""
        assert agency.source.startswith("interventions document")


def test_every_agency_with_an_old_or_doubtful_address_carries_an_alert(
    directory: Directory,
) -> None:
    alerts = {agency.email: agency.alert for agency in directory.agencies.values()}
    for address, alert in alerts.items():
        if address and ".pnn.police.uk" in address:
            assert ".pnn.police.uk" in alert
    assert "wound up" in alerts["community@nottinghamcityhomes.org.uk"]
    assert "whole county" in alerts["spc@broxtowe.gov.uk"]
    assert "north" in alerts["communitysafetynorth@notts-fire.gov.uk"]


def test_districts_are_in_their_areas(directory: Directory) -> None:
    found = {p.district.id: p.area.id for p in directory.places if p.district}
    assert found == DISTRICTS


def test_measures_without_an_address_are_marked(directory: Directory) -> None:
    measures = directory.interventions["target-hardening"].question("measures")
    assert measures
    assert set(measures.unaddressed) == {"cctv-installation", "pruning"}


# What is kept as it was written


def test_an_address_keeps_its_spelling(config: Path) -> None:
    replace(config / AGENCIES, "admin@nottsvictimcare.org.uk", "Ad.Min+X@NottsVictimCare.org.UK")
    agencies = read_directory(config, TEMPLATES).agencies
    assert agencies["victim-care"].email == "Ad.Min+X@NottsVictimCare.org.UK"


def test_a_file_may_start_with_a_byte_order_mark(config: Path) -> None:
    file = config / MEDIATION
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert "mediation" in read_directory(config, TEMPLATES).interventions


def test_a_verified_address_is_read_with_its_day(config: Path) -> None:
    replace(config / AGENCIES, 'verified_on = ""', "verified_on = 2026-11-02")
    agency = read_directory(config, TEMPLATES).agencies["nottingham-city-homes"]
    assert agency.verified_on
    assert agency.verified_on.isoformat() == "2026-11-02"


def test_a_district_s_own_route_comes_before_its_area_s(config: Path) -> None:
    replace(config / PANEL, "[routes]", '[routes]\ngedling = "nhipp"')
    directory = read_directory(config, TEMPLATES)
    panel = directory.interventions["repeat-victim-panel"]
    to = {
        place.district.id: agency.id
        for place in directory.places
        if place.district and (agency := directory.agency_for(panel, place))
    }
    assert to["gedling"] == "nhipp"
    assert to["ashfield"] == "complex-case-panel"


def test_an_area_may_be_served_by_routes_of_all_its_districts(config: Path) -> None:
    replace(
        config / MEDIATION, 'city = "nottingham-city-homes"', 'nottingham = "nottingham-city-homes"'
    )
    directory = read_directory(config, TEMPLATES)
    mediation = directory.interventions["mediation"]
    found = {
        (p.area.id, p.district.id if p.district else None): directory.agency_for(mediation, p)
        for p in directory.places
    }
    assert found["city", "nottingham"]
    assert found["city", None] is None, "which district it is must be known"


# One thing wrong

BROKEN: dict[str, tuple[str, str, str, str, str]] = {
    # name: file, old, new, key (with file) of the problem, words in it
    "toml": (MEDIATION, 'id = "mediation"', "id = mediation", "", "is not TOML: .*line 1"),
    "twice in toml": (MEDIATION, 'title = "M', 'id = "x"\ntitle = "M', "", "is not TOML"),
    "key": (MEDIATION, "[routes]", 'hnt = ""\n[routes]', "hnt", "is not known"),
    "key nearly": (AGENCIES, "phone =", "fone =", "agencies.1.fone", "Did you mean phone"),
    "key of a field": (MEDIATION, 'hint = "In n', 'hnt = "In n', "fields.1.hnt", "mean hint"),
    "key of facts": (MEDIATION, "optional = [", "optionl = [", "facts.optionl", "mean optional"),
    "key of an option": (
        "interventions/target-hardening.toml",
        'no_address = "The source gives no address for pr',
        'no_adress = "The source gives no address for pr',
        "fields.1.options.4.no_adress",
        "Did you mean no_address",
    ),
    "key of a rule": (
        PANEL,
        "unless_answer =",
        "unles_answer =",
        "rules.1.unles_answer",
        "mean unl",
    ),
    "key of a rule, ours": (
        PANEL,
        "number = 2",
        'number = 2\nname = "x"',
        "rules.1.name",
        "not known",
    ),
    "key of a district": (AREAS, "ons_code", "ons_cod", "areas.1.districts.1.ons_cod", "ons_code"),
    "key of areas": (AREAS, "[[areas]]", "area = 1\n[[areas]]", "area", "Did you mean areas"),
    "key of agencies": (
        AGENCIES,
        "[[agencies]]",
        "agency = 1\n[[agencies]]",
        "agency",
        "Did you mean agencies",
    ),
    "type: number": (
        MEDIATION,
        "acknowledge_within_days = 7",
        'acknowledge_within_days = "soon"',
        "acknowledge_within_days",
        "whole number",
    ),
    "type: list": (MEDIATION, '["city"]', '"city"', "areas", "not a list"),
    "type: text": (MEDIATION, 'title = "Mediation"', "title = 3", "title", "is not text"),
    "type: group": (
        MEDIATION,
        '[routes]\ncity = "nottingham-city-homes"',
        "routes = 3",
        "routes",
        "not a group",
    ),
    "type: fact": (MEDIATION, '"people.victim.name"', "3", "facts.required.1", "is not text"),
    "too small": (
        MEDIATION,
        "acknowledge_within_days = 7",
        "acknowledge_within_days = 0",
        "acknowledge_within_days",
        "1 or more",
    ),
    "missing key": (MEDIATION, "areas = ", "# areas = ", "areas", "is empty"),
    "empty title": (MEDIATION, 'title = "Mediation"', 'title = ""', "title", "too short"),
    "agency": (
        MEDIATION,
        'city = "nottingham-city-homes"',
        'city = "nch"',
        "routes.city",
        "unknown agency, nch.*nottingham-city-homes",
    ),
    "address": (AGENCIES, "community@", "community@@", "agencies.1.email", "not an e-mail address"),
    "address: name and address": (
        AGENCIES,
        '"community@nottinghamcityhomes.org.uk"',
        '"NCH <community@nottinghamcityhomes.org.uk>"',
        "agencies.1.email",
        "not an e-mail address",
    ),
    "address: two": (
        AGENCIES,
        '"community@nottinghamcityhomes.org.uk"',
        '"a@example.org,b@example.org"',
        "agencies.1.email",
        "not an e-mail address",
    ),
    "address: look-alike": (
        AGENCIES,
        "community@nott",
        "communit\u0443@nott",
        "agencies.1.email",
        "not an e-mail address",
    ),
    "address: line break": (
        AGENCIES,
        "community@nottinghamcityhomes.org.uk",
        "community@nottinghamcityhomes.org.uk\\nBcc: x@example.org",
        "agencies.1.email",
        "not an e-mail address",
    ),
    "phone": (AGENCIES, '"0115 746 9138"', '"ask"', "agencies.1.phone", "right form"),
    "day": (AGENCIES, 'verified_on = ""', 'verified_on = "May"', "agencies.1.verified_on", "date"),
    "agency id": (
        AGENCIES,
        "[[agencies]]",
        '[[agencies]]\nid = "nhipp"\ntitle = "N"\nsource = "test"\n\n[[agencies]]',
        "agencies.4.id",
        "named nhipp is there already",
    ),
    "id and file name": (
        MEDIATION,
        'id = "mediation"',
        'id = "mediate"\ntemplate = "mediation"',
        "id",
        "is mediate, but its place is named mediation",
    ),
    "region and folder": (
        f"{REGION}/region.toml",
        'id = "nottinghamshire"',
        'id = "notts"',
        "id",
        "is notts, but its place is named nottinghamshire",
    ),
    "time zone": (
        f"{REGION}/region.toml",
        "Europe/London",
        "Europe/Nottingham",
        "timezone",
        "not a time zone",
    ),
    "id form": (AREAS, 'id = "ashfield"', 'id = "Ash Field"', "areas.2.districts.1.id", "form"),
    "ons code": (AREAS, "E07000170", "7000170", "areas.2.districts.1.ons_code", "form"),
    "rule code": (PANEL, "RVP-002", "RVP-001", "rules.2.code", "RVP-001 is taken in .*panel"),
    "rule code elsewhere": (
        PANEL,
        "RVP-001",
        "MED-001",
        "rules.1.code",
        "MED-001 is taken in config/interventions/mediation.toml",
    ),
    "rule code form": (PANEL, "RVP-001", "rvp1", "rules.1.code", "right form"),
    "field name": (MEDIATION, '"began"', '"dispute"', "fields.2.name", "is taken"),
    "field name form": (MEDIATION, '"began"', '"Began-When"', "fields.2.name", "is not a name"),
    "field type": (MEDIATION, 'type = "text"', 'type = "txt"', "fields.1.type", "'text'"),
    "sensitivity": (
        MEDIATION,
        'sensitivity = "special"',
        'sensitivity = "secret"',
        "fields.1.sensitivity",
        "'special'",
    ),
    "option twice": (
        MEDIATION,
        'value = "council-leaseholder"',
        'value = "council-tenant"',
        "fields.4.options",
        "has a value twice",
    ),
    "options without choice": (
        MEDIATION,
        'name = "began"',
        'name = "began"\noptions = [{ value = "a", label = "A" }]',
        "fields.2.options",
        "belongs to a choice",
    ),
    "area without route": (
        MEDIATION,
        'areas = ["city"]',
        'areas = ["city", "county"]',
        "routes.county",
        "is missing, though areas claims county",
    ),
    "area with some districts' routes": (
        PANEL,
        'county = "complex-case-panel"',
        'gedling = "complex-case-panel"',
        "routes.county",
        "is missing, though areas claims county",
    ),
    "route without area": (
        MEDIATION,
        "[routes]",
        '[routes]\ncounty = "victim-care"',
        "routes.county",
        "no area or district that areas claims",
    ),
    "route of a stranger": (
        MEDIATION,
        "[routes]",
        '[routes]\nlondon = "victim-care"',
        "routes.london",
        "no area or district that areas claims",
    ),
    "unknown area": (
        MEDIATION,
        'areas = ["city"]',
        'areas = ["city", "citty"]',
        "areas.2",
        "Did you mean city",
    ),
    "unknown fact": (
        MEDIATION,
        '"people.victim.phone"',
        '"people.victim.fone"',
        "facts.optional.5",
        "Did you mean people.victim.phone",
    ),
    "far from any fact": (
        MEDIATION,
        '"people.victim.phone"',
        '"xyzzy"',
        "facts.optional.5",
        "Facts are named as in a case",
    ),
    "fact twice": (
        MEDIATION,
        '"people.victim.phone"',
        '"people.victim.name"',
        "facts.optional.5",
        "people.victim.name stands twice",
    ),
    "rule of an unknown field": (
        MEDIATION,
        'answer = "domestic_abuse"',
        'answer = "domestic"',
        "rules.4.answer",
        "domestic is no field",
    ),
    "rule of an unknown field, optional": (
        PANEL,
        'unless_answer = "fewer_incidents_reason"',
        'unless_answer = "fewer"',
        "rules.1.unless_answer",
        "fewer is no field",
    ),
    "block that may be left out": (
        MEDIATION,
        'domestic abuse between the parties?"\ntype = "yes-no"\nrequired = true',
        'domestic abuse between the parties?"\ntype = "yes-no"',
        "rules.4.answer",
        "MED-004 depends on domestic_abuse, which may be left out",
    ),
    "unknown check": (
        MEDIATION,
        'check = "area-served"',
        'check = "area-serve"',
        "rules.1.check",
        "names no rule that there is.*'area-served'",
    ),
    "check that is no name": (
        MEDIATION,
        'check = "area-served"',
        "check = 3",
        "rules.1.check",
        "not a group",
    ),
    "no check": (MEDIATION, 'check = "area-served"', "", "rules.1.check", "is missing"),
    "check value": (DISPERSAL, "hours = 48", 'hours = "two"', "rules.1.hours", "whole number"),
    "check value, day": (DISPERSAL, "as_at = ", 'as_at = "x" # ', "rules.1.as_at", "not a date"),
    "check value, person": (
        MEDIATION,
        'person = "victim"',
        'person = "victm"',
        "rules.2.person",
        "'victim'",
    ),
    "check value, empty": (
        "interventions/positive-engagement.toml",
        'words = ["offender", "perpetrator", "gang member", "nominal", "culprit", "thug", "yob"]',
        "words = []",
        "rules.5.words",
        "too short",
    ),
    "check value, area": (
        PANEL,
        'area = "county"',
        'area = "count"',
        "rules.3.area",
        "mean county",
    ),
    "check value, district": (
        PANEL,
        'districts = ["broxtowe"',
        'districts = ["broxtow"',
        "rules.3.districts",
        "Did you mean broxtowe",
    ),
    "level": (MEDIATION, 'level = "advise"', 'level = "warn"', "rules.7.level", "'advise'"),
    "override": (
        MEDIATION,
        'override = "supervisor"',
        'override = "anybody"',
        "rules.4.override",
        "'supervisor'",
    ),
    "sample of no option": (
        MEDIATION,
        'sample = "council-tenant"',
        'sample = "castle"',
        "fields.4.sample",
        "not one of the choices",
    ),
    "sample too short": (
        MEDIATION,
        'sample = "Since the spring',
        'sample = "Short."\n# ',
        "fields.1.sample",
        "20 characters",
    ),
    "sample of a required field": (
        MEDIATION,
        'sample = "Since the spring',
        "# ",
        "fields.1.sample",
        "the field is required",
    ),
    "template": (
        MEDIATION,
        'id = "mediation"',
        'id = "mediation"\ntemplate = "../x"',
        "template",
        "right form",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_one_problem_with_file_and_key(config: Path, name: str) -> None:
    file, old, new, key, words = BROKEN[name]
    replace(config / file, old, new)
    problem = the_problem(config)
    assert problem.where == f"config/{file}" + (f": {key}" if key else "")
    assert re.search(words, f"{problem.what} {problem.remedy}", re.DOTALL)
    assert problem.remedy.endswith((".", "?"))


def test_a_mistyped_key_that_is_needed_is_said_from_both_sides(config: Path) -> None:
    replace(config / MEDIATION, "summary =", "sumary =")
    found = {problem.where: str(problem) for problem in problems(config)}
    assert list(found) == [f"config/{MEDIATION}: summary", f"config/{MEDIATION}: sumary"]
    assert "is missing" in found[f"config/{MEDIATION}: summary"]
    assert "Did you mean summary?" in found[f"config/{MEDIATION}: sumary"]


def test_a_choice_needs_options(config: Path) -> None:
    replace(config / MEDIATION, 'name = "began"\n', 'name = "began"\noptions = []\n')
    replace(config / MEDIATION, 'type = "line"\n', 'type = "choice"\n')
    replace(config / MEDIATION, 'sample = "April this year"\n', "")
    problem = the_problem(config)
    assert problem.where == f"config/{MEDIATION}: fields.2.options"
    assert problem.remedy == "A choice needs options."


@pytest.mark.parametrize(
    ("file", "text", "key", "words"),
    [
        (AGENCIES, "agencies = []", "agencies", "lists no agency"),
        (AGENCIES, "", "agencies", "lists no agency"),
        (AGENCIES, '[agencies]\nid = "x"', "agencies", "lists no agency"),
        (AGENCIES, 'agencies = ["x"]', "agencies.1", "not a group of values"),
        (AREAS, "areas = []", "areas", "too short"),
        (AREAS, "", "areas", "too short"),
        (AREAS, 'areas = ["x"]', "areas.1", "not a group of values"),
        (AREAS, "areas = 3", "areas", "not a list"),
    ],
)
def test_a_file_without_what_it_should_list_is_named(
    config: Path, file: str, text: str, key: str, words: str
) -> None:
    (config / file).write_text(text, encoding="utf-8")
    problem = the_problem(config)
    assert problem.where == f"config/{file}: {key}"
    assert words in problem.what


@pytest.mark.parametrize(
    "file", [MEDIATION, AGENCIES, AREAS, f"{REGION}/region.toml", f"{REGION}/routes.toml"]
)
def test_a_file_that_is_not_utf_8_is_named(config: Path, file: str) -> None:
    (config / file).write_bytes('title = "Caf\xe9"'.encode("latin-1"))
    problem = the_problem(config)
    assert (problem.where, problem.what) == (f"config/{file}", "is not UTF-8 text.")


@pytest.mark.parametrize("file", [AGENCIES, AREAS, f"{REGION}/region.toml"])
def test_a_file_that_is_missing_is_named(config: Path, file: str) -> None:
    (config / file).unlink()
    problem = the_problem(config)
    assert (problem.where, problem.what) == (f"config/{file}", "is missing.")


def test_a_file_that_can_t_be_read_is_named(config: Path) -> None:
    (config / AGENCIES).unlink()
    (config / AGENCIES).mkdir()
    problem = the_problem(config)
    assert problem.where == f"config/{AGENCIES}"
    assert problem.what.startswith("can't be read")


@pytest.mark.parametrize("folder", ["regions", "interventions"])
def test_an_empty_folder_is_named(config: Path, folder: str) -> None:
    shutil.rmtree(config / folder)
    (config / folder).mkdir()
    problem = the_problem(config)
    assert problem.where == f"config/{folder}"
    assert problem.what.startswith("holds no ")


def test_an_empty_config_names_both_folders(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    found = [problem.where for problem in problems(tmp_path / "config")]
    assert found == ["config/regions", "config/interventions"]


def test_a_config_that_is_not_there_is_said(tmp_path: Path) -> None:
    problem = the_problem(tmp_path / "config")
    assert (problem.where, problem.remedy) == ("config", "Check REFERRALS_CONFIG.")


@pytest.mark.parametrize("part", TEMPLATE_PARTS)
def test_a_missing_template_is_named(config: Path, part: str) -> None:
    templates = config.parent / "templates" / "email"
    shutil.copytree(TEMPLATES, templates)
    (templates / "mediation" / part).unlink()
    problem = the_problem(config, templates)
    assert problem.where == f"config/{MEDIATION}: template"
    assert f"mediation/{part}, which is not in templates/email" in problem.what


def test_an_id_that_two_interventions_have_is_named_with_both_files(config: Path) -> None:
    (config / MEDIATION).rename(config / "interventions" / "aaa.toml")
    shutil.copy(ROOT / "config" / MEDIATION, config / MEDIATION)
    found = {problem.where: problem.what for problem in problems(config)}
    assert found[f"config/{MEDIATION}: id"] == (
        "is taken: config/interventions/aaa.toml has it too."
    )


# The table of postcodes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "cut short or altered"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "cut short or altered"),
        (lambda content: b"PK\x03\x04" + content, "not a postcode table of a kind we can read"),
        (lambda content: b"", "not a postcode table of a kind we can read"),
    ],
    ids=["cut short", "one bit", "another format", "empty"],
)
def test_a_corrupt_table_of_postcodes_is_named(
    config: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    file = config / REGION / "postcodes.bin"
    file.write_bytes(change(file.read_bytes()))
    problem = the_problem(config)
    assert problem.where == f"config/{REGION}/postcodes.bin"
    assert words in problem.what


def test_another_region_s_table_of_postcodes_is_named(config: Path) -> None:
    table = encode_table({"LE1 1AA": "leicester", "NG1 1AA": "nottingham"}, edition="x")
    (config / REGION / "postcodes.bin").write_bytes(table)
    problem = the_problem(config)
    assert problem.where == f"config/{REGION}/postcodes.bin"
    assert "districts that areas.toml lacks: leicester" in problem.what


def test_a_region_may_do_without_a_table(config: Path) -> None:
    (config / REGION / "postcodes.bin").unlink()
    assert read_directory(config, TEMPLATES).postcodes == {}


# More than one region

SECOND = {
    "region.toml": 'id = "northshire"\ntitle = "Northshire"\n',
    "areas.toml": '[[areas]]\nid = "north"\ntitle = "North"\n'
    '[[areas.districts]]\nid = "upper"\ntitle = "Upper"\n',
    "agencies.toml": '[[agencies]]\nid = "north-homes"\ntitle = "North Homes"\n'
    'email = "Mediation@north.example.org"\nsource = "test"\n',
}


@pytest.fixture
def two_regions(config: Path) -> Path:
    folder = config / "regions" / "northshire"
    folder.mkdir()
    for name, text in SECOND.items():
        (folder / name).write_text(text, encoding="utf-8")
    return config


def routes(config: Path, text: str, region: str = "northshire") -> None:
    (config / "regions" / region / "routes.toml").write_text(text, encoding="utf-8")


def test_a_region_routes_interventions_that_there_are_to_its_agencies(two_regions: Path) -> None:
    routes(two_regions, '[mediation]\nnorth = "north-homes"\n')
    directory = read_directory(two_regions, TEMPLATES)
    mediation = directory.interventions["mediation"]
    assert mediation.areas == ("city", "north")
    served = {
        place.area.id: agency.id
        for place in directory.places
        if (agency := directory.agency_for(mediation, place))
    }
    assert served == {"city": "nottingham-city-homes", "north": "north-homes"}


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('[mediaton]\nnorth = "north-homes"', "mediaton", "Did you mean mediation"),
        ('mediation = "north-homes"', "mediation", "not a table of routes"),
        ("[mediation]\nnorth = 3", "mediation", "not a table of routes"),
        (
            '[mediation]\ncity = "north-homes"',
            "mediation.city",
            "has a route in config/interventions/mediation.toml",
        ),
        ('[mediation]\nsouth = "north-homes"', "mediation.south", "no area or district"),
        ('[mediation]\nupper = "north-homes"', "mediation.upper", "no area or district"),
        ('[mediation]\nnorth = "north-home"', "mediation.north", "unknown agency, north-home"),
        ("[mediation", "", "is not TOML"),
    ],
)
def test_a_wrong_route_of_a_region_is_named(
    two_regions: Path, text: str, key: str, words: str
) -> None:
    routes(two_regions, text)
    problem = the_problem(two_regions)
    file = "config/regions/northshire/routes.toml"
    assert problem.where == (f"{file}: {key}" if key else file)
    assert words in f"{problem.what} {problem.remedy}"


def test_a_route_that_two_regions_give_is_named_with_both(two_regions: Path) -> None:
    routes(two_regions, '[mediation]\nnorth = "north-homes"\n')
    routes(two_regions, '[mediation]\nnorth = "victim-care"\n', "nottinghamshire")
    problem = the_problem(two_regions)
    assert problem.where == f"config/{REGION}/routes.toml: mediation.north" or (
        problem.where == "config/regions/northshire/routes.toml: mediation.north"
    )
    assert "has a route in config/regions/" in problem.what
    assert "routes.toml" in problem.what


@pytest.mark.parametrize(
    ("old", "new", "taken"),
    [('id = "north"', 'id = "city"', "city"), ('id = "upper"', 'id = "gedling"', "gedling")],
)
def test_a_place_that_two_regions_have_is_named(
    two_regions: Path, old: str, new: str, taken: str
) -> None:
    replace(two_regions / "regions/northshire/areas.toml", old, new)
    problem = the_problem(two_regions)
    assert "areas.toml: areas" in problem.where
    assert f"has {taken} twice (also in region " in problem.what


@pytest.mark.parametrize("kind", ["area", "district"])
def test_two_places_of_one_title_are_refused(two_regions: Path, kind: str) -> None:
    """A case may name a place by its title, and must not be sent to the first of two."""
    file = two_regions / "regions/northshire/areas.toml"
    text = file.read_text(encoding="utf-8")
    titles = re.findall(r'^title = "(.+)"$', text, re.MULTILINE)
    old, new = (titles[0], "nottingham & city") if kind == "area" else (titles[1], "GEDLING")
    if kind == "area":
        own = two_regions / "regions/nottinghamshire/areas.toml"
        replace(own, '"Nottingham City"', '"Nottingham and City"')
    replace(file, f'"{old}"', f'"{new}"')
    problem = the_problem(two_regions)
    assert "areas.toml: areas" in problem.where
    assert f"has {kind} " in problem.what
    assert "with the title of " in problem.what


def test_a_place_that_stands_twice_in_one_region_is_named(config: Path) -> None:
    (config / REGION / "postcodes.bin").unlink()
    replace(config / AREAS, 'id = "mansfield"', 'id = "city"')
    problem = the_problem(config)
    assert problem.where == f"config/{AREAS}: areas"
    assert "has city twice" in problem.what


def test_an_agency_that_two_regions_have_is_named(two_regions: Path) -> None:
    replace(two_regions / "regions/northshire/agencies.toml", '"north-homes"', '"nhipp"')
    problem = the_problem(two_regions)
    assert "agencies.toml: agencies." in problem.where
    assert "named nhipp is there already" in problem.what


def test_a_broken_region_is_not_blamed_on_what_refers_to_it(two_regions: Path) -> None:
    routes(two_regions, '[mediation]\nnorth = "north-homes"\n')
    replace(two_regions / "regions/northshire/areas.toml", 'id = "north"', 'id = "North"')
    problem = the_problem(two_regions)
    assert problem.where == "config/regions/northshire/areas.toml: areas.1.id"


def test_a_broken_intervention_is_not_blamed_on_the_region_that_routes_it(
    two_regions: Path,
) -> None:
    routes(two_regions, '[mediation]\nnorth = "north-homes"\n')
    replace(two_regions / MEDIATION, 'title = "Mediation"', 'title = ""')
    problem = the_problem(two_regions)
    assert problem.where == f"config/{MEDIATION}: title"


# All at once


def test_every_mistake_is_said_at_once(config: Path) -> None:
    replace(config / MEDIATION, "[routes]", 'hnt = ""\n[routes]')
    replace(config / PANEL, 'city = "nhipp"', 'city = "nhip"')
    replace(config / PANEL, "RVP-002", "RVP-001")
    replace(config / AGENCIES, "admin@", "admin@@")
    (config / DISPERSAL).write_bytes(b"\xff")
    (config / "interventions" / "target-hardening.toml").write_text("=", encoding="utf-8")
    assert {problem.where for problem in problems(config)} == {
        f"config/{MEDIATION}: hnt",
        f"config/{PANEL}: routes.city",
        f"config/{PANEL}: rules.2.code",
        f"config/{AGENCIES}: agencies.2.email",
        f"config/{DISPERSAL}",
        "config/interventions/target-hardening.toml",
    }


def test_mistakes_of_interventions_are_said_though_no_region_can_be_read(config: Path) -> None:
    (config / AREAS).unlink()
    replace(config / PANEL, "RVP-002", "RVP-001")
    replace(config / MEDIATION, '"people.victim.phone"', '"people.victim.fone"')
    assert {problem.where for problem in problems(config)} == {
        f"config/{AREAS}",
        f"config/{PANEL}: rules.2.code",
        f"config/{MEDIATION}: facts.optional.5",
    }


def test_the_error_says_how_many_and_lists_them(config: Path) -> None:
    replace(config / AGENCIES, "community@", "community@@")
    replace(config / AGENCIES, "admin@", "admin@@")
    with pytest.raises(ConfigurationError) as raised:
        read_directory(config, TEMPLATES)
    lines = str(raised.value).splitlines()
    assert lines[0] == "The configuration has 2 problems to put right:"
    assert len(lines) == 3
    assert "@@" not in str(raised.value)


# One file by itself


def test_one_intervention_is_read_without_its_templates(config: Path, tmp_path: Path) -> None:
    assert read_intervention(config, tmp_path / "none", "mediation").title == "Mediation"


@pytest.mark.parametrize("name", ["nothing", "../interventions/mediation", "", "*"])
def test_one_intervention_that_is_not_there_is_said(config: Path, name: str) -> None:
    with pytest.raises(InterventionUnknown, match="There is no"):
        read_intervention(config, TEMPLATES, name)


def test_one_intervention_s_own_mistakes_are_said(config: Path) -> None:
    replace(config / MEDIATION, '"began"', '"dispute"')
    with pytest.raises(ConfigurationError, match=r"mediation\.toml: fields\.2\.name: is taken"):
        read_intervention(config, TEMPLATES, "mediation")


def test_an_unknown_intervention_lists_those_that_there_are(directory: Directory) -> None:
    with pytest.raises(InterventionUnknown, match="mediation, police-dispersal-order"):
        directory.intervention("x")
