"""Signing in with an account of ours, one's own account, and the administrator's pages of all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from anyio import CapacityLimiter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.settings import WebSettings
from referrals.web.accounts import LONGEST_NAME, Account, AccountError, Accounts, as_name
from referrals.web.accounts import folded_name as folded
from referrals.web.login import (
    after_sign_in,
    enter,
    next_page,
    sign_in_page,
    sign_out_routes,
    why_again,
)
from referrals.web.metrics import count_sign_in
from referrals.web.passwords import SHORTEST, as_password, one_time_password, problem_with
from referrals.web.routes import Posted, SignInFirst, goto, page, posted, shown
from referrals.web.site import Role, User, roles_with, session_of, site_of, user_of
from referrals.web.store import Session, Store
from referrals.web.throttle import Attempt, KnownBrowser, Throttle, address_of, wait_words
from referrals.web.words import clock_of

log = logging.getLogger(__name__)

_WRONG = "Your account name or password is not right. Check both and try again."
ROLES = {
    Role.REFERRER: (
        "Referrer",
        "Fills in referrals, saves drafts and sees the outbox. Can’t submit.",
    ),
    Role.SENDER: (
        "Sender",
        "Also submits referrals, and retries or cancels what is in the outbox.",
    ),
    Role.ADMINISTRATOR: (
        "Administrator",
        "Also verifies addresses, reads the audit and keeps accounts.",
    ),
}


class WithAccounts:
    """`web.login = "accounts"`."""

    can_sign_out = True
    has_accounts = True

    def __init__(self, web: WebSettings, store: Store) -> None:
        self._web = web
        self._accounts = Accounts(store)
        self._throttle = Throttle(store)
        self._known = KnownBrowser(web, store)

    def user(self, request: Request, session: Session) -> User | None:
        """By the account as it is now: what was changed counts from the next request on."""
        account = self._holder(session)
        if account is None or account.must_change:
            return None
        return User(account.name, roles_with([account.role]))

    def _holder(self, session: Session) -> Account | None:
        account = self._accounts.named(session.user) if session.user else None
        return None if account is None or account.disabled else account

    def first(self, request: Request) -> Response:
        if self._holder(session_of(request)):  # whose password is to be changed first
            return goto("/account")
        return sign_in_page(request)

    def routes(self) -> Sequence[BaseRoute]:
        # Two at a time: each takes 64 MiB and a core for a while.
        turns = CapacityLimiter(2)
        administrator = Role.ADMINISTRATOR
        return [
            shown("/sign-in", self.sign_in, role=None),
            posted("/sign-in", self.signing_in, role=None, turns=turns),
            *sign_out_routes(),
            shown("/account", self.account, role=None),
            posted("/account", self.change_password, role=None, turns=turns),
            shown("/accounts", self.accounts, role=administrator),
            shown("/accounts/new", self.new_account, role=administrator),
            posted("/accounts/new", self.add_account, role=administrator, turns=turns),
            shown("/accounts/{id}", self.one_account, role=administrator),
            posted("/accounts/{id}/role", self.change_role, role=administrator),
            posted("/accounts/{id}/password", self.renew, role=administrator, turns=turns),
            posted("/accounts/{id}/disable", self.disable, role=administrator),
            posted("/accounts/{id}/enable", self.enable, role=administrator),
            shown("/accounts/{id}/remove", self.ask_to_remove, role=administrator),
            posted("/accounts/{id}/remove", self.remove, role=administrator),
        ]

    # In and out

    def sign_in(self, request: Request) -> Response:
        after = next_page(request.query_params.get("next", "/"))
        if self._holder(session_of(request)):
            return goto(after)
        return self._sign_in_page(request, after, "kept" in request.query_params)

    def _sign_in_page(
        self,
        request: Request,
        after: str,
        kept: bool,
        status: int = 200,
        name: str = "",
        errors: Mapping[str, str] | None = None,
    ) -> Response:
        return page(
            request,
            "sign-in.html",
            status,
            next=after,
            kept=kept,
            why=why_again(request, kept),
            name=name,
            errors=errors or {},
        )

    def signing_in(self, request: Request, typed: Posted) -> Response:
        name, password = typed.get("name"), typed.get("password")
        after, kept = next_page(typed.get("next", "/")), bool(typed.get("kept"))
        errors = {}
        if not name.strip():
            errors["name"] = "Enter your account name."
        if not password:
            errors["password"] = "Enter your password."  # noqa: S105  # not one
        if errors:
            return self._sign_in_page(request, after, kept, 422, name, errors)
        account, refusal = self._tried(request, name, password)
        if account is None:
            status, text = refusal
            errors["name"] = text
            return self._sign_in_page(request, after, kept, status, name, errors)
        after = after_sign_in(request, account.name, after)
        enter(request, account.name)
        answer = goto("/account" if account.must_change else after)
        self._known.remember(answer, account.name, site_of(request).now)
        return answer

    def _tried(
        self, request: Request, name: str, password: str
    ) -> tuple[Account | None, tuple[int, str]]:
        """The account if name and password are right; else a status and what to say."""
        now, name = site_of(request).now, folded(name)[:LONGEST_NAME]
        browser = self._known.key(request, name, now)
        attempt: Attempt = self._throttle.begin(name, address_of(request, self._web), browser, now)
        if attempt.wait:
            count_sign_in(request, "throttled")
            wait = wait_words(attempt.wait)
            return None, (429, f"There were too many attempts. Wait {wait}, then try again.")
        account = self._accounts.check(name, password, now)
        if account is None:
            count_sign_in(request, "refused")
            log.warning("A sign-in was refused: wrong name or password.")
            return None, (422, _WRONG)
        self._throttle.succeeded(attempt)
        count_sign_in(request, "accepted")
        return account, (200, "")

    # One's own account

    def account(self, request: Request) -> Response:
        return self._own_page(request, self._own(request))

    def _own(self, request: Request) -> Account:
        account = self._holder(session_of(request))
        if account is None:
            raise SignInFirst
        return account

    def _own_page(
        self, request: Request, account: Account, errors: dict[str, str] | None = None
    ) -> Response:
        return page(
            request,
            "account.html",
            422 if errors else 200,
            account=account,
            role=ROLES[account.role],
            shortest=SHORTEST,
            changed="changed" in request.query_params,
            errors=errors or {},
        )

    def change_password(self, request: Request, typed: Posted) -> Response:
        account = self._own(request)
        old, new = typed.get("old"), as_password(typed.get("new"))
        errors = {}
        if not old:
            errors["old"] = "Enter the password that you have now."
        problem = problem_with(new, account.name)
        if not new:
            errors["new"] = "Enter a new password."
        elif as_password(old) == new:
            errors["new"] = "Enter a new password, not the one that you have now."
        elif problem:
            errors["new"] = problem
        if not errors:
            found, (_, refusal) = self._tried(request, account.name, old)
            if found is None:
                errors["old"] = (
                    "That is not the password that you have now." if refusal == _WRONG else refusal
                )
        if errors:
            return self._own_page(request, account, errors)
        self._accounts.set_password(account.name, new, must_change=False)
        by = User(account.name, frozenset())
        self._note(request, account, "account password changed", by)
        enter(request, account.name)
        return goto("/" if account.must_change else "/account?changed")

    # All accounts

    def accounts(self, request: Request) -> Response:
        return page(
            request,
            "accounts.html",
            accounts=[(one, ROLES[one.role][0]) for one in self._accounts.all()],
            local=clock_of(site_of(request).service),
            done=_DONE.get(request.query_params.get("done", "")),
        )

    def new_account(self, request: Request) -> Response:
        return page(request, "accounts-new.html", name="", role="", roles=ROLES, errors={})

    def add_account(self, request: Request, typed: Posted) -> Response:
        role = _role(typed.get("role"))
        errors, name = {}, ""
        try:
            name = as_name(typed.get("name"))
        except AccountError as error:
            errors["name"] = str(error)
        else:
            if self._accounts.named(name):
                errors["name"] = "There is an account of that name already."
        if role is None:
            errors["role"] = "Choose what the account may do."
        password = one_time_password()
        if role is not None and not errors:
            try:
                made = self._accounts.add(
                    name, password, role, site_of(request).now, must_change=True
                )
            except AccountError as error:
                errors["name"] = str(error)
            else:
                self._note(request, made, "account added", role=role)
                return self._told_password(request, made, password)
        return page(
            request,
            "accounts-new.html",
            422,
            name=typed.get("name"),
            role=typed.get("role"),
            roles=ROLES,
            errors=errors,
        )

    def _told_password(self, request: Request, account: Account, password: str) -> Response:
        """The one answer to a form that is a page: a password may lie nowhere until it is read."""
        return page(request, "accounts-password.html", account=account, password=password)

    def one_account(self, request: Request) -> Response:
        return self._page_of_one(request, self._asked_for(request))

    def _asked_for(self, request: Request) -> Account:
        account = self._accounts.of_id(request.path_params["id"])
        if account is None:
            raise HTTPException(404)
        return account

    def _page_of_one(
        self,
        request: Request,
        account: Account,
        errors: dict[str, str] | None = None,
        template: str = "accounts-one.html",
    ) -> Response:
        return page(
            request,
            template,
            422 if errors else 200,
            account=account,
            is_own=account.name == user_of(request).name,
            roles=ROLES,
            errors=errors or {},
        )

    def change_role(self, request: Request, typed: Posted) -> Response:
        account, role = self._asked_for(request), _role(typed.get("role"))
        if role is None:
            return self._page_of_one(request, account, {"role": "Choose what the account may do."})
        try:
            self._accounts.set_role(account.name, role)
        except AccountError as error:
            return self._page_of_one(request, account, {"role": str(error)})
        self._note(request, account, "account role changed", role=role)
        return goto("/accounts?done=role")

    def renew(self, request: Request, _: Posted) -> Response:
        account, password = self._asked_for(request), one_time_password()
        self._accounts.set_password(account.name, password, must_change=True)
        self._note(request, account, "account password renewed")
        return self._told_password(request, account, password)

    def disable(self, request: Request, _: Posted) -> Response:
        account = self._asked_for(request)
        try:
            self._accounts.set_disabled(account.name, True)
        except AccountError as error:
            return self._page_of_one(request, account, {"disable": str(error)})
        self._note(request, account, "account disabled")
        return goto("/accounts?done=disabled")

    def enable(self, request: Request, _: Posted) -> Response:
        account = self._asked_for(request)
        self._accounts.set_disabled(account.name, False)
        self._note(request, account, "account enabled")
        return goto("/accounts?done=enabled")

    def ask_to_remove(self, request: Request) -> Response:
        return self._page_of_one(request, self._asked_for(request), template="accounts-remove.html")

    def remove(self, request: Request, _: Posted) -> Response:
        account = self._asked_for(request)
        try:
            self._accounts.remove(account.name)
        except AccountError as error:
            return self._page_of_one(
                request, account, {"remove": str(error)}, "accounts-remove.html"
            )
        self._note(request, account, "account removed")
        return goto("/accounts?done=removed")

    def _note(
        self, request: Request, account: Account, action: str, by: User | None = None, **more: str
    ) -> None:
        """In the audit: who changed whose account."""
        site = site_of(request)
        with site.outbox(by or user_of(request)) as outbox:
            outbox.note(action, {"account": account.name, **more}, site.now)


_DONE = {
    "role": "The role was changed, and the account’s sessions were ended.",
    "disabled": "The account was disabled. Whoever used it is signed out.",
    "enabled": "The account can be used again.",
    "removed": "The account was removed.",
}


def _role(typed: str) -> Role | None:
    return Role(typed) if typed in set(Role) else None
