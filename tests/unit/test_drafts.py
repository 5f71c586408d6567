"""The drafts folder: whole or not there, private, never written over; whatever happens."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from referrals import drafts
from referrals.drafts import Draft, Staging, drafts_folder, save_draft, save_drafts
from referrals.errors import DraftChanged, DraftError, DraftUnwritable

NAME = "X3FF-P9K4-LH2Z-mediation.eml"
CONTENT = b"Subject: Referral\r\n\r\n" + b"All of it.\r\n" * 8_000
OTHER = CONTENT.replace(b"All", b"Any")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outbox" / "drafts"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_files_and_folders_are_private_whatever_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        draft = save_draft(folder, NAME, CONTENT)
    finally:
        os.umask(before)

    assert draft == Draft(folder / NAME, written=True)
    assert draft.path.read_bytes() == CONTENT
    assert mode(draft.path) == 0o600
    assert [mode(folder), mode(folder.parent)] == [0o700, 0o700]
    assert inside(folder) == [NAME]


def test_a_folder_that_is_there_keeps_its_mode(folder: Path) -> None:
    """A shared folder is somebody's decision; the draft in it is private still."""
    folder.mkdir(parents=True)
    folder.chmod(0o750)

    assert mode(save_draft(folder, NAME, CONTENT).path) == 0o600
    assert mode(folder) == 0o750


def test_the_outbox_of_a_checkout_is_closed_to_others(tmp_path: Path) -> None:
    """Git makes its folders as open as the umask lets it."""
    outbox = tmp_path / "outbox"
    assert drafts_folder(outbox) == outbox / "drafts", "nothing is made before it is needed"
    assert not outbox.exists()
    (outbox / "drafts").mkdir(parents=True)
    outbox.chmod(0o755)
    (outbox / "drafts").chmod(0o775)
    assert [mode(drafts_folder(outbox)), mode(outbox)] == [0o700, 0o700]


@pytest.mark.parametrize("beside", [False, True])
def test_the_same_again_is_left_as_it_is(folder: Path, beside: bool) -> None:
    first = save_draft(folder, NAME, CONTENT).path
    before = first.stat()

    assert save_draft(folder, NAME, CONTENT, beside=beside) == Draft(first, written=False)
    after = first.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert inside(folder) == [NAME]


@pytest.mark.parametrize("edited", [b"", CONTENT + b"One line more.\r\n", CONTENT[:-1]])
def test_an_edited_draft_is_never_written_over(folder: Path, edited: bytes) -> None:
    draft = save_draft(folder, NAME, CONTENT).path
    draft.write_bytes(edited)

    with pytest.raises(DraftChanged, match="kept as it is"):
        save_draft(folder, NAME, CONTENT)
    assert draft.read_bytes() == edited
    assert inside(folder) == [NAME]


def test_beside_numbers_what_differs_and_finds_what_does_not(folder: Path) -> None:
    contents = [b"one\r\n", b"two\r\n", b"three\r\n"]
    names = [save_draft(folder, NAME, one, beside=True).path.name for one in contents]
    stem = NAME.removesuffix(".eml")

    assert names == [NAME, f"{stem}-2.eml", f"{stem}-3.eml"]
    assert [(folder / name).read_bytes() for name in names] == contents
    again = save_draft(folder, NAME, contents[1], beside=True)
    assert again == Draft(folder / names[1], written=False)
    assert inside(folder) == sorted(names)


@pytest.mark.parametrize("dangling", [True, False])
def test_a_symlink_at_the_name_is_not_followed(
    folder: Path, tmp_path: Path, dangling: bool
) -> None:
    target = tmp_path / "elsewhere"
    if not dangling:
        target.write_bytes(b"somebody's\r\n")
    folder.mkdir(parents=True)
    (folder / NAME).symlink_to(target)

    with pytest.raises(DraftChanged):
        save_draft(folder, NAME, CONTENT)
    beside = save_draft(folder, NAME, CONTENT, beside=True)
    assert beside.path.name.endswith("-2.eml")
    assert target.exists() is not dangling
    assert dangling or target.read_bytes() == b"somebody's\r\n"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_at_the_name_is_kept(folder: Path, make: Callable[[Path], None]) -> None:
    folder.mkdir(parents=True)
    make(folder / NAME)

    with pytest.raises(DraftChanged):
        save_draft(folder, NAME, CONTENT)
    assert inside(folder) == [NAME]


def test_a_file_where_the_folder_should_be_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "drafts"
    file.write_bytes(b"a file")

    for folder in (file, file / "below"):
        with pytest.raises(DraftUnwritable, match="Not a directory"):
            save_draft(folder, NAME, CONTENT)
    assert file.read_bytes() == b"a file"


