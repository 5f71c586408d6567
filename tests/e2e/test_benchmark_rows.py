"""What the benchmark measures with is sound: a wrong letter or a failed run would win any race."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import Environment, StrictUndefined

from benchmarks import rows
from benchmarks.letter import read_parts, sentinels, take_apart
from benchmarks.measure import Contest, Program, Run, Target, run

COUNT = 12


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drafts by our own command: of the rows in `rows/`, and of the sentinels in `sentinel/`."""
    folder = tmp_path_factory.mktemp("drafts")
    rows.write_ours(folder / "rows.csv", COUNT)
    rows.write(folder / "sentinel.csv", [rows.our_row(sentinels())])
    for name in ("rows", "sentinel"):
        argv = [sys.executable, "-m", "referrals", "batch", f"{name}.csv", "--draft", "--out", name]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


def test_every_row_is_accepted_and_differs(drafts: Path) -> None:
    """One draft a row, since one wrong row would leave none."""
    texts = {path.read_bytes() for path in (drafts / "rows").iterdir()}

    assert len(texts) == COUNT


def test_the_template_writes_the_very_letter(drafts: Path) -> None:
    """What the peers fill in reads, text and HTML, as what we write for the same row."""
    (sentinel,) = (drafts / "sentinel").iterdir()
    template = take_apart(sentinel.read_bytes(), sentinels())
    plain = Environment(undefined=StrictUndefined)
    escaping = Environment(undefined=StrictUndefined, autoescape=True)
    ours = {
        parts.headers["Subject"]: parts
        for parts in (read_parts(path.read_bytes()) for path in (drafts / "rows").iterdir())
    }

    for number in range(COUNT):
        row = rows.flat_row(rows.facts(number))
        parts = ours[plain.from_string(template.subject).render(row)]
        assert plain.from_string(template.text).render(row) == parts.text
        # read_parts undoes the escaping of ours
        assert plain.from_string(template.html).render(row) == parts.html
        assert escaping.from_string(template.html).render(row).count("<") == parts.html.count("<")


def test_a_value_that_the_letter_lacks_is_noticed(drafts: Path) -> None:
    (sentinel,) = (drafts / "sentinel").iterdir()
    made = sentinels() | {"lost": rows.Fact(None, "", "Zqlostqz")}

    with pytest.raises(ValueError, match="lost is not in the letter"):
        take_apart(sentinel.read_bytes(), made)


def test_a_failure_is_no_result(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import sys; sys.exit('it went wrong')"]

    with pytest.raises(RuntimeError, match="exited 1:\nit went wrong"):
        run(argv, tmp_path, os.environ)


def test_memory_counts_child_processes(tmp_path: Path) -> None:
    """Two processes that hold 60 MB each come to more than one of them."""
    hold = "held = bytearray(60_000_000); import time; time.sleep(0.5)"
    code = f"import subprocess, sys; {hold.partition(';')[0]}; "
    code += f"subprocess.run([sys.executable, '-c', {hold!r}], check=True)"

    done = run([sys.executable, "-c", code], tmp_path, os.environ)

    assert 110 < done.peak_mib < 250


@pytest.mark.parametrize(("rate", "met"), [(499, False), (501, True)])
def test_a_target_is_met_or_missed(
    rate: int, met: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five times the other's 100 a second; a moonshot never fails."""

    def ran(name: str, rows_a_second: int) -> Program:
        made = Program(name, lambda _folder, _rows: Run(1, 1), rows=rows_a_second)
        made.runs = [Run(seconds, 1) for seconds in (0.5, 1, 9)]
        return made

    programs = [ran("ours", rate), ran("theirs", 100)]
    targets = [Target("ours", "theirs", 5), Target("ours", "theirs", 50, moonshot=True)]

    assert Contest("A race", programs, targets).report() is met
    assert ("MISSED" in capsys.readouterr().out) is not met
