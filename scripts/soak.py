"""Kill what sends and delivers for minutes on end, and prove that nothing was lost.

    .venv/bin/python scripts/soak.py --minutes 10

Two `deliver` and a `batch --send` share an outbox and are killed at random moments, while a relay
on this machine drops links, answers 4yz and 5yz or says nothing. At the end the account must hold:
each referral is queued once, relayed or failed, and arrived as it was queued; twice only if marked.

With `--fleet` there are two `worker` and two `serve` on a PostgreSQL of their own, which is
crashed, paused and starved as well, and two programs that submit cases over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from referrals.directory_files import read_directory  # noqa: E402
from tests.fleet import Fleet  # noqa: E402
from tests.soak import Soak  # noqa: E402


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--minutes", type=float, default=1.0, help="how long [1]")
    options.add_argument(
        "--fleet", action="store_true", help="workers and pages on PostgreSQL, not a file"
    )
    options.add_argument("--seed", type=int, help="which chances [another each time]")
    options.add_argument("--odds", type=float, default=0.02, help="of a fault at each step [0.02]")
    given = options.parse_args()
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    directory = read_directory(ROOT / "config", ROOT / "templates" / "email")
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"Seed {seed}, in {folder}, which is kept if something is wrong.", flush=True)
    seconds = given.minutes * 60
    if given.fleet:
        server = Fleet.server_for_it()
        try:
            print(asyncio.run(Fleet(server, folder, directory, seed, given.odds).run(seconds)))
        finally:
            server.remove()
    else:
        print(asyncio.run(Soak(folder, directory, seed, given.odds).run(seconds)))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
