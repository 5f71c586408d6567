"""The roles in PostgreSQL, as docs/postgres.md has whoever runs it make them, word for word."""

from __future__ import annotations

import re
from pathlib import Path

_DOCS = Path(__file__).parents[1] / "docs" / "postgres.md"


def sql_of_roles(database: str) -> tuple[bytes, bytes]:
    """What is run before `migrate` and what after it, in a database of that name."""
    text = _DOCS.read_text(encoding="utf-8")
    before, after = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)[:2]
    return before.replace("DATABASE referrals", f"DATABASE {database}").encode(), after.encode()
