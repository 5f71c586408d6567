"""The wheel: what is in it, and that it works where there is nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "node_modules", "__pycache__", ".*_cache")
INTERVENTIONS = {
    "mediation",
    "victim-hardening",
    "repeat-victim-panel",
    "positive-engagement",
    "target-hardening",
    "police-dispersal-order",
    "fire-resistant-mailbox",
}


def run(
    *command: str | Path, cwd: Path, stdin: str | None = None, env: dict[str, str] | None = None
) -> str:
    """Its standard output; the test fails with all that it said if it did."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and a wheel built from that sdist, of a checkout that holds a person's draft."""
    checkout = tmp_path_factory.mktemp("built") / "checkout"
    shutil.copytree(ROOT, checkout, ignore=NOT_COPIED)
    drafts = checkout / "outbox" / "drafts"
    drafts.mkdir(parents=True, exist_ok=True)
    (drafts / "left-behind.eml").write_text("Subject: a person's draft\r\n\r\n", encoding="ascii")
    (checkout / ".env").write_text("REFERRALS_RELAY__PASSWORD=secret\n", encoding="ascii")

    out = checkout.parent / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=checkout)
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (only,) = distributions.glob("*.whl")
    return only


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `referrals` script of an environment that holds the wheel and its locked runtime."""
    environment = tmp_path_factory.mktemp("empty") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    pip += [str(environment / "bin" / "python"), "install", "--quiet"]
    runtime = ROOT / "requirements" / "runtime.txt"
    locked = ("--no-deps", "--require-hashes", "--only-binary=:all:", "-r")
    run(*pip, *locked, runtime, cwd=environment.parent)
    run(*pip, "--no-deps", wheel, cwd=environment.parent)
    return environment / "bin" / "referrals"


@pytest.fixture
def bare() -> dict[str, str]:
    """An environment with nothing of this checkout or of its developer in it."""
    return {"PATH": os.defpath, "LANG": "C.UTF-8"}


def test_config_and_templates_lie_inside_the_package(names: set[str]) -> None:
    """Every file of config/ and templates/ is in the wheel, under the package."""
    expected = {
        f"referrals/_shipped/{file.relative_to(ROOT)}"
        for folder in ("config", "templates")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
    shipped = {name for name in names if name.startswith("referrals/_shipped/")}

    assert expected
    assert shipped == expected
    assert {f"referrals/_shipped/config/interventions/{id_}.toml" for id_ in INTERVENTIONS} <= names


def test_postcodes_come_with_their_licence(names: set[str]) -> None:
    """The Open Government Licence asks that its notice goes where the data goes."""
    region = "referrals/_shipped/config/regions/nottinghamshire/"

    assert region + "POSTCODES-LICENCE.md" in names
    assert any(
        "postcode" in name.removeprefix(region).lower() and not name.endswith(".md")
        for name in names
        if name.startswith(region)
    )


def test_the_package_is_typed_and_licensed(names: set[str]) -> None:
    assert "referrals/py.typed" in names
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {
        "LICENSE",
        "LICENSE-govuk-frontend.txt",
        "NOTICE",
        "OFL.txt",
    }


def test_nothing_else_is_published(names: set[str], distributions: Path) -> None:
    """Neither tests nor scripts, and above all no draft and no secret, even in the sdist."""
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"referrals"}
    assert not [name for name in names if name.endswith((".eml", ".sqlite3", ".pyc"))]

    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert "pyproject.toml" in inside
    assert not [name for name in inside if name.startswith(("outbox", ".env", ".venv"))]


def test_the_wheel_asks_for_the_runtime_alone(wheel: Path) -> None:
    """Development tools never reach a deployment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode("utf-8").splitlines()
    asked = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist: " in line]

    wanted = {Requirement(line) for line in project["dependencies"]}
    assert {Requirement(line) for line in asked if "extra ==" not in line} == wanted


def test_the_page_comes_with_its_files(names: set[str]) -> None:
    """Templates, styles, scripts and fonts: nothing of the page is fetched from elsewhere."""
    expected = {
        str(file.relative_to(ROOT))
        for folder in ("static", "templates")
        for file in (ROOT / "referrals" / "web" / folder).rglob("*")
        if file.is_file()
    }

    assert "referrals/web/static/govuk.css" in expected
    assert expected <= names
    assert "referrals/web/store.sql" in names


def test_without_its_packages_the_page_says_what_to_install(
    installed: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    done = subprocess.run(
        [installed, "serve"],
        cwd=tmp_path,
        env=bare | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 5
    assert "pip install 'referrals[web]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_works_from_an_empty_folder(
    installed: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    """An installed `referrals` needs no checkout, no settings and no outbox to make a draft."""
    env = bare | {"HOME": str(tmp_path)}

    assert "0.1.0" in run(installed, "--version", cwd=tmp_path, env=env)

    listed = run(installed, "list", "--json", cwd=tmp_path, env=env)
    json.loads(listed)
    assert {id_ for id_ in INTERVENTIONS if f'"{id_}"' in listed} == INTERVENTIONS

    case = run(installed, "new", "mediation", cwd=tmp_path, env=env)
    run(installed, "draft", "mediation", "-", "--out", ".", cwd=tmp_path, stdin=case, env=env)
    (draft,) = tmp_path.glob("*.eml")
    assert b"X-Unsent: 1" in draft.read_bytes()
