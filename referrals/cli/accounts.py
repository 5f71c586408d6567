"""`accounts` and `tokens`: who may use the page and its API."""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from referrals import bootstrap
from referrals.cli.common import json_option, print_json, print_table
from referrals.cli.held import counted
from referrals.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from referrals.settings import Settings
    from referrals.web.accounts import Account, Accounts
    from referrals.web.store import Store, Token

_ROLES = ("referrer", "sender", "administrator")
_LONGEST_LINE = 4_096


@click.group("accounts")
def accounts_command() -> None:
    """The accounts of the page, for web.login = "accounts".

    A referrer fills in and drafts; a sender also submits; an administrator also verifies
    addresses, reads the audit and keeps accounts. A change of password or role, and disabling,
    ends the account's sessions at once. Each change is written into the audit.

    \b
    Example: referrals accounts add j.smith --role administrator
    """


@click.group("tokens")
def tokens_command() -> None:
    """Tokens for programs that use the JSON API.

    \b
    Example: referrals tokens add case-system --role sender --days 365
    """


def _role_option(command: Any) -> Any:
    return click.option("--role", required=True, type=click.Choice(_ROLES), help="What it may do.")(
        command
    )


_name_argument = click.argument("name", metavar="NAME")


@contextmanager
def _store() -> Iterator[tuple[Settings, Store]]:
    """Raises ConfigurationError, OutboxUnusable."""
    from referrals.settings_sources import read_settings

    if not all(map(importlib.util.find_spec, ("argon2", "starlette"))):
        raise ConfigurationError(
            [
                Problem(
                    "accounts and tokens",
                    "need packages that are not installed.",
                    "Install them: pip install 'referrals[web]'.",
                    "no-web",
                )
            ]
        )
    from referrals.web.accounts import AccountError
    from referrals.web.store import open_store

    settings = read_settings()
    store = open_store(settings)
    try:
        yield settings, store
    except AccountError as error:
        raise click.UsageError(str(error)) from None
    finally:
        store.close()


@contextmanager
def _accounts() -> Iterator[tuple[Settings, Accounts]]:
    with _store() as (settings, store):
        from referrals.web.accounts import Accounts

        yield settings, Accounts(store)


def _found(accounts: Accounts, typed: str) -> Account:
    from referrals.web.accounts import AccountError, as_name

    account = accounts.named(as_name(typed))
    if account is None:
        raise AccountError("There is no such account.")
    return account


def _note(settings: Settings, action: str, **detail: str) -> None:
    with bootstrap.open_outbox(settings) as outbox:
        outbox.note(action, detail, bootstrap.now())


def _read_password(name: str) -> str:
    """Asked for twice on a terminal; else the first line of standard input. Never an argument,
    which other users of the machine can see.
    """
    from referrals.web.passwords import as_password, problem_with

    if sys.stdin.isatty():
        typed = click.prompt("Password", hide_input=True, confirmation_prompt="Again")
    else:
        try:
            typed = sys.stdin.readline(_LONGEST_LINE).rstrip("\r\n")
        except UnicodeDecodeError:
            raise click.UsageError("The password on standard input is not UTF-8.") from None
        if not typed:
            raise click.UsageError(
                "The password is read from standard input, and there was none. Give it there, or "
                "use --one-time."
            )
    password = as_password(typed)
    problem = problem_with(password, name)
    if problem:
        raise click.UsageError(problem)
    return password


def _one_time_option(command: Any) -> Any:
    return click.option(
        "--one-time", is_flag=True, help="Make a password, print it, and have it changed at once."
    )(command)


def _password(name: str, one_time: bool) -> str:
    from referrals.web.passwords import one_time_password

    return one_time_password() if one_time else _read_password(name)


def _say(said: dict[str, Any], words: str, as_json: bool) -> None:
    if as_json:
        print_json(said)
        return
    click.echo(words)
    if "password" in said:
        click.echo(f"One-time password: {said['password']}")


def _account_json(account: Account) -> dict[str, Any]:
    return {
        "name": account.name,
        "role": str(account.role),
        "disabled": account.disabled,
        "must_change_password": account.must_change,
        "made_at": account.made_at.isoformat(),
        "signed_in_at": account.signed_in_at.isoformat() if account.signed_in_at else None,
    }


