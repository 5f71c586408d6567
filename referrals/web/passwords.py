"""Passwords: what may be one, and how it is kept.

Length counts, not what kinds of characters there are; what is commonly chosen is refused; nobody
has to change theirs now and then. Source: NIST SP 800-63B-4 §3.1.1.2; NCSC, "Password
administration for system owners".
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from referrals.reference import ALPHABET

SHORTEST = 12
LONGEST = 200

_WORDS = (
    "administrator", "password", "passwort", "passw", "welcome", "letmein", "changeme", "default",
    "iloveyou", "ilove", "sunshine", "princess", "football", "baseball", "monkey", "dragon",
    "superman", "batman", "pokemon", "starwars", "liverpool", "chelsea", "arsenal", "manchester",
    "united", "everton", "rangers", "celtic", "forest", "nottingham", "nottinghamshire",
    "nottscounty", "england", "police", "council", "referral", "referrals", "hatecrime", "secret",
    "master", "login", "admin", "user", "temp", "test", "hello", "summer", "winter", "spring",
    "autumn", "january", "february", "march", "april", "may", "june", "july", "august",
    "september", "october", "november", "december", "monday", "friday", "michael", "charlie",
    "thomas", "jordan", "ashley", "daniel", "jessica", "qazwsx", "qazwsxedc", "qweasdzxc",
    "qwertyuiop", "qwerty", "asdf", "zxcv", "qwe", "asd", "zxc", "abc", "the", "my", "and", "love",
    "correcthorsebatterystaple", "international", "professional", "michaeljackson",
    "supernatural", "cookiemonster", "peanutbutter", "playstation", "justinbieber", "onedirection",
    "transformers", "finalfantasy", "leavemealone", "motherfucker", "jamesbond", "minecraft",
    "linkedin", "facebook", "sonyericsson", "needforspeed", "counterstrike", "ingodwetrust",
    "jesus", "hannahmontana", "edwardcullen", "residentevil", "sebastian", "christopher",
    "alexander", "cosmopolitan", "fallenangel", "ihate", "family", "internazionale",
)  # fmt: skip
"""Of what the common long passwords in published lists of broken ones are put together."""

_RUNS = tuple(
    turned
    for row in (
        "01234567890123456789", "abcdefghijklmnopqrstuvwxyz", "qwertyuiop", "asdfghjkl", "zxcvbnm",
        "qazwsxedcrfvtgbyhnujmikolp", "1q2w3e4r5t6y7u8i9o0p", "q1w2e3r4t5y6u7i8o9p0",
        "1qaz2wsx3edc4rfv5tgb", "zaq1xsw2cde3vfr4", "1qazxsw23edcvfr4",
    )
    for turned in (row, row[::-1])
)  # fmt: skip
_PLAIN = str.maketrans("@4310$5!7", "aaeiossit")


def as_password(typed: str) -> str:
    """The same on every keyboard. Source: NIST SP 800-63B-4 §3.1.1.2 (NFC or NFKC)."""
    return unicodedata.normalize("NFKC", typed)


def problem_with(password: str, name: str) -> str | None:
    """Why it may not be an account's password, in words for whoever chose it; None if it may.

    Args:
        password: as `as_password` made it.
        name: the account's.
    """
    if len(password) < SHORTEST:
        return f"The password must be {SHORTEST} characters or more. Three words together do well."
    if len(password) > LONGEST:
        return f"The password must be {LONGEST} characters or fewer."
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in password):
        return "The password has a character that can’t be typed everywhere. Choose another."
    folded = password.casefold()
    own = [part for part in re.split(r"[^\w]+|_", name.casefold()) if len(part) >= 3]
    left = folded
    for part in sorted({name.casefold(), *own}, key=len, reverse=True):
        left = left.replace(part, "")
    if left != folded and _is_poor(left):
        return "The password must not be made of your account’s name. Choose another."
    if _is_poor(folded):
        return "The password is easy to guess: it is made of what many people use. Choose another."
    return None


def _is_poor(folded: str) -> bool:
    """Whether little is left of it without common words, runs of keys, repeats and digits."""
    if len(set(folded)) <= 4:
        return True
    spellings = [folded, re.sub(r"[\W_]+", "", folded.translate(_PLAIN))]
    return any(_left(spelling) < 6 for spelling in spellings)


def _left(text: str) -> float:
    """How many letters are left that somebody may have thought of; a digit or sign is half one."""
    repeated = re.fullmatch(r"(.+?)\1+", text)
    if repeated:
        text = repeated[1]
    for word in sorted(_WORDS, key=len, reverse=True):
        text = text.replace(word, " ")
    kept = []
    place = 0
    while place < len(text):
        run = max((_run(text, place, row) for row in _RUNS), default=0)
        if run >= 4:
            place += run
        else:
            kept.append(text[place])
            place += 1
    return sum(1 if letter.isalpha() else 0.5 for letter in kept if not letter.isspace())


def _run(text: str, place: int, row: str) -> int:
    length = 0
    while place + length < len(text) and text[place : place + length + 1] in row:
        length += 1
    return length


def one_time_password() -> str:
    """`K7QM-29TX-WCF4-HJ3P`, 74 bits, to be read out once and changed at the first sign-in."""
    letters = "".join(secrets.choice(ALPHABET) for _ in range(16))
    return "-".join(letters[start : start + 4] for start in range(0, 16, 4))


class Hashes:
    """Argon2id with argon2-cffi's own parameters (RFC 9106 §4): 64 MiB and a while each."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()

    def make(self, password: str) -> str:
        return self._hasher.hash(password)

    def fits(self, password: str, kept: str | None) -> bool:
        """Without `kept` (there is no such account) it takes as long, and never fits."""
        try:
            self._hasher.verify(kept or self._nobodys, password)
        except (VerificationError, InvalidHashError):
            return False
        return kept is not None

    def is_old(self, kept: str) -> bool:
        """Whether it was made with other parameters than one would be made with today."""
        return self._hasher.check_needs_rehash(kept)

    @cached_property
    def _nobodys(self) -> str:
        return self._hasher.hash(secrets.token_urlsafe(16))
