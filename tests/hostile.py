"""Text that breaks mail: what people paste, and what an attacker would type."""

from __future__ import annotations

import random

FRAGMENTS = (
    ".",
    "..",
    "\n.\n",
    "\n.\n..\n",
    "\nFrom the start\n",
    "\n>From\n",
    "--",
    "\n-- \nsignature\n",
    "\n--=_0123456789abcdef\n",
    "\n--=_0123456789abcdef--\n",
    "\nContent-Type: text/html\n\n",
    "\nBcc: someone@example.org\n",
    "\n\n",
    "\n",
    " ",
    "   \n",
    "\t",
    "\t\t\n",
    "\N{NO-BREAK SPACE}\n",
    "=",
    "=20",
    "=\n",
    "=C3=A9",
    "=?utf-8?q?=C3=A9?=",
    "=?utf-8?b?4pyT?=",
    "caf\u00e9",
    "cafe\u0301",
    "\N{EURO SIGN}\N{POUND SIGN}\u201cquoted\u201d \u2013 \u2026",
    "\u0645\u0631\u062d\u0628\u0627",
    "\u202eright to left override\u202c",
    "\u2066isolate\u2069",
    "\u200b\u200c\u200d\u2060\ufeff",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family: one emoji of five characters
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\U0001f44d\U0001f3fd",
    "\u0ba8\u0bbf",
    "Z\u0351\u036b\u0343a\u0329\u0321l\u034eg\u0311o",
    "{{ 7*7 }}",
    "{% raw %}",
    "{# gone? #}",
    "<script>alert(1)</script>",
    '" onload="x',
    "&lt;&amp;&#64;",
    "<!-- -->",
    "</td></table>",
    "\U0010fffd",
    "\ue000",
    "w" * 1_200,
    "\u00f6" * 400,
    "word " * 60,
)
LINE_SEPARATORS = ("\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")
"""What some programs take for the end of a line, and RFC 5322 does not."""

LONG_WORD = "x" * 100_000
MEGABYTE = "A line of the one megabyte, with \u00f6 in it.\n" * 23_000

BATCH = (
    "",
    "\n",
    "no line end",
    "one\ntwo\n\n\n",
    " blank space around it \n",
    "\n\nblank lines first\n",
    *FRAGMENTS,
    *(f"before{separator}after\n" for separator in LINE_SEPARATORS),
    LONG_WORD,
    MEGABYTE,
)


def mixed(count: int, seed: int = 2026) -> list[str]:
    """Texts of several fragments: the same ones each time."""
    chosen = random.Random(seed)
    every = (*FRAGMENTS, *LINE_SEPARATORS)
    return ["".join(chosen.choices(every, k=chosen.randint(2, 12))) for _ in range(count)]
