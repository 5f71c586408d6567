"""fastapi-mail: one list of messages over one connection, with its two templates.

Source: fastapi-mail's documentation, "Sending bulk messages" and "Jinja2 HTML templates".
"""

from __future__ import annotations

import asyncio

from fastapi_mail import (  # type: ignore[import-not-found]
    ConnectionConfig,
    FastMail,
    MessageSchema,
    MessageType,
)
from jinja2 import Environment

from benchmarks.peers.job import HOST, Job, run


def send(job: Job) -> None:
    marking, recipient = job.part("marking.txt"), job.part("recipient.txt")
    subject = Environment().from_string(job.part("subject.txt"))  # noqa: S701  (not HTML)
    config = ConnectionConfig(
        MAIL_SERVER=HOST,
        MAIL_PORT=job.port,
        MAIL_USERNAME="",
        MAIL_PASSWORD="",
        MAIL_FROM=f"service@{recipient.rpartition('@')[2]}",
        MAIL_STARTTLS=False,
        MAIL_SSL_TLS=False,
        USE_CREDENTIALS=False,
        TEMPLATE_FOLDER=job.letter,
    )
    messages = [
        MessageSchema(
            subject=subject.render(row),
            recipients=[recipient],
            reply_to=[row["officer_email"]],
            from_email=row["officer_email"],
            from_name=row["officer"],
            headers={"X-Protective-Marking": marking},
            template_body=row,
            subtype=MessageType.plain,
        )
        for row in job.rows()
    ]
    asyncio.run(
        FastMail(config).send_message(
            messages, html_template="body.html", plain_template="body.safe.txt"
        )
    )


run(send)
