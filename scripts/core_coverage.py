"""The gate of the core: its coverage table, and a failure below 95 % of its branches.

Run by `make test` on what pytest has just measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from coverage import Coverage

CORE = (
    "answers",
    "audit",
    "case",
    "case_files",
    "cells",
    "day_or_month",
    "delivery",
    "directory",
    "directory_files",
    "drafts",
    "eligibility",
    "holding",
    "message",
    "postcodes",
    "problems",
    "queueing",
    "reference",
    "relay_health",
    "relay_log",
    "releasing",
    "rendering",
    "restored",
    "routing",
    "rules",
    "samples",
    "schema",
    "service",
    "settings",
    "settings_sources",
    "template_check",
    "texts",
)
REQUIRED_PERCENT = 95.0


def main() -> int:
    files = [Path("referrals", f"{name}.py") for name in CORE]
    if missing := [str(file) for file in files if not file.is_file()]:
        print(f"core coverage: no such module: {', '.join(missing)}. Mend CORE in {__file__}.")
        return 1

    measured = Coverage()
    measured.load()
    include = [str(file) for file in files]
    print("\nThe core:")
    together = measured.report(include=include, show_missing=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "core.json")
        measured.json_report(include=include, outfile=str(report))
        totals = json.loads(report.read_text(encoding="utf-8"))["totals"]

    if not totals.get("num_branches"):
        print("core coverage: no branch was measured; is `branch = true` still in pyproject.toml?")
        return 1
    branches = 100.0 * totals["covered_branches"] / totals["num_branches"]
    print(
        f"core coverage: {branches:.1f} % of branches, {together:.1f} % of lines and branches"
        f" (required: {REQUIRED_PERCENT:.0f} % of each)"
    )
    return 0 if min(branches, together) >= REQUIRED_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
