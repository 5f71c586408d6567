"""config/ and templates/ are changed while the page runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from referrals.bootstrap import LiveService, open_outbox
from referrals.case_files import flatten
from referrals.config_changes import mark_of
from referrals.settings import RelaySettings, Security, Settings
from referrals.web.site import Role
from tests.conftest import CONFIG, TEMPLATES
from tests.rows import as_csv, rows_of
from tests.web.asking import api_of
from tests.web.conftest import web_settings
from tests.web.signing import said
from tests.web.test_batch_pages import Seen, Visit, counts
from tests.web.test_journey import in_outbox, sample
from tests.web.visiting import ADDRESS, Visitor, visiting
from tests.web.walking import Walker

NEW = "referrals@victimcare.example.com"
TYPO = "admin@@victimcare.example.com"
NCH = "community@nottinghamcityhomes.org.uk"
ELSEWHERE = "another address for it since this page was shown"

pytestmark = pytest.mark.usefixtures("clock_stands_still")


@pytest.fixture(autouse=True)
def _looks_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.web.app._LOOK_EVERY_S", 3600.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A deployment's own config/ and templates/, and a relay that nothing is given to."""
    config, templates = tmp_path / "config", tmp_path / "letters"
    shutil.copytree(CONFIG, config)
    shutil.copytree(TEMPLATES, templates)
    relay = RelaySettings(host="127.0.0.1", port=25, security=Security.NONE)
    made = web_settings(tmp_path, deliver=False)
    return made.model_copy(update={"config": config, "templates": templates, "relay": relay})


@pytest.fixture
def visitor(settings: Settings) -> Iterator[Visitor]:
    with visiting(settings) as one:
        yield one


def agencies(settings: Settings) -> Path:
    assert settings.config is not None
    return settings.config / "regions" / "nottinghamshire" / "agencies.toml"


