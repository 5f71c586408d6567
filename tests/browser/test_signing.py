"""Signing in with an account, in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from referrals.settings import Settings
from tests.browser.conftest import DESKTOP, Look, Site, both_devices, serving
from tests.browser.officer import Officer
from tests.web.signing import PASSWORD, add_account

NEW = "a quite different otter"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    settings = Settings(outbox=folder / "outbox")
    for look in ("desktop", "phone"):
        add_account(settings, f"jane.{look}")
    with serving(folder, {"REFERRALS_WEB_LOGIN": "accounts"}) as running:
        yield running


@pytest.fixture
def officer(page: Page, look: Look, shoot: Callable[[str], None]) -> Officer:
    return Officer(page, look, shoot)


def sign_in(officer: Officer, name: str, password: str) -> None:
    officer.page.get_by_label("Account name").fill(name)
    officer.page.get_by_label("Password", exact=True).fill(password)
    officer.presses("Sign in")


@both_devices
def test_in_and_out_again(officer: Officer, page: Page, look: Look) -> None:
    page.goto("/outbox")
    officer.sees("Sign in", "sign-in")
    officer.presses("Sign in")
    expect(page.get_by_role("alert").get_by_role("link")).to_have_count(2)
    sign_in(officer, f"jane.{look}", "wrong otter lamp")
    officer.sees("Sign in", "sign-in-wrong")
    expect(page.get_by_label("Account name")).to_have_value(f"jane.{look}")
    expect(page.get_by_label("Password", exact=True)).to_have_value("")
    sign_in(officer, f"jane.{look}", PASSWORD)
    officer.sees("Outbox")  # where they were going
    page.goto("/account")
    officer.sees("Your account", "account")
    page.get_by_label("Password that you have now").fill("wrong otter lamp")
    page.get_by_label("New password").fill("short")
    officer.presses("Change password")
    officer.sees("Your account", "account-wrong")
    page.get_by_label("Password that you have now").fill(PASSWORD)
    page.get_by_label("New password").fill(NEW)
    officer.presses("Change password")
    expect(page.locator(".govuk-notification-banner")).to_contain_text("was changed")
    officer.follows("Sign out")
    officer.sees("Do you want to sign out?", "sign-out")
    officer.presses("Sign out")
    officer.sees("You are signed out", "signed-out")
    page.goto("/outbox")
    sign_in(officer, f"jane.{look}", PASSWORD)
    officer.sees("Sign in")
    sign_in(officer, f"jane.{look}", NEW)
    officer.sees("Outbox")
    page.goto("/accounts")
    officer.sees("Accounts", "accounts")


def test_an_administrator_keeps_accounts(
    officer: Officer, page: Page, look: Look, new_page: Callable[[], Page], site: Site
) -> None:
    add_account(Settings(outbox=site.outbox), "kim.keeper")
    page.goto("/")
    sign_in(officer, "kim.keeper", PASSWORD)
    officer.follows("Accounts")
    officer.follows("Add an account")
    officer.sees("Add an account", "accounts-new")
    officer.presses("Add the account")
    officer.sees("Add an account", "accounts-new-wrong")
    page.get_by_label("Account name").fill("sam.new")
    page.get_by_role("radio").first.check()
    officer.presses("Add the account")
    officer.sees("One-time password", "accounts-password")
    once = page.locator("#one-time-password").inner_text()

    other = Officer(new_page(), look)
    other.page.goto("/")
    sign_in(other, "sam.new", once)
    other.sees("Choose a password", "account-must-change")
    other.page.goto("/outbox")
    other.sees("Choose a password")
    other.page.get_by_label("The one-time password").fill(once)
    other.page.get_by_label("New password").fill(NEW)
    other.presses("Save the password")
    other.sees("Refer somebody for help")
    expect(other.page.get_by_role("link", name="Audit")).to_have_count(0)
    other.page.goto("/accounts")
    other.sees(other.page.get_by_role("heading", level=1).inner_text(), "not-allowed")

    officer.follows("All accounts")
    officer.follows("sam.new: change this account")
    officer.shoot("accounts-one")
    officer.sees("Account sam.new")
    officer.presses("Disable the account")
    other.page.goto("/outbox")
    other.sees("Sign in")
    page.goto("/accounts")
    officer.follows("sam.new: change this account")
    officer.follows("Remove the account")
    officer.sees("Do you want to remove the account sam.new?", "accounts-remove")
    officer.presses("Remove the account")
    expect(page.get_by_role("link", name="sam.new")).to_have_count(0)


@pytest.mark.parametrize("look", [DESKTOP, Look("phone", javascript=False)], ids=str)
def test_signing_in_needs_no_script(officer: Officer, page: Page, site: Site, look: Look) -> None:
    name = f"plain.{look.device}"
    add_account(Settings(outbox=site.outbox), name)
    page.goto("/sign-in")
    sign_in(officer, name, PASSWORD)
    officer.sees("Refer somebody for help")