# Several at once

SEVERAL = [(f"{number}-mediation.eml", f"{number}\r\n".encode()) for number in range(1, 8)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_several_are_saved_together(folder: Path) -> None:
    saved = save_drafts(folder, SEVERAL)

    assert saved == [Draft(folder / name, written=True) for name, _ in SEVERAL]
    assert contents(folder) == dict(SEVERAL)
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert save_drafts(folder, SEVERAL) == [
        Draft(folder / name, written=False) for name, _ in SEVERAL
    ]
    assert save_drafts(folder, []) == []


def test_one_that_was_edited_keeps_none_of_the_others_back(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / SEVERAL[3][0]).write_bytes(b"edited\r\n")

    saved = save_drafts(folder, SEVERAL)

    kept = [one for one in saved if isinstance(one, DraftChanged)]
    assert kept == [saved[3]]
    assert SEVERAL[3][0] in str(kept[0])
    assert contents(folder) == dict(SEVERAL) | {SEVERAL[3][0]: b"edited\r\n"}


def test_two_for_one_name_in_one_go(folder: Path) -> None:
    same, other = save_drafts(folder, [(NAME, CONTENT), (NAME, CONTENT)]), (NAME, OTHER)
    assert same == [Draft(folder / NAME, True), Draft(folder / NAME, False)]

    (changed,) = save_drafts(folder, [other])
    assert isinstance(changed, DraftChanged)
    assert inside(folder) == [NAME]


@pytest.mark.parametrize("synced_at_once", [True, False])
@pytest.mark.parametrize(
    ("function", "on_call"), [("open", 4), ("write", 5), ("link", 6), ("open", 8)]
)
def test_a_fault_at_any_step_of_several_leaves_none(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    on_call: int,
    synced_at_once: bool,
) -> None:
    folder.mkdir(parents=True)
    monkeypatch.setattr(drafts, "_linux", lambda: (5, 8) if synced_at_once else (5, 7))
    with monkeypatch.context() as patch:
        patch.setattr(os, function, refusing(getattr(os, function), errno.EIO, on_call=on_call))
        with pytest.raises(DraftUnwritable, match="None of these was left there"):
            save_drafts(folder, SEVERAL)
    assert inside(folder) == []

    assert all(isinstance(one, Draft) and one.written for one in save_drafts(folder, SEVERAL))


def test_several_are_waited_for_once_or_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't told by syncfs before Linux 5.8 is told by fsync."""
    calls: list[int] = []
    real = os.fsync

    def counted(handle: int) -> None:
        calls.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fsync", counted)

    monkeypatch.setattr(drafts, "_linux", lambda: (6, 1))
    save_drafts(folder, SEVERAL)
    assert len(calls) == 1, "that of the folder"
    monkeypatch.setattr(drafts, "_linux", lambda: (5, 4))
    save_drafts(folder, [(f"x{name}", content) for name, content in SEVERAL])
    assert len(calls) == 1 + len(SEVERAL) + 1


def test_staged_drafts_get_their_names_once_all_is_right(folder: Path) -> None:
    with Staging(folder) as staging:
        names = [staging.put(name, content) for name, content in SEVERAL]
        assert list(folder.glob("[!.]*")) == []
        assert {mode(path) for path in folder.iterdir()} == {0o600}
        assert staging.publish(names[:4]) == [Draft(folder / n, True) for n in names[:4]]
        assert staging.publish(names[4:]) == [Draft(folder / n, True) for n in names[4:]]

    assert contents(folder) == dict(SEVERAL)


def test_staged_drafts_meet_what_is_there_like_any_other(folder: Path) -> None:
    (same, _), (other, _) = SEVERAL[:2]
    save_drafts(folder, [SEVERAL[0], (other, b"edited\r\n")])
    for beside in (False, True):
        with Staging(folder) as staging:
            names = [staging.put(name, content) for name, content in SEVERAL[:2]]
            first, second = staging.publish(names, beside=beside)
        assert first == Draft(folder / same, written=False)
        if beside:
            assert second == Draft(folder / f"{other.removesuffix('.eml')}-2.eml", written=True)
        else:
            assert isinstance(second, DraftChanged)
            assert inside(folder) == sorted([same, other])


@pytest.mark.parametrize("there", [True, False])
def test_what_is_not_published_leaves_nothing(folder: Path, there: bool) -> None:
    if there:
        save_drafts(folder, SEVERAL[:1])

    def interrupted() -> None:
        with Staging(folder) as staging:
            for name, content in SEVERAL:
                staging.put(name, content)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert not there or contents(folder) == dict(SEVERAL[:1])
    assert folder.parent.exists() is there, "folders that were made for it go as well"


@pytest.mark.parametrize("synced_at_once", [True, False])
def test_a_fault_in_publishing_leaves_none_of_the_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch, synced_at_once: bool
) -> None:
    monkeypatch.setattr(drafts, "_linux", lambda: (5, 8) if synced_at_once else (5, 7))
    with Staging(folder) as staging:
        names = [staging.put(name, content) for name, content in SEVERAL]
        staging.publish(names[:2])
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", refusing(os.link, errno.EIO, on_call=3))
            with pytest.raises(DraftUnwritable, match="None of these was left there"):
                staging.publish(names[2:])

    assert contents(folder) == dict(SEVERAL[:2])


