"""mailmerge's three input files; what is timed is its own command line, not this.

The template is one file with header and both parts, the database is our CSV, and the server has
no TLS or login. Source: mailmerge's README, "HTML formatting" and "Example".
"""

from __future__ import annotations

from benchmarks.peers.job import HOST, Job, run

BOUNDARY = "=-=-=-=-part-of-a-referral-=-=-=-="


def prepare(job: Job) -> None:
    template = f"""\
TO: {job.part("recipient.txt")}
FROM: {{{{ officer }}}} <{{{{ officer_email }}}}>
REPLY-TO: {{{{ officer_email }}}}
SUBJECT: {job.part("subject.txt")}
X-PROTECTIVE-MARKING: {job.part("marking.txt")}
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="{BOUNDARY}"

This is a MIME-encoded message.
--{BOUNDARY}
Content-Type: text/plain

{job.part("body.txt")}
--{BOUNDARY}
Content-Type: text/html

{job.part("body.html")}
--{BOUNDARY}--
"""
    server = f"[smtp_server]\nhost = {HOST}\nport = {job.port}\n"
    (job.folder / "mailmerge_template.txt").write_text(template, encoding="utf-8")
    (job.folder / "mailmerge_server.conf").write_text(server, encoding="utf-8")
    (job.folder / "mailmerge_database.csv").write_bytes((job.folder / "rows.csv").read_bytes())


run(prepare=prepare)
