"""A worker's /health/live, /health/ready and /metrics over HTTP, in the page's shapes.

Answered in threads of their own, so that they can tell of a loop that hangs. http.server, since a
worker needs no web server but this.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from referrals import bootstrap, figures
from referrals.delivery import DeliveryStatus
from referrals.errors import ConfigurationError, Problem
from referrals.settings import Settings, is_loopback
from referrals.vitals import State, Vitals

log = logging.getLogger(__name__)

_LINK_S = 5.0
_LOOK_S = 3.0
"""Within the ten seconds that Prometheus waits; a server that was cut off answers much later."""
_MOST_AT_ONCE = 16
_JSON = "application/json"


@contextmanager
def answering(host: str, port: int, settings: Settings, vitals: Vitals) -> Iterator[str]:
    """Answer while in this block; gives the address to ask at.

    Raises:
        ConfigurationError: it can't be listened on.
    """
    try:
        server = _Server((host, port), _Answers(settings, vitals))
    except OSError as error:
        told = error.strerror or "there is no such host"
        raise ConfigurationError(
            [
                Problem(
                    "--health",
                    f"{host}:{port} can't be listened on: {told}.",
                    "Choose another, or stop what uses it.",
                    "port",
                )
            ]
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="health", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers:
    def __init__(self, settings: Settings, vitals: Vitals) -> None:
        self._settings = settings
        self._vitals = vitals
        self._lookers = ThreadPoolExecutor(4, "look")
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        self._own.register(_Own(vitals))

    def live(self) -> tuple[int, dict[str, object]]:
        """503 if the worker should be started again."""
        alive = self._vitals.is_alive
        return 200 if alive else 503, {"live": alive}

    def ready(self, inside: bool) -> tuple[int, dict[str, object]]:
        """503 if it can't deliver for a reason of its own. A relay that takes nothing is not one:
        what is queued is kept, and /metrics tells of it.
        """
        vitals = self._vitals
        worker = "ok" if vitals.state is State.DELIVERING else str(vitals.state)
        if not vitals.is_alive:
            worker = "stuck"
        parts = {"outbox": self._look(count=False).code, "worker": worker}
        ready = all(word == "ok" for word in parts.values())
        told: dict[str, object] = {"ready": ready}
        return 200 if ready else 503, told | ({"parts": parts} if inside else {})

    def metrics(self) -> bytes:
        now = bootstrap.now()
        of_now = CollectorRegistry()
        of_now.register(_Seen(list(figures.of_outbox(self._look(count=True), now))))
        return generate_latest(self._own) + generate_latest(of_now)

    def _look(self, *, count: bool) -> figures.Sight:
        asked = self._lookers.submit(
            figures.look, self._settings, "health", bootstrap.now(), count=count
        )
        try:
            return asked.result(_LOOK_S)
        except TimeoutError:
            asked.cancel()
            return figures.Sight("slow")

    def may_look_inside(self, peer: str, headers: Any) -> bool:
        """Whether somebody asks from this machine itself, or has the operator's token."""
        token = self._settings.web.metrics_token
        if figures.has_token(headers.get("Authorization", ""), token):
            return True
        return is_loopback(peer) and not any(name in headers for name in figures.FORWARDED)

    def close(self) -> None:
        self._lookers.shutdown(wait=False, cancel_futures=True)


class _Own(Collector):
    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def collect(self) -> Iterator[Metric]:
        vitals, gauge = self._vitals, figures.gauge
        yield figures.of_program()
        outcomes = CounterMetricFamily(
            "referrals_worker_outcomes",
            "Attempts since the start, by what came of them.",
            labels=["status"],
        )
        for status in DeliveryStatus:
            if status in vitals.outcomes or status in _OUTCOMES:
                outcomes.add_metric([status], vitals.outcomes[status])
        yield outcomes
        yield CounterMetricFamily(
            "referrals_worker_recovered",
            "Messages taken back from workers that died, since the start.",
            value=vitals.recovered,
        )
        yield gauge("referrals_worker_alive", "Whether its work gets on.", vitals.is_alive)
        yield gauge(
            "referrals_worker_relay_fault",
            "Whether it can relay nothing just now.",
            vitals.relay_fault is not None,
        )
        yield gauge("referrals_worker_lanes", "Connections to the relay at most.", vitals.lanes)
        if vitals.last_outcome_at is not None:
            yield gauge(
                "referrals_worker_last_outcome_timestamp_seconds",
                "When something last came of an attempt, in seconds since 1970.",
                vitals.last_outcome_at,
            )


_OUTCOMES = {
    DeliveryStatus.RELAYED,
    DeliveryStatus.DELAYED,
    DeliveryStatus.FAILED,
    DeliveryStatus.UNCERTAIN,
}


class _Seen(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], answers: _Answers) -> None:
        self.answers = answers
        self._free = threading.Semaphore(_MOST_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Theirs asks the DNS for our name, which may take its time.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Who asked has hung up, mostly; what was asked is nobody's business.
        log.debug("A question about our health was not answered.")

    def server_close(self) -> None:
        super().server_close()
        self.answers.close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _LINK_S
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d\n"

    def do_GET(self) -> None:
        answers = self.server.answers
        inside = answers.may_look_inside(self.client_address[0], self.headers)
        path = self.path.partition("?")[0]
        if path == "/health/live":
            self._json(*answers.live())
        elif path == "/health/ready":
            self._json(*answers.ready(inside))
        elif path == "/metrics" and inside:
            self._answer(200, figures.TEXT, answers.metrics())
        else:
            self._answer(404, "text/plain; charset=utf-8", b"There is no such page.\n")

    do_HEAD = do_GET

    def _json(self, code: int, told: dict[str, object]) -> None:
        self._answer(code, _JSON, json.dumps(told).encode())

    def _answer(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        return "referrals"

    def log_message(self, *_: object) -> None:
        """Paths and addresses are nobody's business."""