def test_a_full_disk_is_said_when_a_draft_is_staged(folder: Path) -> None:
    with (
        Staging(folder) as staging,
        small_files(),
        pytest.raises(DraftUnwritable, match="Nothing was left there"),
    ):
        staging.put(NAME, CONTENT)
    assert not folder.exists()


# What the system refuses


def mounted(where: Path, options: str) -> bool:
    """Whether a small file system of its own could be put there: root's privilege."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(where)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow over 16 KB: for as short a time as can be."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", ["file system", "file size"])
def test_no_room_leaves_nothing_half_done(kind: str, tmp_path: Path) -> None:
    """On a file system of 16 KB; where only root may have one, by a limit of that size."""
    place = tmp_path / "full"
    place.mkdir()
    on_its_own = kind == "file system" and mounted(place, "size=16k")
    try:
        with (
            nullcontext() if on_its_own else small_files(),
            pytest.raises(DraftUnwritable, match=r"No space left|File too large") as caught,
        ):
            save_draft(place, NAME, CONTENT)
        assert inside(place) == []
        assert caught.value.__cause__ is None
        assert "--out" in str(caught.value)

        assert save_draft(place, NAME, b"short\r\n").written
    finally:
        if on_its_own:
            subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    on_its_own = mounted(place, "ro")
    if not on_its_own:
        place.chmod(0o500)
        if os.geteuid() == 0:  # permissions do not hold root back
            monkeypatch.setattr(os, "open", refusing(os.open, errno.EROFS))
    try:
        with pytest.raises(DraftUnwritable, match=r"Read-only|Permission denied"):
            save_draft(place, NAME, CONTENT)
        assert inside(place) == []
    finally:
        if on_its_own:
            subprocess.run(["umount", str(place)], check=True)


def refusing(
    real: Callable[..., Any], code: int, *, on_call: int | None = None
) -> Callable[..., Any]:
    """A call of the system that fails: always, or the one time."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if on_call in (None, calls):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_links_will_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A memory stick's, for one."""
    monkeypatch.setattr(os, "link", refusing(os.link, code))

    assert save_draft(folder, NAME, CONTENT).path.read_bytes() == CONTENT
    assert not save_draft(folder, NAME, CONTENT).written
    with pytest.raises(DraftChanged):
        save_draft(folder, NAME, OTHER)
    assert inside(folder) == [NAME]
    assert mode(folder / NAME) == 0o600


@pytest.mark.parametrize(
    ("function", "on_call"),
    [("open", 1), ("fsync", 1), ("link", 1), ("open", 2), ("fsync", 2)],
    ids=["create", "sync the file", "name it", "open the folder", "sync the folder"],
)
def test_a_fault_at_any_step_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, on_call: int
) -> None:
    """As the message says: nothing was left there."""
    folder.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, refusing(getattr(os, function), errno.EIO, on_call=on_call))
        with pytest.raises(DraftUnwritable, match="Nothing was left there"):
            save_draft(folder, NAME, CONTENT)
    assert inside(folder) == []

    assert save_draft(folder, NAME, CONTENT).written


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_folder_that_can_not_be_synced_will_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some network file systems sync files only."""
    monkeypatch.setattr(os, "fsync", refusing(os.fsync, code, on_call=2))

    assert save_draft(folder, NAME, CONTENT).path.read_bytes() == CONTENT


def test_a_draft_made_meanwhile_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking and naming, somebody else may take the name."""
    real = os.link

    def late(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"theirs\r\n")
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(DraftChanged):
        save_draft(folder, NAME, CONTENT)
    assert (folder / NAME).read_bytes() == b"theirs\r\n"
    assert inside(folder) == [NAME]


# What is left behind


