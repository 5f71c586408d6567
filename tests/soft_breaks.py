"""Lines about as long as quoted-printable allows, with what may not stand at their end."""

from __future__ import annotations

from itertools import product

_MARKS = (
    "",
    "=",
    " ",
    "\t",
    ".",
    "\u00e9",
    "\u20ac",
    "\U0001f600",
    "==",
    " =",
    "= ",
    "  ",
    "\u00e9 ",
)

EDGES = tuple(
    f"{'x' * length}{mark}{rest}\n"
    for length, mark, rest in product((*range(66, 79), *range(147, 153)), _MARKS, ("", "y", "yyyy"))
) + tuple(f"{mark * 80}\n" for mark in _MARKS)
