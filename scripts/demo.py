"""What `make run` shows: drafts from the sample cases, one submitted to a local sink, and the page.

Everything happens on this machine. The drafts are real files to open; the sink passes nothing on.
The page stays until it is stopped; where nobody looks (no terminal), it is not started.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from pathlib import Path

import click

from referrals.bootstrap import build_service, build_worker, now, open_outbox
from referrals.case_files import parse
from referrals.cli.cases import print_assessment
from referrals.cli.faults import report
from referrals.cli.relay import print_arrived
from referrals.drafts import drafts_folder, save_draft
from referrals.errors import ConfigurationError, ReferralsError
from referrals.service import Referral, Service
from referrals.settings import RelaySettings, Security, Settings, WebSettings
from referrals.settings_sources import read_settings
from referrals.sink import Sink
from referrals.web.server import listen, serve

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ("city.json", "mediation.json", "county.csv")


def main() -> int:
    try:
        return asyncio.run(show())
    except KeyboardInterrupt:
        return 130
    except ReferralsError as error:
        return report(error, as_json=False)


async def show() -> int:
    using = build_service(read_settings())
    folder = drafts_folder(ROOT / "outbox")
    last: Referral | None = None
    for name in SAMPLES:
        last = draft_all(using, ROOT / "samples" / name, folder) or last
    if last is None:
        click.echo("No sample fits any intervention: nothing was drafted.", err=True)
        return 4
    async with Sink(keep=ROOT / "outbox" / "sink") as sink:
        settings = demo_settings(sink.port)
        await submit_to_sink(using, settings, last, sink)
        click.echo("\nNext: open a draft in your mail client, or write a case of your own:")
        click.echo("  .venv/bin/referrals new mediation > case.json")
        click.echo("  .venv/bin/referrals draft mediation case.json")
        if sys.stdout.isatty():
            await serve(settings, say_address)
    return 0


def demo_settings(sink_port: int) -> Settings:
    """The settings in force, with the sink as the relay and an outbox that is made anew each time.

    It is apart from the real one, so that no sample is ever taken for a referral.
    """
    outbox = ROOT / "outbox" / "demo"
    shutil.rmtree(outbox, ignore_errors=True)
    settings = read_settings()
    return settings.model_copy(
        update={
            "outbox": outbox,
            "relay": RelaySettings(host="127.0.0.1", port=sink_port, security=Security.NONE),
            "web": WebSettings(port=free_port(settings.web.port)),
        }
    )


def free_port(wanted: int) -> int:
    try:
        listen("127.0.0.1", wanted).close()
    except ConfigurationError:
        return 0
    return wanted


def say_address(address: str) -> None:
    click.echo(click.style(f"\nThe page is at {address}", bold=True))
    click.echo(
        "It submits to the local sink alone, and its outbox is outbox/demo. Ctrl-C stops it."
    )


def draft_all(using: Service, sample: Path, folder: Path) -> Referral | None:
    """Draft every intervention that fits the sample; the last that could also be submitted."""
    click.echo(click.style(f"\n{sample.relative_to(ROOT)}", bold=True, underline=True))
    case, place = using.read(parse(sample.read_bytes(), sample.name)[0])
    submittable = None
    for assessment in using.suggest(case, place):
        if not assessment.ready:
            reasons = [finding.text for finding in assessment.blocks]
            reasons += [str(problem) for problem in assessment.problems]
            click.echo(f"- {assessment.intervention.id}: not drafted. {reasons[0]}")
            continue
        referral = using.prepare(assessment)
        draft = save_draft(folder, referral.file_name, using.draft(referral), beside=True)
        print_assessment(assessment, brief=True)
        click.echo(f"  draft: {draft.path.relative_to(ROOT)}")
        if referral.agency.email:
            submittable = referral
    return submittable


async def submit_to_sink(
    using: Service, settings: Settings, referral: Referral, sink: Sink
) -> None:
    """Through the queue and a real socket to a real SMTP server, ours, which keeps what arrives."""
    submission = using.submission(referral, token=secrets.token_hex(8), accept_unverified=True)
    with open_outbox(settings) as outbox:
        outbox.queue([submission], now())
        await build_worker(outbox, settings.relay, settings).deliver_due()
        [held] = outbox.held(reference=referral.reference)
    click.echo(click.style("\nOne submitted to the local sink", bold=True, underline=True))
    click.echo(f"{held.reference} {held.status}\n")
    for arrived in sink.arrived:
        print_arrived(arrived)


if __name__ == "__main__":
    sys.exit(main())