def test_only_old_leftovers_of_ours_are_swept(folder: Path) -> None:
    folder.mkdir(parents=True)
    fresh, old, theirs = (
        folder / name for name in (".a.1.referral-tmp", ".b.2.referral-tmp", ".c.tmp")
    )
    for file in (fresh, old, theirs):
        file.write_bytes(b"half")
    for file in (old, theirs):
        os.utime(file, (0, 0))

    save_draft(folder, NAME, CONTENT)
    assert inside(folder) == sorted([fresh.name, theirs.name, NAME])


KILLED = """
import os, signal, sys
from pathlib import Path
from referrals.drafts import save_draft

STEPS = ("mkdir", "open", "fsync", "link", "rename", "unlink", "close")
base, content, links = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), sys.argv[4] == "links"

def save(name, stop_at, after):
    calls = 0
    def watched(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == stop_at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*args, **kwargs)
            finally:
                if calls == stop_at and after:
                    os.kill(os.getpid(), signal.SIGKILL)
        return call
    if not links:
        def link(*_):
            raise PermissionError(1, "no links here")
        os.link = link
    for step in STEPS:
        setattr(os, step, watched(getattr(os, step)))
    save_draft(base / name / "drafts", sys.argv[3], content)

for after in (False, True):
    for step in range(1, 100):
        child = os.fork()
        if not child:
            try:
                save(f"{step}-{after}", step, after)
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            break
    print(step - 1)
"""


@pytest.mark.parametrize("links", ["links", "no links"])
def test_killed_at_any_step_there_is_the_whole_draft_or_none(tmp_path: Path, links: str) -> None:
    """As by kill -9, before and after each call to the system; the next run mends it."""
    base, content = tmp_path / "base", tmp_path / "content"
    base.mkdir()
    content.write_bytes(CONTENT)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, base, content, NAME, links],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    steps = [int(line) for line in done.stdout.split()]
    assert min(steps) >= 7, "mkdir, open, fsync, name, unlink, open, fsync"

    found = set()
    for place in base.iterdir():
        folder = place / "drafts"
        draft = folder / NAME
        there = draft.exists()
        found.add(there)
        if there:
            assert draft.read_bytes() == CONTENT
            assert mode(draft) == 0o600
        leftovers = list(folder.glob(".*.referral-tmp")) if folder.exists() else []
        assert len(leftovers) <= 1
        assert [mode(path) for path in leftovers] == [0o600] * len(leftovers)

        assert save_draft(folder, NAME, CONTENT).written is not there
        assert draft.read_bytes() == CONTENT
        assert inside(folder) == sorted([NAME, *(path.name for path in leftovers)])
        for path in leftovers:
            os.utime(path, (0, 0))
        save_draft(folder, NAME, CONTENT)
        assert inside(folder) == [NAME]
    assert found == {True, False}


RACE = """
import json, os, sys
from pathlib import Path
from referrals.drafts import save_draft
from referrals.errors import DraftChanged

base, name, different = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "different"
outcomes = []
for lap in range(40):
    ready, go = os.pipe()
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            code = 9
            try:
                os.close(go)
                os.read(ready, 1)
                word = b"%d" % (number if different else 0)
                draft = save_draft(base / str(lap) / "drafts", name, word * 50_000)
                code = 0 if draft.written else 1
            except DraftChanged:
                code = 2
            finally:
                os._exit(code)
        children.append(child)
    os.close(ready)
    os.close(go)  # they are off, all at once
    outcomes.append([os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children])
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("contents", ["same", "different"])
def test_of_several_processes_at_once_one_writes(tmp_path: Path, contents: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RACE, tmp_path, NAME, contents],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    written, unchanged, changed = 0, 1, 2
    for lap, codes in enumerate(json.loads(done.stdout)):
        folder = tmp_path / str(lap) / "drafts"
        assert inside(folder) == [NAME]
        content = (folder / NAME).read_bytes()
        assert len(content) == 50_000
        assert len(set(content)) == 1
        assert codes.count(written) == 1, codes
        others = {unchanged} if contents == "same" else {changed}
        assert set(codes) - {written} <= others, codes


def test_threads_at_once_each_get_a_number_with_beside(folder: Path) -> None:
    """Nobody's draft is lost, and nobody is told to try again."""
    contents = [b"%d\r\n" % number for number in range(8)]
    start = threading.Barrier(len(contents))
    faults: list[DraftError] = []

    def save(content: bytes) -> None:
        start.wait(10)
        try:
            save_draft(folder, NAME, content, beside=True)
        except DraftError as error:
            faults.append(error)

    threads = [threading.Thread(target=save, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert faults == []
    assert sorted(file.read_bytes() for file in folder.iterdir()) == contents
