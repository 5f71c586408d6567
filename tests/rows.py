"""Rows of cases, and the CSV that they make."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def rows_of(cells: Mapping[str, str], count: int, **changes: str) -> list[dict[str, str]]:
    return [{**cells, "reference": f"CASE-{number}", **changes} for number in range(1, count + 1)]


def as_csv(rows: Sequence[Mapping[str, Any]], delimiter: str = ",", end: str = "\r\n") -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
