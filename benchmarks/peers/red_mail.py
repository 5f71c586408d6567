"""redmail: one EmailSender kept open for all messages, its templates read from a folder.

Source: redmail's documentation, "Sending Multiple Emails" and "Using Templates".
"""

from __future__ import annotations

from jinja2 import Environment
from redmail import EmailSender  # type: ignore[import-not-found]

from benchmarks.peers.job import HOST, Job, run


def send(job: Job) -> None:
    marking, recipient = job.part("marking.txt"), job.part("recipient.txt")
    subject = Environment().from_string(job.part("subject.txt"))  # noqa: S701  (not HTML)
    sender = EmailSender(HOST, job.port, use_starttls=False)
    sender.set_template_paths(text=str(job.letter), html=str(job.letter))
    with sender:
        for row in job.rows():
            sender.send(
                subject=subject.render(row),
                sender=f"{row['officer']} <{row['officer_email']}>",
                receivers=[recipient],
                headers={"Reply-To": row["officer_email"], "X-Protective-Marking": marking},
                text_template="body.txt",
                html_template="body.html",
                body_params=row,
            )


run(send)