@accounts_command.command("list")
@json_option
def accounts_list(as_json: bool) -> None:
    """List the accounts."""
    with _accounts() as (settings, accounts):
        found = accounts.all()
    if as_json:
        print_json([_account_json(one) for one in found])
        return
    rows = [
        [one.name, str(one.role), _state(one), _when(one.signed_in_at, "never")] for one in found
    ]
    print_table(["Account", "Role", "State", "Last signed in (UTC)"], rows)
    if not found:
        click.echo("No accounts. Make one: referrals accounts add NAME --role administrator")
        before = settings.outbox / "web.sqlite3"
        if settings.database is not None and before.exists():
            click.echo(f"Or take over those of this machine: referrals accounts import {before}")


def _state(account: Account) -> str:
    if account.disabled:
        return "disabled"
    return "one-time password" if account.must_change else "in use"


def _when(moment: Any, otherwise: str) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else otherwise


@accounts_command.command("add")
@_name_argument
@_role_option
@_one_time_option
@json_option
def accounts_add(name: str, role: str, one_time: bool, as_json: bool) -> None:
    """Add an account. Its password is asked for, or read from standard input.

    \b
    Examples:
      referrals accounts add j.smith --role administrator
      referrals accounts add p.jones --role sender --one-time
    """
    with _accounts() as (settings, accounts):
        from referrals.web.accounts import AccountError, as_name
        from referrals.web.site import Role

        kept = as_name(name)
        if accounts.named(kept):
            raise AccountError("There is an account of that name already.")
        password = _password(kept, one_time)
        accounts.add(kept, password, Role(role), bootstrap.now(), must_change=one_time)
        _note(settings, "account added", account=kept, role=role)
    said = {"name": kept, "role": role, **({"password": password} if one_time else {})}
    _say(said, f"{kept} was added as {role}.", as_json)


@accounts_command.command("password")
@_name_argument
@_one_time_option
@json_option
def accounts_password(name: str, one_time: bool, as_json: bool) -> None:
    """Give an account another password, and end its sessions."""
    with _accounts() as (settings, accounts):
        account = _found(accounts, name)
        password = _password(account.name, one_time)
        accounts.set_password(account.name, password, must_change=one_time)
        _note(settings, "account password renewed", account=account.name)
    said = {"name": account.name, **({"password": password} if one_time else {})}
    _say(said, f"{account.name} has another password.", as_json)


@accounts_command.command("roles")
@_name_argument
@_role_option
@json_option
def accounts_roles(name: str, role: str, as_json: bool) -> None:
    """Give an account another role, and end its sessions."""
    with _accounts() as (settings, accounts):
        from referrals.web.site import Role

        account = _found(accounts, name)
        accounts.set_role(account.name, Role(role))
        _note(settings, "account role changed", account=account.name, role=role)
    _say({"name": account.name, "role": role}, f"{account.name} is {role} now.", as_json)


@accounts_command.command("disable")
@_name_argument
@click.option("--undo", is_flag=True, help="Enable it again.")
@json_option
def accounts_disable(name: str, undo: bool, as_json: bool) -> None:
    """Keep an account from signing in; whoever uses it is out at once."""
    with _accounts() as (settings, accounts):
        account = _found(accounts, name)
        accounts.set_disabled(account.name, not undo)
        _note(settings, "account enabled" if undo else "account disabled", account=account.name)
    state = "enabled again" if undo else "disabled"
    said = {"name": account.name, "disabled": not undo}
    _say(said, f"{account.name} is {state}.", as_json)


@accounts_command.command("remove")
@_name_argument
@json_option
def accounts_remove(name: str, as_json: bool) -> None:
    """Remove an account, and the referrals that were begun with it and not finished.

    The outbox and the audit keep what was done with it.
    """
    with _accounts() as (settings, accounts):
        account = _found(accounts, name)
        accounts.remove(account.name)
        _note(settings, "account removed", account=account.name)
    _say({"name": account.name, "removed": True}, f"{account.name} was removed.", as_json)


