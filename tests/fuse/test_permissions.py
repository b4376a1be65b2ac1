"""Who may do what: owners, modes, set-id and sticky bits, seen by users other than root."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.conftest import NOBODY, Stack, as_user, errno_of

pytestmark = pytest.mark.root
ALICE, BOB, TEAM = 4001, 4002, 4010


def mode(path: Path) -> int:
    """Return the permission bits of *path*."""
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def mnt(stack: Stack) -> Path:
    """A mounted stack: what is open to all, to Alice, to her group, to root alone."""
    for name, uid, gid, bits in (
        ("all", 0, 0, 0o777),
        ("alice", ALICE, ALICE, 0o700),
        ("team", ALICE, TEAM, 0o2770),
        ("sticky", 0, 0, 0o1777),
        ("closed", 0, 0, 0o755),
    ):
        path = stack.bottom / name
        path.mkdir()
        (path / "file").write_text("content")
        for each in (path / "file", path):
            os.chown(each, uid, gid)
        path.chmod(bits)
    stack.bottom.chmod(0o755)
    stack.upper.chmod(0o755)
    (stack.bottom / "secret").write_text("root's")
    (stack.bottom / "secret").chmod(0o600)
    return stack.mount()


def test_reading_is_checked(mnt: Path) -> None:
    assert as_user(NOBODY, lambda: Path("secret").read_text(), where=mnt) == errno.EACCES
    assert as_user(NOBODY, lambda: os.listdir("alice"), where=mnt) == errno.EACCES
    assert as_user(NOBODY, lambda: Path("alice/file").stat(), where=mnt) == errno.EACCES
    assert as_user(ALICE, lambda: Path("alice/file").read_text(), where=mnt) == 0
    assert as_user(BOB, lambda: os.listdir("team"), where=mnt) == errno.EACCES
    assert as_user(BOB, lambda: os.listdir("team"), where=mnt, groups=[TEAM]) == 0


def test_writing_is_checked(mnt: Path, stack: Stack) -> None:
    for action in (
        lambda: Path("closed/new").touch(),
        lambda: Path("closed/file").write_text("x"),
        lambda: Path("closed/file").unlink(),
        lambda: os.mkdir("closed/dir"),
        lambda: os.rename("closed/file", "all/file2"),
        lambda: os.truncate("closed/file", 0),
    ):
        assert as_user(NOBODY, action, where=mnt) == errno.EACCES
    for forbidden in (
        lambda: os.chmod("closed/file", 0o777),
        lambda: os.chown("closed/file", NOBODY, NOBODY),
        lambda: os.utime("closed/file", ns=(1, 1)),
    ):
        assert as_user(NOBODY, forbidden, where=mnt) == errno.EPERM
    assert os.listdir(stack.upper) == []


def test_new_objects_belong_to_who_makes_them(mnt: Path, stack: Stack) -> None:
    def make() -> None:
        Path("all/file1").touch(0o640)
        os.mkdir("all/dir", 0o750)
        os.symlink("x", "all/link")
        os.mkfifo("all/fifo")

    assert as_user(ALICE, make, where=mnt) == 0
    for view in (mnt, stack.upper):
        for name in ("file1", "dir", "link", "fifo"):
            st = (view / "all" / name).lstat()
            assert (st.st_uid, st.st_gid) == (ALICE, ALICE)


def test_what_a_user_changes_stays_as_it_was_otherwise(mnt: Path) -> None:
    assert as_user(ALICE, lambda: Path("alice/file").write_text("hers"), where=mnt) == 0
    st = (mnt / "alice/file").stat()
    assert (st.st_uid, st.st_gid, (mnt / "alice/file").read_text()) == (ALICE, ALICE, "hers")


def test_a_setgid_directory_gives_its_group(mnt: Path, stack: Stack) -> None:
    def make() -> None:
        Path("team/new").touch()
        os.mkdir("team/dir")
        os.mkdir("team/dir/deeper")

    assert as_user(BOB, make, where=mnt, groups=[TEAM]) == 0
    for view in (mnt, stack.remount()):
        assert (view / "team/new").stat().st_gid == TEAM
        for name in ("team/dir", "team/dir/deeper"):
            assert (view / name).stat().st_gid == TEAM
            assert mode(view / name) & stat.S_ISGID


def test_a_sticky_directory(mnt: Path) -> None:
    assert as_user(ALICE, lambda: Path("sticky/hers").touch(), where=mnt) == 0
    assert as_user(BOB, lambda: Path("sticky/hers").unlink(), where=mnt) == errno.EPERM
    assert as_user(BOB, lambda: os.rename("sticky/hers", "sticky/his"), where=mnt) == errno.EPERM
    assert as_user(BOB, lambda: Path("sticky/file").unlink(), where=mnt) == errno.EPERM
    assert as_user(ALICE, lambda: Path("sticky/hers").unlink(), where=mnt) == 0


@pytest.mark.parametrize("layer", ["bottom", "upper"])
class TestSetId:
    """When the set-user-ID and set-group-ID bits go (chown(2), write(2))."""

    @pytest.fixture
    def program(self, stack: Stack, layer: str) -> Path:
        """A mounted file of mode 6777 that belongs to Alice."""
        path = (stack.bottom if layer == "bottom" else stack.upper) / "program"
        path.write_bytes(b"code")
        os.chown(path, ALICE, ALICE)
        path.chmod(0o6777)
        return stack.mount() / "program"

    def test_chown_clears_them(self, program: Path) -> None:
        os.chown(program, BOB, -1)
        assert mode(program) == 0o777

    def test_writing_by_another_clears_them(self, program: Path) -> None:
        where = program.parent

        def append() -> None:
            with open("program", "ab") as file:
                file.write(b"!")

        assert as_user(BOB, append, where=where) == 0
        assert (mode(program), program.read_bytes()) == (0o777, b"code!")

    def test_truncating_by_another_clears_them(self, program: Path) -> None:
        assert as_user(BOB, lambda: os.truncate("program", 1), where=program.parent) == 0
        assert mode(program) == 0o777

    def test_truncating_open_by_another_clears_them(self, program: Path) -> None:
        assert as_user(BOB, lambda: open("program", "wb").close(), where=program.parent) == 0
        assert (mode(program), program.read_bytes()) == (0o777, b"")

    def test_links_times_and_renames_leave_them(self, program: Path) -> None:
        os.utime(program, ns=(1, 1))
        os.link(program, program.with_name("link"))
        program.rename(program.with_name("moved"))
        assert mode(program.with_name("moved")) == 0o6777

    def test_where_the_group_may_not_execute_its_bit_stays(self, program: Path) -> None:
        program.chmod(0o2664)
        os.chown(program, BOB, -1)
        assert mode(program) == 0o2664


@pytest.mark.parametrize("layer", ["bottom", "upper"])
def test_a_set_user_id_program_works(stack: Stack, layer: str) -> None:
    program = (stack.bottom if layer == "bottom" else stack.upper) / "id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, ALICE, ALICE)
    program.chmod(0o4755)
    stack.upper.chmod(0o755)
    mnt = stack.mount()

    def effective() -> str:
        command = ["./id", "-u"]
        done = subprocess.run(
            command, cwd=mnt, user=NOBODY, group=NOBODY, extra_groups=(), capture_output=True, text=True,
            timeout=20, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    assert effective() == str(ALICE)
    os.utime(mnt / "id")  # copied up, it still works
    assert effective() == str(ALICE)


def test_nosuid_and_noexec_are_obeyed(stack: Stack) -> None:
    shutil.copy("/usr/bin/id", stack.bottom / "id")
    (stack.bottom / "id").chmod(0o4755)
    stack.upper.chmod(0o755)
    mnt = stack.mount("-o", "noexec,nosuid,nodev")
    assert errno_of(lambda: subprocess.run(["./id"], cwd=mnt, check=False)) == errno.EACCES
    flags = os.statvfs(mnt).f_flag
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV
    assert flags & os.ST_NOEXEC


def test_a_new_owner_and_mode(mnt: Path, stack: Stack) -> None:
    for name in ("all/file", "closed"):
        os.chown(mnt / name, BOB, TEAM)
        os.chmod(mnt / name, 0o1754)
    for view in (mnt, stack.remount()):
        for name in ("all/file", "closed"):
            st = (view / name).stat()
            assert (st.st_uid, st.st_gid, mode(view / name)) == (BOB, TEAM, 0o1754)
