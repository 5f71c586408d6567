"""`serve`: the page."""

from __future__ import annotations

import gc
import importlib.util
import logging
import socket
from typing import Any

import click

from referrals.errors import ConfigurationError, Problem


@click.command("serve")
@click.option("--host", help="Listen there instead of web.host (127.0.0.1).")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Instead of web.port; 0 for a free one."
)
def serve_command(host: str | None, port: int | None) -> None:
    """Run the page until stopped (SIGTERM, Ctrl-C): the same service, in a browser.

    It listens on this machine alone unless web.host says otherwise, and then demands a login. What
    is submitted on the page is tried in its background, so `deliver` need not run besides.

    \b
    Example: referrals serve
    """
    from referrals.settings import Settings
    from referrals.settings_sources import read_settings

    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
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
    settings = read_settings()
    changes: dict[str, Any] = {}
    if host is not None:
        changes["host"] = host
    if port is not None:
        changes["port"] = port
    if changes:
        from pydantic import ValidationError

        from referrals.problems import problems_of

        web = settings.web.model_dump() | changes
        try:
            settings = Settings.model_validate(
                {**{name: getattr(settings, name) for name in Settings.model_fields}, "web": web}
            )
        except ValidationError as error:
            raise ConfigurationError(list(problems_of(error))) from None
    gc.enable()
    _run(settings)


def _run(settings: Any) -> None:
    import uvicorn

    from referrals.web.app import build_app, build_site

    site = build_site(settings)
    listening = _listen(settings.web.host, settings.web.port)
    port = listening.getsockname()[1]
    config = uvicorn.Config(
        build_app(site),
        log_level=logging.WARNING,
        access_log=False,  # paths hold references; counts are in /metrics
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=15,
        limit_concurrency=500,
        h11_max_incomplete_event_size=32_768,
    )
    host = f"[{settings.web.host}]" if ":" in settings.web.host else settings.web.host
    click.echo(f"The page is at http://{host}:{port}. Ctrl-C stops it.")
    if settings.web.address:
        click.echo(f"People reach it at {settings.web.address}.")
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.set_inheritable(True)
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            [
                Problem(
                    "web.port",
                    f"{host}:{port} can't be listened on: {error.strerror}.",
                    "Choose another with --port, or stop what uses it.",
                    "port",
                )
            ]
        ) from None
    return listening