@accounts_command.command("import")
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@json_option
def accounts_import(file: str, as_json: bool) -> None:
    """Take over the accounts and tokens of another machine's web.sqlite3.

    For when the outbox moves into PostgreSQL. Passwords and tokens go on as before; an account or
    token whose name is there already stays as it is. Sessions and referrals that were begun are
    not taken over. FILE may be in use; it stays as it is, but for being brought up to date.

    \b
    Example: referrals accounts import outbox/web.sqlite3
    """
    with _store() as (settings, store):
        from pathlib import Path

        from referrals.web.carry_over import carry_over
        from referrals.web.store_file import StoreFile

        old = StoreFile(Path(file))
        try:
            carried = carry_over(old, store)
        finally:
            old.close()
        for name in carried.accounts:
            _note(settings, "account imported", account=name)
        for name in carried.tokens:
            _note(settings, "token imported", token=name)
    if as_json:
        print_json(
            {
                "accounts": carried.accounts,
                "accounts_there": carried.accounts_there,
                "tokens": carried.tokens,
                "tokens_there": carried.tokens_there,
            }
        )
        return
    accounts, tokens = len(carried.accounts), len(carried.tokens)
    click.echo(f"Taken over: {counted(accounts, 'account')}, {counted(tokens, 'token')}.")
    there = [*carried.accounts_there, *carried.tokens_there]
    if there:
        click.echo(f"There already, and left as they are: {', '.join(there)}.")


@accounts_command.command("sign-out")
@click.option("--everybody", is_flag=True, help="Needed, so that nobody does it by mistake.")
@json_option
def accounts_sign_out(everybody: bool, as_json: bool) -> None:
    """End every session: all have to sign in again, in whatever way they do."""
    if not everybody:
        raise click.UsageError("This ends everybody's sessions: say --everybody.")
    with _store() as (settings, store):
        ended = store.end_everybodys()
        _note(settings, "sessions ended", count=str(ended))
    _say({"ended": ended}, f"{counted(ended, 'session')} ended.", as_json)


# Tokens


def _token_json(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "role": str(token.role),
        "made_by": token.made_by,
        "made_at": token.made_at.isoformat(),
        "expires_at": token.expires_at.isoformat(),
        "last_used_at": token.last_used_at.isoformat() if token.last_used_at else None,
        "good": token.is_good(bootstrap.now()),
    }


@tokens_command.command("add")
@click.argument("name", metavar="NAME")
@_role_option
@click.option(
    "--days",
    type=click.IntRange(1, 3_650),
    default=365,
    show_default=True,
    help="How long it is good for.",
)
@json_option
def tokens_add(name: str, role: str, days: int, as_json: bool) -> None:
    """Make a token and print it, this once: we keep only its SHA-256.

    The audit names who uses it as token:NAME.

    \b
    Example: referrals tokens add case-system --role sender --days 365
    """
    with _store() as (settings, store):
        from referrals.web.accounts import as_name
        from referrals.web.site import Role

        kept, now = as_name(name), bootstrap.now()
        keep = timedelta(days=days)
        token = store.add_token(kept, Role(role), _actor(), now, keep)
        if token is None:
            raise click.UsageError(
                "There is a good token of that name. Revoke it first, or choose another name."
            )
        _note(settings, "token added", token=kept, role=role)
    if as_json:
        print_json(
            {"name": kept, "role": role, "token": token, "expires_at": (now + keep).isoformat()}
        )
    else:
        click.echo(token)
        click.echo(f"It is good for {days} days, and shown this once.", err=True)


@tokens_command.command("list")
@json_option
def tokens_list(as_json: bool) -> None:
    """List the tokens; never what they are."""
    with _store() as (_, store):
        found = store.tokens()
    if as_json:
        print_json([_token_json(one) for one in found])
        return
    now = bootstrap.now()
    rows = [
        [one.name, str(one.role), "good" if one.is_good(now) else "of no use any more",
         _when(one.expires_at, ""), _when(one.last_used_at, "never"), one.made_by]
        for one in found
    ]  # fmt: skip
    print_table(["Token", "Role", "State", "Until (UTC)", "Last used (UTC)", "Made by"], rows)
    if not found:
        click.echo("No tokens.")


@tokens_command.command("revoke")
@click.argument("name", metavar="NAME")
@json_option
def tokens_revoke(name: str, as_json: bool) -> None:
    """Make a token worthless, from its next use on."""
    with _store() as (settings, store):
        from referrals.web.accounts import as_name

        kept = as_name(name)
        if not store.revoke_token(kept, bootstrap.now()):
            raise click.UsageError("There is no token of that name, or it was revoked before.")
        _note(settings, "token revoked", token=kept)
    _say({"name": kept, "revoked": True}, f"{kept} was revoked.", as_json)


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
