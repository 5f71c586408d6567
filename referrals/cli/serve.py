"""`serve`: the page."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
from contextlib import suppress

import click

from referrals.errors import ConfigurationError, Problem
from referrals.settings import Settings

_PACKAGES = (
    "argon2",
    "authlib",
    "govuk_frontend_jinja",
    "httpx2",
    "prometheus_client",
    "python_multipart",
    "starlette",
    "uvicorn",
)


@click.command("serve")
@click.option("--host", help="Listen there instead of at web.host (127.0.0.1).")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Instead of web.port (8080); 0 for a free one."
)
def serve_command(host: str | None, port: int | None) -> None:
    """Run the page until stopped (SIGTERM, Ctrl-C): the same service, in a browser.

    It listens on this machine alone unless web.host says otherwise, and then demands that people
    sign in (web.login). What is submitted on the page is tried in its background, so
    `referrals deliver` need not run besides.

    A stop answers first what was asked, for ten seconds at most, and the exit code is 0. The same
    signal a second time ends it at once.

    \b
    Example: referrals serve
    """
    from referrals.settings_sources import read_settings

    if not all(map(importlib.util.find_spec, _PACKAGES)):
        raise ConfigurationError(
            [
                Problem(
                    "serve",
                    "needs packages that are not installed.",
                    "Install them: pip install 'referrals[web]'.",
                    "no-web",
                )
            ]
        )
    settings = _with(read_settings(), host, port)
    from referrals.web.server import serve

    gc.enable()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(settings, lambda address: _say(settings, address)))


def _with(settings: Settings, host: str | None, port: int | None) -> Settings:
    """The settings with what the command line gave, checked again."""
    from pydantic import ValidationError

    from referrals.problems import problems_of
    from referrals.settings import WebSettings

    given = {"host": host, "port": port}
    web = settings.web.model_dump() | {
        name: value for name, value in given.items() if value is not None
    }
    try:
        return settings.model_copy(update={"web": WebSettings.model_validate(web)})
    except ValidationError as error:
        problems = [
            Problem(
                "web" if one.where == "(the whole)" else f"web.{one.where}",
                one.what,
                one.remedy,
                one.code,
            )
            for one in problems_of(error)
        ]
        raise ConfigurationError(problems) from None


def _say(settings: Settings, address: str) -> None:
    click.echo(f"The page is at {address}. Ctrl-C stops it.")
    if settings.web.address:
        click.echo(f"People reach it at {settings.web.address}.")
