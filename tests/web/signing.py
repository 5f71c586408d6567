"""Somebody who signs in: reads the token of a page's form and posts it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from typing import Any

import httpx2

from referrals.bootstrap import now
from referrals.settings import Settings
from referrals.web.accounts import Account, Accounts
from referrals.web.site import Role
from referrals.web.store import open_store

PASSWORD = "purple otter lamp"


def add_account(
    settings: Settings,
    name: str = "jane.smith",
    role: Role = Role.ADMINISTRATOR,
    *,
    must_change: bool = False,
) -> Account:
    """Made as another process would, while the page runs."""
    store = open_store(settings)
    try:
        return Accounts(store).add(name, PASSWORD, role, now(), must_change=must_change)
    finally:
        store.close()


def csrf(answer: httpx2.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', answer.text)
    assert found, answer.text[-2000:]
    return found[1]


def post(
    browser: httpx2.Client, path: str, data: Mapping[str, Any] | None = None, form: str = "/sign-in"
) -> httpx2.Response:
    """With the token of the form at `form`."""
    token = csrf(browser.get(form))
    return browser.post(path, data={**(data or {}), "csrf": token})


def sign_in(
    browser: httpx2.Client, name: str = "jane.smith", password: str = PASSWORD, **more: str
) -> httpx2.Response:
    return post(browser, "/sign-in", {"name": name, "password": password, **more})


def said(answer: httpx2.Response) -> str:
    """What a page says, without its markup."""
    body = answer.text.partition("<main")[2].partition("</main>")[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", f"<main{body}")).split())
