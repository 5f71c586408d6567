"""What Prometheus may know: counts and times, never a person, a reference or a path's values."""

from __future__ import annotations

import hmac
import time
from collections import Counter as Tally
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from referrals import bootstrap
from referrals.delivery import DeliveryStatus
from referrals.errors import ReferralsError
from referrals.settings import WebSettings, is_loopback
from referrals.web.relay_metrics import relay_figures
from referrals.web.site import site_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from referrals.web.site import Site

# They are a second line for each series, which nobody asks after.
disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class Metrics:
    """The figures of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "referrals_http_requests",
            "Requests answered, by route, method and status.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "referrals_http_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("route", "method"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._sign_ins = Counter(
            "referrals_sign_ins",
            "Attempts to sign in, by what came of them.",
            ("outcome",),
            registry=self.registry,
        )

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)

    def signed_in(self, outcome: str) -> None:
        """Count an attempt to sign in; `outcome` is a word of ours, never a name."""
        self._sign_ins.labels(outcome).inc()


def count_sign_in(request: Request, outcome: str) -> None:
    """Count an attempt to sign in, such as `accepted`, `refused` or `throttled`."""
    metrics: Metrics | None = getattr(request.state, "metrics", None)
    if metrics is not None:
        metrics.signed_in(outcome)


class Measured:
    """The very outermost layer: it times every request, refused ones too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._metrics = Metrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["metrics"] = self._metrics
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, noting)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            seconds = time.perf_counter() - began
            self._metrics.answered(_route(scope), method, status, seconds)


def _route(scope: Scope) -> str:
    """The template of a path, `/outbox/{reference}`: it holds no value and is one of few."""
    route = scope.get("route")
    return f"{scope.get('root_path', '')}{route.path}" if isinstance(route, Route) else "(none)"


class _Now(Collector):
    """What is counted when somebody asks: the outbox, the courier and the sessions."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def collect(self) -> Iterator[Metric]:
        site, now = self._site, self._site.now
        usable = 1
        try:
            with bootstrap.open_outbox(site.settings, "metrics") as outbox:
                counts = Tally(outbox.counts())
                due = outbox.oldest_due(now)
                relays = list(relay_figures(outbox, site.settings, now))
        except ReferralsError:
            usable, counts, due, relays = 0, Tally(), None, []
        yield _gauge("referrals_outbox_usable", "Whether the outbox can be read.", usable)
        if usable:
            messages = GaugeMetricFamily(
                "referrals_outbox_messages", "Messages in the outbox.", labels=["status"]
            )
            for status in DeliveryStatus:
                if status is not DeliveryStatus.DRAFTED:
                    messages.add_metric([status], counts[status])
            yield messages
            yield _gauge(
                "referrals_outbox_oldest_due_seconds",
                "How long the message that is due longest has been so; 0 where none is.",
                (now - due).total_seconds() if due else 0.0,
            )
            yield from relays
        courier = site.courier
        yield _gauge("referrals_courier_runs", "Whether the courier runs.", int(courier.runs))
        yield _gauge(
            "referrals_courier_fault",
            "Whether the courier can relay nothing just now.",
            int(bool(courier.fault)),
        )
        web = site.settings.web
        try:
            sessions = site.store.signed_in(now, timedelta(minutes=web.idle_minutes))
        except ReferralsError:
            return
        yield _gauge("referrals_sessions", "Sessions of people who are signed in.", sessions)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def may_look_inside(request: Request, web: WebSettings) -> bool:
    """Whether the request is from this machine itself, or has the operator's token.

    Where `web.address` is set or somebody forwards, a proxy on this machine may be speaking for
    anybody: then only the token counts.
    """
    given = request.headers.get("authorization", "")
    if web.metrics_token is not None and given[:7].lower() == "bearer ":
        expected = web.metrics_token.get_secret_value()
        if hmac.compare_digest(given[7:].strip().encode(), expected.encode()):
            return True
    if web.address is not None or any(name in request.headers for name in _FORWARDED):
        return False
    return request.client is not None and is_loopback(request.client.host)


async def _metrics(request: Request) -> Response:
    site = site_of(request)
    if not may_look_inside(request, site.settings.web):
        raise HTTPException(404)
    metrics: Metrics | None = getattr(request.state, "metrics", None)

    def figures() -> bytes:
        now = CollectorRegistry()
        now.register(_Now(site))
        return (generate_latest(metrics.registry) if metrics else b"") + generate_latest(now)

    content = await run_in_threadpool(figures)
    return Response(content, headers={"Content-Type": _TEXT})


def routes() -> list[BaseRoute]:
    return [Route("/metrics", _metrics, methods=["GET"])]
