"""Whole messages, byte for byte, with clock and ids fixed."""

from __future__ import annotations

import runpy
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from referrals.directory import Directory

FOLDER = Path(__file__).resolve().parent
RENEW = runpy.run_path(str(FOLDER / "renew.py"), run_name="renew")
MADE: dict[str, bytes] = dict(RENEW["messages"]())
GOLDEN = {file.name: file for file in FOLDER.glob("*.eml")}
HOW = "If this is meant, run `python tests/golden/renew.py` and read the difference."


@pytest.mark.parametrize("name", sorted(MADE.keys() | GOLDEN.keys()))
def test_a_message_is_as_it_was(name: str) -> None:
    assert name in MADE, f"{name} is made from no case any more. {HOW}"
    assert name in GOLDEN, f"{name} is not there yet. {HOW}"
    now, before = MADE[name], GOLDEN[name].read_bytes()
    if now != before:
        lines = zip(readable(before), readable(now), strict=False)
        first = next((pair for pair in lines if pair[0] != pair[1]), ("its length", "its length"))
        pytest.fail(f"{name} has changed: {first[0]!r} is now {first[1]!r}. {HOW}", pytrace=False)


def readable(content: bytes) -> list[str]:
    """Headers, then each part decoded, line by line."""
    message = message_from_bytes(content, policy=default)
    lines = [f"{name}: {value}" for name, value in message.items()]
    for part in message.walk():
        if not part.is_multipart():
            lines += str(part.get_content()).splitlines()
    return lines


def test_every_intervention_has_a_golden_draft_and_one_an_outgoing_message(
    directory: Directory,
) -> None:
    drafts = {f"{name}.draft.eml" for name in directory.interventions}
    assert set(MADE) == drafts | {f"{RENEW['OUTGOING']}.outgoing.eml"}


def test_line_ends_survive_git() -> None:
    """`.gitattributes` says `*.eml -text`: a checkout must not turn CRLF into LF."""
    attributes = (FOLDER.parents[1] / ".gitattributes").read_text(encoding="utf-8")
    assert "*.eml -text" in attributes.splitlines()
    for file in GOLDEN.values():
        assert b"\n" not in file.read_bytes().replace(b"\r\n", b"")
