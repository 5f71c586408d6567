"""What the outbox asks of procrastinate: its own statements, within our transactions.

One job for each message that waits or is under way. A job names the message by number and says
nothing of anybody. Its worker's heartbeat tells others that whoever has it still lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from procrastinate.sql import queries
from procrastinate.types import JobToDefer
from psycopg.types.json import Jsonb

from referrals.outboxes.postgres.connections import Connection, one

QUEUE = "referrals"
TASK = "referrals.deliver"
CHANNEL = f"procrastinate_queue_v1#{QUEUE}"
"""Where procrastinate tells of a new job in the queue."""

BEAT_S = 10.0
SILENT_S = 30.0
"""Procrastinate's own figures: how often a worker shows that it lives, and when it is dead."""


def defer(db: Connection, messages: Sequence[tuple[int, int]]) -> list[int]:
    """A job for each message's number and turn, due at once; their numbers.

    The lowest turn goes first: procrastinate takes the highest priority, then the oldest.
    """
    if not messages:
        return []
    jobs = [
        tuple(
            JobToDefer(
                queue_name=QUEUE,
                task_name=TASK,
                priority=-turn,
                lock=None,
                queueing_lock=None,
                args=Jsonb({"message": message}),  # type: ignore[arg-type]
                scheduled_at=None,
            )
        )
        for message, turn in messages
    ]
    return [number for (number,) in db.execute(queries["defer_jobs"], {"jobs": jobs}).fetchall()]


def turns(db: Connection, agencies: Sequence[str]) -> list[int | None]:
    """One message's turn after another, each after its agency's last; none if that is held."""
    following: dict[str, int | None] = {
        agency: one(db.execute(_NEXT_TURN, (agency, agency)))[0]
        for agency in dict.fromkeys(agencies)
    }
    found = []
    for agency in agencies:
        turn = following[agency]
        found.append(turn)
        following[agency] = None if turn is None else turn + 1
    return found


def defer_due(
    db: Connection, messages: Sequence[int], turns: Sequence[int | None]
) -> list[int | None]:
    """A job for each message that has a turn: its number."""
    due = [(each, turn) for each, turn in zip(messages, turns, strict=True) if turn is not None]
    job_of = dict(zip((each for each, _ in due), defer(db, due), strict=True))
    return [job_of.get(each) for each in messages]


def fetch(db: Connection, worker: int) -> tuple[int, int] | None:
    """Take the job whose turn it is: its number, and that of the message."""
    row = db.execute(queries["fetch_job"], {"queues": [QUEUE], "worker_id": worker}).fetchone()
    return None if row is None or row[0] is None else (row[0], row[6]["message"])


def fetch_one(db: Connection, job: int, worker: int | None) -> bool:
    """Take this very job, due or not, unless somebody has it. Procrastinate has nothing for it.

    Without a worker it is stalled from the start.
    """
    return bool(
        db.execute(
            "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s WHERE id ="
            " (SELECT id FROM procrastinate_jobs WHERE id = %s AND status = 'todo'"
            " FOR UPDATE SKIP LOCKED)",
            (worker, job),
        ).rowcount
    )


def status(db: Connection, job: int) -> str | None:
    """Procrastinate's word for it; None if there is no such job."""
    row = db.execute(queries["get_job_status"], {"job_id": job}).fetchone()
    return None if row is None else row[0]


def finish(db: Connection, job: int) -> None:
    """Forget a job that is under way: the message's row says what became of it."""
    db.execute(queries["finish_job"], {"job_id": job, "status": "succeeded", "delete_job": True})


def put_off(db: Connection, job: int, until: datetime | None, turn: int | None = None) -> None:
    """Give a job back that is under way."""
    db.execute(
        queries["retry_job"],
        {
            "job_id": job,
            "retry_at": until,
            "new_priority": None if turn is None else -turn,
            "new_queue_name": None,
            "new_lock": None,
        },
    )


def cancel(db: Connection, job: int) -> bool:
    """Forget a job that waits; false if it does not."""
    row = db.execute(
        queries["cancel_job"], {"job_id": job, "abort": False, "delete_job": True}
    ).fetchone()
    return row is not None and row[0] is not None


def forget_waiting(db: Connection, jobs: Sequence[int]) -> list[int]:
    """Forget those of these jobs that wait, but those that somebody is at; their numbers."""
    rows = db.execute(
        "DELETE FROM procrastinate_jobs WHERE id = ANY(ARRAY(SELECT id FROM procrastinate_jobs"
        " WHERE id = ANY(%s) AND status = 'todo' FOR UPDATE SKIP LOCKED)) RETURNING id",
        (list(jobs),),
    ).fetchall()
    return [number for (number,) in rows]


def forget(db: Connection, jobs: Iterable[int]) -> None:
    """Have no such jobs any more, whether they wait or are under way.

    Procrastinate has nothing for many at once.
    """
    db.execute("DELETE FROM procrastinate_jobs WHERE id = ANY(%s)", (list(jobs),))


def hasten(db: Connection, jobs: Iterable[int]) -> None:
    """Make jobs due now. Procrastinate has nothing for jobs that wait already."""
    db.execute(
        "UPDATE procrastinate_jobs SET scheduled_at = NULL WHERE status = 'todo' AND id = ANY(%s)",
        (list(jobs),),
    )


def register(db: Connection) -> int:
    """A new worker, alive as of now."""
    row: Any = db.execute(queries["register_worker"]).fetchone()
    return int(row[0])


def is_registered(db: Connection, worker: int) -> bool:
    """False once it was silent for so long that others took it for dead."""
    found = db.execute(
        "SELECT 1 FROM procrastinate_workers WHERE id = %s FOR KEY SHARE", (worker,)
    ).fetchone()
    return found is not None


def beat(db: Connection, worker: int) -> None:
    db.execute(queries["update_heartbeat"], {"worker_id": worker})


def unregister(db: Connection, worker: int) -> None:
    """What it still has is stalled from here on."""
    db.execute(queries["unregister_worker"], {"worker_id": worker})


def stalled(db: Connection) -> list[int]:
    """Jobs under way whose worker has been silent, or is no more."""
    rows = db.execute(
        queries["select_stalled_jobs_by_heartbeat"],
        {"queue": QUEUE, "task_name": None, "seconds_since_heartbeat": SILENT_S},
    ).fetchall()
    return [row[0] for row in rows]


def forget_silent(db: Connection) -> None:
    """Strike off workers that died; their jobs are stalled all the same."""
    db.execute(queries["prune_stalled_workers"], {"seconds_since_heartbeat": SILENT_S})


_NEXT_TURN = """
SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM hold WHERE agency = %s) THEN next_turn(%s) END
"""
