"""What a command imports: a start is quick because little is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import io, json, sys
import click
before = set(sys.modules)
from referrals.cli import main
shown, sys.stdout = sys.stdout, io.StringIO()
code = main(sys.argv[1:])
sys.stdout = shown
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""


def imported(*argv: str, cwd: Path, **env: str) -> set[str]:
    """The modules that a command adds to click's."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *argv],
        cwd=cwd,
        env={**os.environ, "XDG_CACHE_HOME": str(cwd), **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    code, modules = json.loads(done.stdout)
    assert code == 0, done.stderr
    return set(modules)


def roots(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.fixture
def case(tmp_path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "referrals", "new", "mediation"], capture_output=True, check=True
    )
    (tmp_path / "case.json").write_bytes(done.stdout)
    return "case.json"


@pytest.mark.parametrize("argv", ["--version", "--help"])
def test_the_version_needs_click_alone(argv: str, tmp_path: Path) -> None:
    modules = imported(argv, cwd=tmp_path)

    assert {name for name in modules if name.startswith("referrals")} == {
        "referrals",
        "referrals.cli",
    }
    others = roots(modules) - {"referrals", "click"}
    assert others <= sys.stdlib_module_names
    assert not others & {"asyncio", "email", "json", "logging", "ssl", "tomllib"}


SLOW = {"rich", "dns", "pydantic_settings", "dotenv", "aiosmtplib", "aiosmtpd", "asyncio", "ssl"}


def test_a_draft_needs_no_network_no_colours_and_no_settings_library(
    case: str, tmp_path: Path
) -> None:
    modules = imported("draft", "mediation", case, cwd=tmp_path)
    loaded = roots(modules)

    assert not loaded & (SLOW | {"email_validator"})
    assert not modules & {"email.policy", "email.headerregistry", "email.contentmanager"}
    assert {"pydantic", "jinja2", "referrals"} <= loaded, "or this proves nothing"


def test_a_setting_in_the_environment_brings_the_settings_library(
    case: str, tmp_path: Path
) -> None:
    env = {"REFERRALS_OUTBOX": "elsewhere"}

    assert "pydantic_settings" in roots(imported("draft", "mediation", case, cwd=tmp_path, **env))
    assert (tmp_path / "elsewhere" / "drafts").is_dir()


@pytest.mark.parametrize(
    "argv", ["list", "show mediation", "suggest case.json", "check case.json", "doctor", "schema"]
)
def test_looking_things_up_needs_neither(argv: str, case: str, tmp_path: Path) -> None:
    """No table is drawn where nobody is looking."""
    assert not roots(imported(*argv.split(), cwd=tmp_path)) & SLOW


def test_showing_what_would_be_sent_connects_to_nothing(case: str, tmp_path: Path) -> None:
    modules = imported("send", "mediation", case, cwd=tmp_path)

    assert not roots(modules) & {"aiosmtplib", "aiosmtpd", "rich", "dns"}
    assert "referrals.transports.smtp" not in modules


def test_plugins_of_other_packages_see_nothing(tmp_path: Path) -> None:
    """Pydantic would hand every value that it checks to them."""
    (tmp_path / "spy-1.dist-info").mkdir()
    (tmp_path / "spy-1.dist-info" / "METADATA").write_text("Name: spy\nVersion: 1\n", "ascii")
    (tmp_path / "spy-1.dist-info" / "entry_points.txt").write_text(
        "[pydantic]\nspy = spy:plugin\n", "ascii"
    )
    (tmp_path / "spy.py").write_text("raise SystemExit('imported')", "ascii")

    assert "spy" not in imported("list", cwd=tmp_path, PYTHONPATH=str(tmp_path))
