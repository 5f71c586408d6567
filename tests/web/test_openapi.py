"""The API's description: that it is right, and that the API is as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator

from referrals.directory import Directory
from referrals.samples import sample_case
from referrals.settings import Settings
from referrals.web import api
from referrals.web.api_operations import OPERATIONS
from referrals.web.openapi import Description, document
from referrals.web.site import Role
from tests.conftest import ROOT, TODAY
from tests.web.asking import token_of, with_relay
from tests.web.conftest import Serving

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
WITH_CASE = "^/api/v1/(suggest|check|preview|drafts|referrals)$"


@pytest.fixture(scope="session")
def described(directory: Directory) -> dict[str, Any]:
    return document(OPERATIONS, directory, TODAY)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for inner in node.values():
            yield from nodes(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from nodes(inner)


def operations(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in described["paths"].values():
        yield from path.values()


def test_every_operation_is_described(described: dict[str, Any]) -> None:
    found = {
        (method.upper(), path.removeprefix("/api/v1"))
        for path, methods in described["paths"].items()
        for method in methods
    }

    assert found == {(one.method, one.path) for one in OPERATIONS}
    names = [one["operationId"] for one in operations(described)]
    assert len(set(names)) == len(names)


def test_every_operation_says_what_it_needs_and_how_it_refuses(described: dict[str, Any]) -> None:
    assert described["security"] == [{"token": []}]
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for one in operations(described):
        assert one["description"].strip()
        assert "Needs the role" in one["description"]
        assert {"401", "403", "422", "429", "500", "503"} <= one["responses"].keys()
        assert all(each["description"].strip() for each in one["parameters"])


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    found = [node["$ref"] for node in nodes(described) if isinstance(node.get("$ref"), str)]

    assert found
    for reference in found:
        place: Any = described
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_what_is_told_is_closed(described: dict[str, Any]) -> None:
    """So a value that is told and not described is noticed."""
    for name in ("Held", "Preview", "Assessment", "Error", "Entry", "Address", "Submitted"):
        assert described["components"]["schemas"][name]["additionalProperties"] is False


def test_the_case_is_the_schemas_and_its_example_fits_it(
    described: dict[str, Any], directory: Directory
) -> None:
    example = described["components"]["examples"]["case"]["value"]
    whole = {**described, "$ref": "#/components/schemas/Case"}

    assert example == sample_case(directory, sorted(directory.interventions), TODAY)
    assert list(Draft202012Validator(whole).iter_errors(example)) == []
    wrong = example | {"to": "somebody@example.com"}
    assert list(Draft202012Validator(whole).iter_errors(wrong))


def test_no_request_has_a_place_for_a_recipient(described: dict[str, Any]) -> None:
    for one in operations(described):
        names = {each["name"] for each in one["parameters"]}
        assert not names & {"to", "cc", "bcc", "recipient", "email", "address"}
        if one["operationId"] != "verify":
            assert names.isdisjoint({"by", "from", "sender"})


def test_the_handbook_lists_every_operation_with_its_role_and_query() -> None:
    """docs/api.md"""
    row = re.compile(r"^\| `(GET|POST) (/\S+)` \|(.*?)\|.*\| (\w+) \|$", re.MULTILINE)
    told = {
        (method, path, role, frozenset(re.findall("`([a-z_]+)`", query)))
        for method, path, query, role in row.findall((ROOT / "docs/api.md").read_text("utf-8"))
    }

    assert told == {
        (one.method, one.path, str(one.role), frozenset(one.query.model_fields))
        for one in OPERATIONS
    }


def test_anybody_may_read_it(client: httpx2.Client) -> None:
    answer = client.get("/api/openapi.json")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["openapi"] == "3.1.1"
    assert "Set-Cookie" not in answer.headers


def test_it_is_made_anew_only_on_another_day(site_settings: Settings) -> None:
    from referrals.web.app import build_site

    site = build_site(site_settings)
    description = Description(OPERATIONS)
    first = description.of(site)

    assert description.of(site) is first
    site.close()


@pytest.mark.parametrize(
    "which",
    [
        # Whatever a case may be wrong in would be thousands of requests: those stop at some.
        ["--include-path-regex", WITH_CASE, "--phases", "examples,fuzzing"],
        ["--exclude-path-regex", WITH_CASE, "--phases", "examples,coverage,fuzzing"],
    ],
    ids=["case", "others"],
)
def test_the_api_is_as_described(
    which: list[str], tmp_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schemathesis makes requests of every kind, good and bad, and looks at each answer."""
    monkeypatch.setattr(api, "AT_ONCE", 1_000_000)
    settings = with_relay(tmp_path)
    client = serving(settings)
    token = token_of(settings, Role.ADMINISTRATOR)
    header = {"Authorization": f"Bearer {token}"}
    case = client.get("/api/v1/sample/mediation", headers=header).json()
    path = "/api/v1/referrals?intervention=mediation&accept_unverified=true"
    submitted = client.post(path, json=case, headers=header)
    reference = submitted.json()["referrals"][0]["reference"]
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        f'parameters = {{ reference = "{reference}" }}\n'
        # TRACE is refused before the API is reached. Rules decide on a case besides its schema.
        "[phases.coverage]\n"
        'unexpected-methods = ["PUT", "PATCH", "DELETE", "OPTIONS"]\n'
        "[checks.positive_data_acceptance]\n"
        'expected-statuses = ["2xx", "404", "406", "409", "422"]\n'
    )
    done = subprocess.run(
        [SCHEMATHESIS, "--config-file", config, "run", f"{client.base_url}/api/openapi.json",
         "--header", f"Authorization: Bearer {token}", "--checks", "all", *which,
         "--max-examples", "15", "--seed", "20261124", "--generation-database", "none",
         "--report", "ndjson", "--report-ndjson-path", tmp_path / "report.ndjson"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    statuses = _statuses(tmp_path / "report.ndjson")
    assert {200, 401, 422} <= statuses, "or this proves little"


def _statuses(report: Path) -> set[int]:
    return {
        node["status_code"]
        for line in report.read_text("utf-8").splitlines()
        for node in nodes(json.loads(line))
        if isinstance(node.get("status_code"), int)
    }