def written(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def corrected(visitor: Visitor, old: str = ADDRESS, new: str = NEW) -> None:
    """Somebody writes another address into config/, and the page looks at it."""
    written(agencies(visitor.site.settings), old, new)
    looked(visitor)


def looked(visitor: Visitor) -> None:
    for _ in range(2):
        visitor.site.look_at_config()


# What counts as a change


def test_only_what_makes_up_the_directory_and_the_letters_counts(tmp_path: Path) -> None:
    for name in ("a.toml", "settings.toml", "notes.md", "inner/settings.toml", "inner/x.j2"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("1")

    def changes(name: str) -> bool:
        before = mark_of([tmp_path])
        (tmp_path / name).write_text("22")
        return mark_of([tmp_path]) != before

    counting = {"a.toml", "inner/settings.toml", "inner/x.j2", "new.bin"}
    for name in (*counting, "settings.toml", "notes.md", ".a.toml.swp"):
        assert changes(name) is (name in counting), name
    before = mark_of([tmp_path])
    (tmp_path / "a.toml").unlink()
    assert mark_of([tmp_path]) != before
    assert mark_of([tmp_path / "nowhere"]) == frozenset()
    (tmp_path / "inner" / "circle").symlink_to(tmp_path)
    assert mark_of([tmp_path])


def test_what_is_still_being_written_is_not_read(settings: Settings) -> None:
    """As when somebody copies one file after another."""
    live = LiveService(settings)
    assert not live.look()
    before = live.current()
    for number in range(3):
        old = f"{number - 1}{NEW}" if number else ADDRESS
        written(agencies(settings), old, f"{number}{NEW}")
        assert not live.look()
        assert live.current() is before
    assert live.look()
    assert live.current().directory.agencies["victim-care"].email == f"2{NEW}"
    assert before.directory.agencies["victim-care"].email == ADDRESS
    assert not live.look()
    live.close()


def test_the_page_looks_by_itself(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.web.app._LOOK_EVERY_S", 0.02)
    with visiting(settings) as visitor:
        assert ADDRESS in visitor.get("/directory").text
        written(agencies(settings), ADDRESS, NEW)
        until = time.monotonic() + 10
        while NEW not in visitor.get("/directory").text:
            assert time.monotonic() < until
        assert ADDRESS not in visitor.get("/directory").text


# With faults


def test_a_config_with_faults_is_not_used_and_said(
    visitor: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    corrected(visitor, ADDRESS, TYPO)
    text = said(visitor.get("/directory"))
    assert "have faults, so this is the directory as it was before" in text
    assert "agencies.toml: agencies.2.email" in text
    assert visitor.site.service.directory.agencies["victim-care"].email == ADDRESS
    looked(visitor)
    assert caplog.text.count("agencies.2.email") == 1, "said once"
    corrected(visitor, TYPO, NEW)
    text = said(visitor.get("/directory"))
    assert NEW in text
    assert "have faults" not in text
    assert caplog.text.count("were read anew") == 1


def test_which_faults_is_an_administrator_s_to_know(settings: Settings) -> None:
    with visiting(settings, Role.SENDER) as visitor:
        corrected(visitor, ADDRESS, TYPO)
        text = said(visitor.get("/directory"))
    assert "have faults" in text
    assert "Tell whoever looks after this service." in text
    assert "agencies.toml" not in text


def test_letters_stay_as_they_were_until_all_is_sound(visitor: Visitor) -> None:
    """Also those that nobody has looked at before."""
    templates = visitor.site.settings.templates
    assert templates is not None
    body = templates / "victim-hardening" / "body.txt.j2"
    before = body.read_text()
    for wrong, new in (("{% if %}", False), ("A new line of the letter.", True)):
        body.write_text(before.replace("{% endblock %}", f"{wrong}\n{{% endblock %}}"))
        looked(visitor)
        walker = Walker.with_case(visitor.client, sample(visitor.site, "victim-hardening"))
        walker.to_check("victim-hardening")
        text = walker.get(f"{walker.at}/preview/victim-hardening").text
        assert ("A new line of the letter." in text) is new
        told = said(visitor.get("/directory"))
        assert ("victim-hardening/body.txt.j2: line" in told) is not new


def test_a_look_that_goes_wrong_ends_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("referrals.web.app._LOOK_EVERY_S", 0.02)
    with monkeypatch.context() as patched, visiting(settings) as visitor:
        patched.setattr("referrals.web.site.Site.look_at_config", fail)
        until = time.monotonic() + 10
        while caplog.text.count("RuntimeError") < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert visitor.get("/directory").status_code == 200


# A referral under way


def test_what_was_shown_with_another_address_is_not_submitted(visitor: Visitor) -> None:
    walker = Walker.with_case(visitor.client, sample(visitor.site, "victim-hardening"))
    walker.to_check("victim-hardening")
    shown = walker.seen()
    corrected(visitor)
    answer = walker.submit("victim-hardening", expected=422, **shown)
    text = said(answer)
    assert ELSEWHERE in text
    assert NEW in text
    assert "the e-mail has changed" not in text
    assert 'name="accept" type="checkbox" value="victim-hardening">' in answer.text, "not ticked"
    assert in_outbox(visitor.site) == []
    walker.submit("victim-hardening")
    assert in_outbox(visitor.site) == [NEW]


def test_what_was_queued_before_keeps_its_address(visitor: Visitor) -> None:
    walker = Walker.with_case(visitor.client, sample(visitor.site, "victim-hardening"))
    walker.to_check("victim-hardening")
    walker.submit("victim-hardening")
    corrected(visitor)
    assert in_outbox(visitor.site) == [ADDRESS]
    assert NEW in said(visitor.get("/directory/victim-care"))


def test_what_is_offered_no_more_is_not_submitted_in_silence(visitor: Visitor) -> None:
    both = ("victim-hardening", "mediation")
    walker = Walker.with_case(visitor.client, sample(visitor.site, *both))
    walker.to_check(*both)
    shown = walker.seen()
    config = visitor.site.settings.config
    assert config is not None
    (config / "interventions" / "mediation.toml").unlink()
    looked(visitor)
    answer = walker.submit(*both, expected=422, **shown)
    assert "is not ready any more" in said(answer)
    assert in_outbox(visitor.site) == []
    walker.submit("victim-hardening")
    assert in_outbox(visitor.site) == [ADDRESS]


# Programs, and spreadsheets


def test_a_program_submits_to_the_address_of_now(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.web.app._LOOK_EVERY_S", 0.02)
    with api_of(settings) as api:
        written(agencies(settings), ADDRESS, NEW)
        until = time.monotonic() + 10
        while NEW not in api.get("directory").text:
            assert time.monotonic() < until
        query = "intervention=victim-hardening&accept_unverified=true"
        answer = api.post(f"referrals?{query}", api.case("victim-hardening"))
        assert answer.status_code == 202
    with open_outbox(settings) as outbox:
        assert [one.recipient for one in outbox.held()] == [NEW]


def test_a_spreadsheet_that_was_shown_with_other_addresses_is_shown_again(
    visitor: Visitor,
) -> None:
    seen = _uploaded(visitor)
    shown = seen.shown()
    corrected(visitor, NCH, NEW)
    answer = seen.visit.post(f"{seen.path}/submit", data={"accept": "yes", "count": "2", **shown})
    assert answer.status_code == 422
    assert "The directory has changed since this page was shown." in said(answer)
    assert NEW in answer.text.replace("<wbr>", "")
    assert 'value="yes" checked' not in answer.text
    assert counts(visitor.site) == {}
    assert seen.submit(2).heading == "2 referrals queued"
    assert in_outbox(visitor.site) == [NEW, NEW]


def test_a_spreadsheet_that_would_go_to_another_agency_is_shown_again(visitor: Visitor) -> None:
    """Although it makes as many referrals."""
    seen = _uploaded(visitor)
    config = visitor.site.settings.config
    assert config is not None
    route = config / "interventions" / "mediation.toml"
    written(route, "nottingham-city-homes", "victim-care")
    after = seen.submit(2)
    assert "Nothing was made" in after.text
    assert "Victim Care" in after.text
    assert counts(visitor.site) == {}
    looked(visitor)
    assert after.submit(2).heading == "2 referrals queued"
    assert in_outbox(visitor.site) == [ADDRESS, ADDRESS]


def _uploaded(visitor: Visitor) -> Seen:

    cells = dict(flatten(sample(visitor.site, "mediation")))
    return Visit(visitor.site).upload(as_csv(rows_of(cells, 2)))
