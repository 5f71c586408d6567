"""A referral's own reference: fit to be read out over the phone."""

from __future__ import annotations

import hashlib

ALPHABET = "CDFGHJKLMNPQRTVWXYZ234679"
"""No 0/O, 1/I, 5/S, 8/B; and no A, E, U, so that no word comes of it."""

_PAYLOAD = 11


def referral_reference(case_reference: str, intervention_id: str) -> str:
    """`K7QM-29TX-WCF4`: the same for the same case and intervention, on every machine.

    Eleven characters (51 bits) of a digest, and a check character. It gives away neither.
    """
    digest = hashlib.sha256(f"{case_reference}\0{intervention_id}".encode()).digest()
    # Of the whole number only the last eleven places are shown.
    number = int.from_bytes(digest[:16], "big") % len(ALPHABET) ** _PAYLOAD
    letters = []
    for _ in range(_PAYLOAD):
        number, place = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[place])
    payload = "".join(letters)
    whole = payload + _check_character(payload)
    return "-".join(whole[start : start + 4] for start in range(0, len(whole), 4))


def is_reference(text: str) -> bool:
    """Whether the check character is right: one wrong or two swapped neighbours are noticed."""
    whole = text.replace("-", "").upper()
    if len(whole) != _PAYLOAD + 1 or any(letter not in ALPHABET for letter in whole):
        return False
    return _check_character(whole[:-1]) == whole[-1]


def _check_character(payload: str) -> str:
    """Weighted sum mod 25; the weights and their differences have no factor 5 in common with it."""
    total = sum(
        weight * ALPHABET.index(letter) for weight, letter in zip(_WEIGHTS, payload, strict=True)
    )
    return ALPHABET[-total % len(ALPHABET)]


# Each weight is prime to 25, and so is the difference of each two neighbours.
_WEIGHTS = (1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13)
