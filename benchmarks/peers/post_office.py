"""django-post-office on SQLite: queued with send_many, then its own send_queued_mail.

Of the ways that its documentation shows, the fastest that keeps each message on disk before it is
submitted. SQLite waits for the disk at each commit and keeps a write-ahead log, as ours does.

Source: django-post-office's README, "send_many()", "Batch Size" and "Settings".
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import django  # type: ignore[import-not-found]
from django.conf import settings  # type: ignore[import-not-found]
from django.core.management import call_command  # type: ignore[import-not-found]

from benchmarks.peers.job import HOST, Job, run

NAME = "referral"
GROUP = 1_000


def set_up(job: Job) -> None:
    durable = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
    settings.configure(
        INSTALLED_APPS=["post_office"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": job.folder / "post_office.sqlite3",
                "OPTIONS": {"init_command": durable, "transaction_mode": "IMMEDIATE"},
            }
        },
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        EMAIL_HOST=HOST,
        EMAIL_PORT=job.port,
        POST_OFFICE={
            "BATCH_SIZE": GROUP,
            "THREADS_PER_PROCESS": 5,
            "LOG_LEVEL": 1,  # it logs failures only: one row less to write for each message
            "MESSAGE_ID_ENABLED": True,
        },
        LOGGING_CONFIG=None,
    )
    django.setup()


def prepare(job: Job) -> None:
    Path(job.folder / "post_office.sqlite3").unlink(missing_ok=True)
    set_up(job)
    call_command("migrate", verbosity=0)
    from post_office.models import EmailTemplate  # type: ignore[import-not-found]

    EmailTemplate.objects.create(
        name=NAME,
        subject=job.part("subject.txt"),
        content=job.part("body.safe.txt"),
        html_content=job.part("body.html"),
    )


def send(job: Job) -> None:
    set_up(job)
    from post_office import mail  # type: ignore[import-not-found]
    from post_office.models import EmailTemplate

    marking, recipient = job.part("marking.txt"), job.part("recipient.txt")
    template = EmailTemplate.objects.get(name=NAME)
    rows = job.rows()
    while group := list(islice(rows, GROUP)):
        mail.send_many(
            [
                {
                    "sender": f"{row['officer']} <{row['officer_email']}>",
                    "recipients": [recipient],
                    "template": template,
                    "context": row,
                    "headers": {
                        "Reply-To": row["officer_email"],
                        "X-Protective-Marking": marking,
                    },
                }
                for row in group
            ]
        )
    call_command("send_queued_mail", processes=2, lockfile=str(job.folder / "lock"))


run(send, prepare)
