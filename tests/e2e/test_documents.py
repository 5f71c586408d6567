"""What README.md and docs/ say is true, and their commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import click
import pytest

from referrals.case import shared_facts
from referrals.cli import EXIT_CODES, cli
from referrals.directory import Directory, Intervention, QuestionType
from referrals.directory_files import read_directory
from referrals.rules import Check
from referrals.settings_sources import setting_keys, shipped_folder, variable_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def directory() -> Directory:
    return read_directory(shipped_folder("config"), shipped_folder("templates") / "email")


@pytest.mark.parametrize("block", blocks(README, "sh"))
def test_the_commands_of_the_readme_run(block: str, tmp_path: Path) -> None:
    """As somebody would type them, in a folder of their own."""
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    environment = {key: value for key, value in os.environ.items() if "REFERRALS" not in key}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_the_readme_makes_the_drafts_that_it_speaks_of(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    environment = {key: value for key, value in os.environ.items() if "REFERRALS" not in key}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    both = "\n".join(blocks(README, "sh")[:2])
    subprocess.run(["bash", "-eu", "-c", both], cwd=tmp_path, env=environment, check=True)
    assert len(list((tmp_path / "outbox" / "drafts").glob("*-mediation.eml"))) == 1
    assert len(list((tmp_path / "drafts").glob("*.eml"))) == 5


@pytest.mark.parametrize("target", ["run", "test", "lint", "types", "bench"])
def test_the_make_targets_of_the_readme_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_table_of_interventions_is_the_directory(directory: Directory) -> None:
    rows = re.findall(r"^\| (`[a-z-]+`)? ?\| ([a-z, ]+) \| (.*) \|$", README, re.MULTILINE)
    told: dict[str, dict[str, str]] = {}
    name = ""
    for cell, areas, agency in rows:
        name = cell.strip("`") or name
        told.setdefault(name, {}).update(dict.fromkeys(areas.split(", "), agency))
    assert set(told) == set(directory.interventions)
    for intervention in directory.interventions.values():
        assert set(told[intervention.id]) == set(intervention.areas)
        for area, agency_id in intervention.routes.items():
            agency = directory.agencies[agency_id]
            assert (agency.email or "no address") in told[intervention.id][area]
            assert (agency.phone or "") in told[intervention.id][area]


def test_the_readme_has_the_exit_codes_of_the_help() -> None:
    helped = dict(re.findall(r"^  (\d+) +(.+)$", EXIT_CODES, re.MULTILINE))
    cells = re.findall(r"\| (\d+) \| ([^|]+?) (?=\|)", README)
    assert {code for code, _ in cells} == set(helped)


@pytest.mark.parametrize("link", re.findall(r"\]\(((?:docs/)?[A-Za-z.]+)\)", README))
def test_the_files_that_the_readme_links_to_exist(link: str) -> None:
    assert (ROOT / link).is_file()


def test_every_command_of_the_readme_is_a_command() -> None:
    known = cli.list_commands(click.Context(cli))
    for command in re.findall(r"^(?:`| {4})?referrals ([a-z]+)", README, re.MULTILINE):
        assert command in known


def test_every_setting_is_documented_with_its_variable() -> None:
    for key in setting_keys():
        assert f"| `{key}` |" in SETTINGS
    assert variable_of("relay.host") in SETTINGS


def test_every_check_and_field_type_is_documented() -> None:
    kinds = get_args(get_args(Check)[0])
    checks = [get_args(kind.model_fields["name"].annotation)[0] for kind in kinds]
    for name in checks:
        assert f"| `{name}` |" in CONFIGURATION
    for kind in QuestionType:
        assert f"| `{kind}` |" in CONFIGURATION


def test_every_fact_is_documented() -> None:
    for path in shared_facts():
        group, _, rest = path.partition(".")
        if group in ("location", "incidents") and rest:
            assert f"`{path}`" in CONFIGURATION
        elif group == "people" and rest.count(".") == 1:
            role, _, name = rest.partition(".")
            assert f"people.{role}.*" in CONFIGURATION
            assert f"`{name}`" in CONFIGURATION or f"`{name}." in CONFIGURATION


def test_the_intervention_of_the_documentation_loads() -> None:
    example = next(block for block in blocks(CONFIGURATION, "toml") if "safe-transport" in block)
    raw = tomllib.loads(example) | {"template": "safe-transport"}
    assert Intervention.model_validate(raw).rules[0].code == "TRA-001"
