"""Writes the golden messages anew: `python tests/golden/renew.py`, then read what has changed.

A case file is named after its intervention. Every message is a draft; one is outgoing too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
OUTGOING = "repeat-victim-panel"
TOKEN = "0123456789abcdef"

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))


def messages() -> Iterator[tuple[str, bytes]]:
    """File name and bytes of each golden message, as the code makes them now."""
    from referrals.case_files import parse
    from referrals.directory_files import read_directory
    from referrals.rendering import environment
    from referrals.service import Service
    from referrals.settings import MailSettings

    letters = ROOT / "templates" / "email"
    mail = MailSettings(sender="referrals@council.example.com", sender_name="Example Referrals")
    directory = read_directory(ROOT / "config", letters)
    service = Service(directory, environment(letters), mail, lambda: NOW)
    for file in sorted((FOLDER / "cases").glob("*.json")):
        (raw,) = parse(file.read_bytes(), file.name)
        case, place = service.read(raw)
        referral = service.prepare(service.assess(case, place, file.stem))
        yield f"{file.stem}.draft.eml", service.draft(referral)
        if file.stem == OUTGOING:
            outgoing = service.outgoing(referral, token=TOKEN, accept_unverified=True)
            yield f"{file.stem}.outgoing.eml", outgoing.content


def main() -> None:
    made = dict(messages())
    for old in FOLDER.glob("*.eml"):
        if old.name not in made:
            old.unlink()
            print(f"removed {old.name}")
    for name, content in made.items():
        file = FOLDER / name
        same = file.exists() and file.read_bytes() == content
        file.write_bytes(content)
        print(f"{'same   ' if same else 'written'} {name}")


if __name__ == "__main__":
    main()
