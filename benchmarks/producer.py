"""Queues real letters in PostgreSQL with `queue()`, as the page and `batch --send` do.

    python -m benchmarks.producer URL FIRST COUNT [--group N] [--rate R] [--agencies A,B] [--size S]

Prints JSON: how many, and the seconds from the first call to the end of the last.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime

from benchmarks.letters import Letters
from referrals.outboxes.postgres.connections import Database
from referrals.outboxes.postgres.outbox import PostgresOutbox


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--group", type=int, default=250, help="so many with each call")
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second; 0 for at once")
    parser.add_argument("--agencies", default="busy")
    parser.add_argument("--size", type=int, default=0)
    asked = parser.parse_args()
    letters, agencies = Letters(asked.size), asked.agencies.split(",")
    with PostgresOutbox.open(Database.of(asked.url), "bench") as outbox:
        began = time.perf_counter()
        for turn, start in enumerate(range(0, asked.count, asked.group)):
            if asked.rate:
                time.sleep(max(0.0, began + turn / asked.rate - time.perf_counter()))
            numbers = range(
                asked.first + start, asked.first + min(start + asked.group, asked.count)
            )
            some = [letters.submission(one, agencies[one % len(agencies)]) for one in numbers]
            outbox.queue(some, datetime.now(UTC))
        seconds = time.perf_counter() - began
    print(json.dumps({"queued": asked.count, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
