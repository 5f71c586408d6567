"""What `make run` shows: drafts from the sample cases, and one submitted to a local sink.

Everything happens on this machine. The drafts are real files to open; the sink passes nothing on.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path

import click

from referrals.bootstrap import build_service, build_transport
from referrals.case_files import parse
from referrals.cli.cases import print_assessment
from referrals.cli.faults import report
from referrals.cli.relay import print_arrived
from referrals.drafts import drafts_folder, save_draft
from referrals.errors import ReferralsError
from referrals.service import Referral, Service
from referrals.settings import RelaySettings, Security
from referrals.settings_sources import read_settings
from referrals.sink import Sink

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ("city.json", "mediation.json", "county.csv")


def main() -> int:
    try:
        return show()
    except ReferralsError as error:
        return report(error, as_json=False)


def show() -> int:
    using = build_service(read_settings())
    folder = drafts_folder(ROOT / "outbox")
    last: Referral | None = None
    for name in SAMPLES:
        last = draft_all(using, ROOT / "samples" / name, folder) or last
    if last is None:
        click.echo("No sample fits any intervention: nothing was drafted.", err=True)
        return 4
    asyncio.run(submit_to_sink(using, last))
    click.echo("\nNext: open a draft in your mail client, or write a case of your own:")
    click.echo("  .venv/bin/referrals new mediation > case.json")
    click.echo("  .venv/bin/referrals draft mediation case.json")
    return 0


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


async def submit_to_sink(using: Service, referral: Referral) -> None:
    """Over a real socket to a real SMTP server, which is ours and keeps what arrives."""
    kept = ROOT / "outbox" / "sink"
    async with Sink(keep=kept) as sink:
        relay = RelaySettings(host="127.0.0.1", port=sink.port, security=Security.NONE)
        outgoing = using.outgoing(referral, token=secrets.token_hex(8), accept_unverified=True)
        receipt = await build_transport(relay).deliver(outgoing)
        click.echo(click.style("\nOne submitted to the local sink", bold=True, underline=True))
        click.echo(f"{referral.reference} {receipt.status}: {receipt.reply}\n")
        for arrived in sink.arrived:
            print_arrived(arrived)


if __name__ == "__main__":
    sys.exit(main())
