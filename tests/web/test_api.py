"""The JSON API: the same operations as the command line, for whoever has a token."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import httpx2
import pytest

from referrals.bootstrap import now, open_outbox
from referrals.settings import Settings
from referrals.sink import Sink
from referrals.telling import attempt_json, held_json
from referrals.web import api
from referrals.web.api_operations import OPERATIONS
from referrals.web.site import Role
from referrals.web.store import open_store
from tests.e2e.conftest import Beside, Command
from tests.web.asking import ADMINISTRATOR, Api, api_of, token_of, with_relay

AGENCY = "nottingham-city-homes"
CANARY = "Zqcanary"


@pytest.fixture
def api_here(site_settings: Settings) -> Iterator[Api]:
    with api_of(site_settings) as made:
        yield made


@pytest.fixture
def submitting(tmp_path: Path) -> Iterator[Api]:
    """There is a relay, and nothing is tried."""
    with api_of(with_relay(tmp_path)) as made:
        yield made


def problems_of(answer: httpx2.Response) -> dict[str, str]:
    told = answer.json()
    assert told["ok"] is False
    return {one["where"]: one["code"] for one in told["error"]["problems"]}


# Who asks


def test_nothing_is_told_without_a_token(api_here: Api) -> None:
    for one in OPERATIONS:
        answer = api_here.client.request(one.method, f"/api/v1{one.path}")
        assert answer.status_code == 401, one.path
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="referrals"'
        assert answer.json()["error"]["code"] == "not-signed-in"


def test_a_session_of_the_page_opens_nothing(api_here: Api) -> None:
    """So no form of another site can use it."""
    assert api_here.client.get("/").status_code == 200
    assert api_here.client.cookies

    assert api_here.client.get("/api/v1/outbox").status_code == 401


@pytest.mark.parametrize(
    "given",
    ["Bearer nonsense", "Bearer", "Bearer  ", "Basic eDp5", "bearer\t", "Token {token}", "{token}"],
)
def test_a_token_that_is_none_opens_nothing(given: str, api_here: Api) -> None:
    header = {"Authorization": given.format(token=api_here.token)}

    assert api_here.client.get("/api/v1/outbox", headers=header).status_code == 401


def test_a_token_counts_in_its_header_alone(api_here: Api) -> None:
    """RFC 6750 §5.3: an address with a token in it is kept in logs."""
    for name in ("access_token", "token"):
        path = f"/api/v1/outbox?{name}={api_here.token}"
        assert api_here.client.get(path).status_code == 401


def test_two_tokens_are_none(api_here: Api) -> None:
    headers = [("Authorization", f"Bearer {api_here.token}")] * 2

    assert api_here.client.get("/api/v1/outbox", headers=headers).status_code == 401


def test_an_expired_or_revoked_token_says_so(site_settings: Settings) -> None:
    with api_of(site_settings) as one:
        one.token = token_of(site_settings, ADMINISTRATOR, days=-1)
        answer = one.get("outbox")
        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]

        one.token = token_of(site_settings, ADMINISTRATOR, days=2)
        assert one.get("outbox").status_code == 200
        store = open_store(site_settings)
        assert store.revoke_token("administrator-2", now())
        store.close()
        assert one.get("outbox").status_code == 401


@pytest.mark.parametrize("role", list(Role))
def test_a_role_may_do_what_the_description_says(role: Role, tmp_path: Path) -> None:
    rank = list(Role)
    with api_of(with_relay(tmp_path), role) as one:
        for operation in OPERATIONS:
            path = operation.path.lstrip("/").format(
                intervention="mediation", interventions="mediation", reference="X", agency="x"
            )
            answer = one.get(path) if operation.method == "GET" else one.post(path, {})
            refused = answer.status_code == 403
            assert refused == (rank.index(role) < rank.index(operation.role)), operation.path
            if refused:
                assert "insufficient_scope" in answer.headers["WWW-Authenticate"]


def test_too_many_requests_wait_their_turn(
    site_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "AT_ONCE", 3)
    monkeypatch.setattr(api, "A_SECOND", 0.01)
    with api_of(site_settings) as one:
        answers = [one.get("interventions") for _ in range(4)]
        other = token_of(site_settings, Role.REFERRER)
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 101
        one.token = other
        assert one.get("interventions").status_code == 200


def test_a_bucket_fills_up_again_and_never_over() -> None:
    clock = [0.0]
    pace = api.Pace(2, 0.5, lambda: clock[0])

    assert [pace.wait_s("x") for _ in range(3)] == [0, 0, 2.0]
    clock[0] = 2.0
    assert [pace.wait_s("x") for _ in range(2)] == [0, 2.0]
    clock[0] = 1_000.0
    assert [pace.wait_s("x") for _ in range(3)] == [0, 0, 2.0]


# The same as the command line tells


def _settings_of_the_command(home: Path) -> Settings:
    return Settings(outbox=home / "outbox")


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (["list"], "interventions"),
        (["show", "mediation"], "interventions/mediation"),
        (["new", "mediation", "victim-hardening"], "sample/mediation,victim-hardening"),
        (["schema"], "schema"),
        (["schema", "mediation"], "schema?needed_by=mediation"),
        (["directory", "list"], "directory"),
        (["due"], "due"),
    ],
)
def test_what_is_looked_up_reads_as_on_the_command_line(
    argv: list[str], path: str, referrals: Command, home: Path
) -> None:
    told = referrals(*argv, "--json").json

    with api_of(_settings_of_the_command(home)) as one:
        assert one.get(path).json() == told


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (["suggest", "case.json"], "suggest"),
        (["check", "case.json"], "check"),
        (["check", "case.json", "positive-engagement"], "check?intervention=positive-engagement"),
        (["preview", "mediation", "case.json"], "preview?intervention=mediation"),
    ],
)
def test_what_is_said_of_a_case_reads_as_on_the_command_line(
    argv: list[str], path: str, referrals: Command, home: Path
) -> None:
    case = referrals("new", "mediation").json
    (home / "case.json").write_text(json.dumps(case))
    told = referrals(*argv, "--json").json

    with api_of(_settings_of_the_command(home)) as one:
        assert one.post(path, case).json() == told


def test_an_error_reads_as_on_the_command_line(referrals: Command, home: Path) -> None:
    case = referrals("new", "mediation").json
    case["consents"] = []
    (home / "case.json").write_text(json.dumps(case))
    told = referrals("preview", "mediation", "case.json", "--json").json
    assert told["error"]["code"] == "blocked"

    with api_of(_settings_of_the_command(home)) as one:
        answer = one.post("preview?intervention=mediation", case)
    assert answer.json() == told
    assert answer.status_code == 422


# Drafts


def test_a_draft_is_the_file_of_the_command_line(referrals: Command, home: Path) -> None:
    case = referrals("new", "mediation").json
    (home / "case.json").write_text(json.dumps(case))
    drafted = referrals("draft", "mediation", "case.json", "--json").json["drafts"][0]
    saved = Path(drafted["path"])

    with api_of(_settings_of_the_command(home)) as one:
        [draft] = one.post("drafts?intervention=mediation", case).json()["drafts"]
        assert base64.b64decode(draft["content"], validate=True) == saved.read_bytes()
        assert draft["file_name"] == saved.name
        alone = one.post("drafts?intervention=mediation", case, accept="message/rfc822")
        assert alone.content == saved.read_bytes()
        assert alone.headers["Content-Type"] == "message/rfc822"
        assert saved.name in alone.headers["Content-Disposition"]


def test_several_drafts_come_at_once_and_not_as_one_file(api_here: Api) -> None:
    path = "drafts?intervention=victim-hardening&intervention=mediation&intervention=mediation"
    case = api_here.case("mediation", "victim-hardening")

    drafts = api_here.post(path, case).json()["drafts"]
    assert [one["intervention"] for one in drafts] == ["victim-hardening", "mediation"]
    assert api_here.post(path, case, accept="message/rfc822").status_code == 406


def test_a_draft_is_kept_nowhere(api_here: Api) -> None:
    api_here.post("drafts?intervention=mediation", api_here.case())

    assert not (api_here.settings.outbox / "drafts").exists()
    assert api_here.get("outbox").json()["messages"] == []


# Submitting


def test_what_is_submitted_arrives_at_the_directorys_address_as_queued(tmp_path: Path) -> None:
    with Beside(Sink()) as sink, api_of(with_relay(tmp_path, sink.port, deliver=True)) as one:
        path = "referrals?intervention=mediation&accept_unverified=true"
        answer = one.post(path, one.case())
        assert answer.status_code == 202
        [told] = answer.json()["referrals"]
        assert (told["status"], told["queued_before"]) == ("queued", False)
        shown = until(lambda: one.get(f"outbox/{told['reference']}").json()[0], "relayed")

        [arrived] = sink.arrived
        assert list(arrived.recipients) == [told["to"]] == [shown["to"]]
        with open_outbox(one.settings) as outbox:
            [held] = outbox.held()
            assert outbox.content(held.id) == arrived.content
            assert shown == {
                **held_json(held),
                "held": False,
                "rerouted_to": None,
                "tries": [attempt_json(each) for each in outbox.attempts(held.id)],
            }
            [queued] = [entry for entry in outbox.audit() if entry.action == "queued"]
        assert queued.actor == "token:administrator-1"
        assert queued.detail["accepted_unverified"] is True
        # Asked again, nothing is submitted again.
        again = one.post(path, one.case())
        assert again.status_code == 200
        [told] = again.json()["referrals"]
        assert (told["status"], told["queued_before"]) == ("relayed", True)
        assert len(sink.arrived) == 1


def until(ask: Callable[[], Any], status: str) -> Any:
    end = time.monotonic() + 15
    while (told := ask())["status"] != status:
        assert time.monotonic() < end, told
        time.sleep(0.02)
    return told


def test_an_address_that_nobody_verified_is_not_submitted_to(submitting: Api) -> None:
    answer = submitting.post("referrals?intervention=mediation", submitting.case())

    assert answer.status_code == 409
    error = answer.json()["error"]
    assert error["code"] == "address-unverified"
    assert "accept_unverified=true" in error["message"]
    assert "--" not in error["message"]
    assert submitting.get("outbox").json()["messages"] == []


def test_an_address_is_verified_and_then_submitted_to(submitting: Api) -> None:
    verified = submitting.post(f"directory/{AGENCY}/verify?by=Jo%20Bloggs")
    assert verified.status_code == 200
    assert verified.json()["verified"] is True
    assert verified.json()["verified_by"] == "Jo Bloggs"

    answer = submitting.post("referrals?intervention=mediation", submitting.case())
    assert answer.status_code == 202
    assert submitting.post(f"directory/{AGENCY}/withdraw").json()["verified"] is False
    assert submitting.post(f"directory/{AGENCY}/withdraw").status_code == 409


def test_who_verifies_is_the_token_unless_it_is_said(submitting: Api) -> None:
    told = submitting.post(f"directory/{AGENCY}/verify?on=2026-01-31").json()

    assert told["verified_by"] == "token:administrator-1"
    assert told["verified_on"] == "2026-01-31"


@pytest.mark.parametrize(
    ("query", "where"), [("on=2999-01-01", "query.on"), (f"by={'x' * 81}", "query.by")]
)
def test_a_verification_that_can_not_be_is_refused(query: str, where: str, submitting: Api) -> None:
    answer = submitting.post(f"directory/{AGENCY}/verify?{query}")

    assert answer.status_code == 422
    assert list(problems_of(answer)) == [where]
    assert submitting.get("audit").json()["entries"] == []


def test_all_are_queued_or_none(submitting: Api) -> None:
    """The second has no address in the directory."""
    path = "referrals?intervention=mediation&intervention=police-dispersal-order"
    case = submitting.case("mediation", "police-dispersal-order")
    answer = submitting.post(f"{path}&accept_unverified=true", case)

    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "no-address"
    assert submitting.get("outbox").json()["messages"] == []


def test_without_a_relay_nothing_is_queued(api_here: Api) -> None:
    path = "referrals?intervention=mediation&accept_unverified=true"
    answer = api_here.post(path, api_here.case())

    assert answer.status_code == 503
    assert problems_of(answer) == {"relay.host": "no-relay"}
    assert api_here.get("outbox").json()["messages"] == []


@pytest.mark.parametrize("name", ["to", "recipient", "email", "agency", "cc", "bcc", "address"])
def test_a_request_can_give_no_recipient(name: str, submitting: Api) -> None:
    """Neither in the query nor anywhere in the case; and what was tried is not repeated."""
    path = "referrals?intervention=mediation&accept_unverified=true"
    case = submitting.case()
    hostile = f"{CANARY}@example.com"
    places: list[tuple[str, Any]] = [
        (f"{path}&{name}={hostile}", case),
        (path, case | {name: hostile}),
        (path, case | {"answers": {"mediation": case["answers"]["mediation"] | {name: hostile}}}),
        (path, case | {"location": case["location"] | {name: hostile}}),
    ]
    for where, tried in places:
        answer = submitting.post(where, tried)
        assert answer.status_code == 422
        assert CANARY not in answer.text
    assert submitting.get("outbox").json()["messages"] == []


# The outbox


def queue(one: Api, count: int) -> list[str]:
    """References, the newest first."""
    references = []
    for number in range(count):
        case = one.case() | {"reference": f"CASE-{number}"}
        answer = one.post("referrals?intervention=mediation&accept_unverified=true", case)
        assert answer.status_code == 202
        references.append(answer.json()["referrals"][0]["reference"])
    return references[::-1]


def test_the_outbox_is_listed_a_page_at_a_time(submitting: Api) -> None:
    references = queue(submitting, 3)

    first = submitting.get("outbox?limit=2").json()
    assert [one["reference"] for one in first["messages"]] == references[:2]
    assert first["counts"] == {"queued": 3}
    assert first["next_offset"] == 2
    last = submitting.get("outbox?limit=2&offset=2").json()
    assert [one["reference"] for one in last["messages"]] == references[2:]
    assert last["next_offset"] is None


def test_the_outbox_is_filtered(submitting: Api) -> None:
    references = queue(submitting, 2)
    submitting.post(f"outbox/{references[0]}/cancel")

    def listed(query: str) -> list[str]:
        found = submitting.get(f"outbox?{query}").json()["messages"]
        return [one["reference"] for one in found]

    assert listed("status=cancelled") == references[:1]
    assert listed("status=queued") == references[1:]
    assert listed("case_reference=case-0") == references[1:]
    assert listed("case_reference=case-0&status=cancelled") == []


def test_a_person_decides_and_the_audit_says_who(submitting: Api) -> None:
    [reference] = queue(submitting, 1)

    assert submitting.post(f"outbox/{reference}/acknowledge").status_code == 409
    assert submitting.post(f"outbox/{reference.lower()}/cancel").json()["status"] == "cancelled"
    assert submitting.post(f"outbox/{reference}/retry").status_code == 409
    assert submitting.post("outbox/NONE/cancel").status_code == 404
    entries = submitting.get("audit").json()["entries"]
    assert [entry["action"] for entry in entries] == ["queued", "cancelled"]
    assert {entry["actor"] for entry in entries} == {"token:administrator-1"}


# The audit


def test_the_audit_is_listed_a_page_at_a_time(submitting: Api) -> None:
    queue(submitting, 3)

    first = submitting.get("audit?limit=2").json()
    assert [entry["number"] for entry in first["entries"]] == [1, 2]
    last = submitting.get(f"audit?limit=2&after={first['next_after']}").json()
    assert [entry["number"] for entry in last["entries"]] == [3]
    assert last["next_after"] is None
    one = submitting.get("audit?case_reference=CASE-1").json()["entries"]
    assert [entry["number"] for entry in one] == [2]
    assert submitting.get("audit?since=2999-01-01").json()["entries"] == []
    assert len(submitting.get("audit?since=2026-01-01").json()["entries"]) == 3


def test_the_audit_is_verified_against_what_was_noted(submitting: Api) -> None:
    queue(submitting, 2)
    whole = submitting.get("audit/verify").json()
    assert (whole["ok"], whole["entries"]) == (True, 2)

    assert submitting.get(f"audit/verify?expect={whole['noted']}").json()["ok"] is True
    other = submitting.get(f"audit/verify?expect=2:{'0' * 64}").json()
    assert other["ok"] is False
    assert other["breaks"]
    assert submitting.get("audit/verify?expect=nonsense").status_code == 422


# What is asked wrongly


@pytest.mark.parametrize(
    "query",
    ["status=lost", "limit=0", "limit=501", "limit=ten", "limit=1.0", "limit=1&limit=2",
     "offset=-1", "case_reference=John%20Smith", "john_smith=1"],
)  # fmt: skip
def test_a_query_that_is_not_known_is_refused(query: str, api_here: Api) -> None:
    answer = api_here.get(f"outbox?{query}")

    assert answer.status_code == 422
    assert all(where.startswith("query.") for where in problems_of(answer))
    assert "john" not in answer.text.lower()


def test_a_question_of_yes_or_no_has_two_answers(submitting: Api) -> None:
    for word in ("yes", "1", "True", ""):
        path = f"referrals?intervention=mediation&accept_unverified={word}"
        answer = submitting.post(path, submitting.case())
        assert problems_of(answer) == {"query.accept_unverified": "yes-no"}


def test_every_problem_is_told_at_once(api_here: Api) -> None:
    case = api_here.case() | {"reference": "John Smith"}
    del case["referrer"]["name"]

    answer = api_here.post("preview?colour=red", case)
    assert answer.status_code == 422
    assert problems_of(answer) == {
        "query.(a key)": "unknown",
        "query.intervention": "missing",
        "reference": "reference",
        "referrer.name": "missing",
    }
    assert "John" not in answer.text


def test_nothing_to_check_is_a_problem(api_here: Api) -> None:
    case = api_here.case()
    del case["answers"]

    assert problems_of(api_here.post("check", case)) == {"query.intervention": "missing"}


def test_an_intervention_that_is_not_there(api_here: Api) -> None:
    case = api_here.case()
    for path in ("check", "preview", "drafts"):
        answer = api_here.post(f"{path}?intervention=mediatoin", case)
        assert answer.status_code == 404
        assert "Did you mean mediation?" in answer.json()["error"]["message"]
    for path in ("interventions/x", "sample/mediation,x", "schema?needed_by=x"):
        assert api_here.get(path).status_code == 404


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "case-unreadable"),
        (b"[1]", "case-unreadable"),
        (b"{", "case-unreadable"),
        (b'{"a": NaN}', "case-unreadable"),
        (b"\xff\xfe{}", "case-unreadable"),
        (b"[" * 100_000, "case-unreadable"),
        (b'{"reference": "CASE-1", "reference": "CASE-2"}', "request-invalid"),
        (b'{"reference": "CASE-\\ud800"}', "case-invalid"),
    ],
)
def test_a_body_that_is_no_case(content: bytes, code: str, api_here: Api) -> None:
    answer = api_here.raw("suggest", content)

    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == code


def test_a_body_is_json_and_says_so(api_here: Api) -> None:
    content = json.dumps(api_here.case()).encode()

    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""):
        assert api_here.raw("suggest", content, content_type=kind).status_code == 415
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert api_here.raw("suggest", content, content_type=kind).status_code == 200


def test_a_body_that_is_too_large_is_not_read(api_here: Api) -> None:
    assert api_here.raw("suggest", b" " * 1_000_001).status_code == 413


@pytest.mark.parametrize("path", ["/v1", "/v2/outbox", "/v1/nothing", "/v1/outbox/X/delete"])
def test_an_address_that_is_not_there(path: str, api_here: Api) -> None:
    answer = api_here.client.get(f"/api{path}")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not-found"


def test_a_method_that_is_not_for_an_address(api_here: Api) -> None:
    answer = api_here.client.delete("/api/v1/outbox")

    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert answer.json()["error"]["code"] == "method"


# What stays out


def test_no_answer_is_kept_by_a_browser_or_a_proxy(api_here: Api) -> None:
    for answer in (api_here.get("outbox"), api_here.get("nothing"), api_here.post("suggest", {})):
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in answer.headers


def test_a_name_is_told_only_where_the_letter_is(submitting: Api) -> None:
    case = submitting.case()
    case["people"]["victim"]["name"] = CANARY
    query = "?intervention=mediation"

    assert CANARY in submitting.post(f"preview{query}", case).text
    submitted = submitting.post(f"referrals{query}&accept_unverified=true", case)
    assert submitted.status_code == 202
    [told] = submitted.json()["referrals"]
    drafted = submitting.post(f"drafts{query}", case, accept="message/rfc822")
    others = [
        submitted,
        submitting.post("suggest", case),
        submitting.post("check", case),
        submitting.get("outbox"),
        submitting.get(f"outbox/{told['reference']}"),
        submitting.get("audit"),
    ]
    for answer in others:
        assert CANARY not in answer.text
    assert CANARY not in str(drafted.headers)
    letter = message_from_bytes(drafted.content, policy=default).get_body(("plain",))
    assert letter is not None
    assert CANARY in letter.get_content()


def test_a_fault_of_ours_says_nothing_of_what_was_typed(
    api_here: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("referrals.service.Service.suggest", broken)
    with caplog.at_level(logging.DEBUG):
        answer = api_here.post("suggest", api_here.case())

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "fault"
    assert CANARY not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text
