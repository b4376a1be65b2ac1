"""Run directories and stores of somebody else: nothing in them is obeyed, nothing behind them is written."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NOBODY, Layerfs, Stack
from tests.system.programs import needs
from tests.system.users import User, give, start

pytestmark = [pytest.mark.root, needs("setpriv", "unshare", "nsenter")]
ATTACKER = 4001
UNSET = ("env", "-u", "LAYERFS_RUN", "-u", "XDG_RUNTIME_DIR")


@pytest.fixture
def user() -> Iterator[User]:
    """An ordinary user with a `/tmp` that only this test sees."""
    for user in start(NOBODY):
        enter = ["nsenter", f"--target={user.holder.pid}", "--mount"]
        subprocess.run([*enter, "mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"], check=True)
        user.words = [*user.words[: len(user.enter)], *UNSET, *user.words[len(user.enter) :]]
        yield user


def as_root(user: User, script: str) -> None:
    """Run a shell script as root where *user* is; `$u` is the user's id, `$v` the victim's file."""
    enter = ["nsenter", f"--target={user.holder.pid}", "--mount"]
    variables = {**os.environ, "u": str(user.uid), "a": str(ATTACKER), "v": str(user.directory / "victim")}
    subprocess.run([*enter, "sh", "-euc", script], env=variables, check=True, timeout=20)


PLANTED = {
    "of somebody else": "mkdir /tmp/layerfs-$u /tmp/layerfs-$u/layerfs; chmod 777 /tmp/layerfs-$u/layerfs;"
    " chown -R $a /tmp/layerfs-$u",
    "below one of somebody else": "mkdir /tmp/layerfs-$u /tmp/layerfs-$u/layerfs; chown $a /tmp/layerfs-$u;"
    " chown $u /tmp/layerfs-$u/layerfs",
    "through a link": "mkdir -p /tmp/x/layerfs; chown -R $u /tmp/x; ln -s x /tmp/layerfs-$u",
    "through a link below": "mkdir -p /tmp/x /tmp/layerfs-$u; ln -s ../x /tmp/layerfs-$u/layerfs;"
    " chown -R $u /tmp/x /tmp/layerfs-$u",
    "open to all": "mkdir -p /tmp/layerfs-$u/layerfs; chown -R $u /tmp/layerfs-$u;"
    " chmod 777 /tmp/layerfs-$u/layerfs",
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_run_directory_in_tmp_that_somebody_planted_is_refused(user: User, planted: str) -> None:
    stack = Stack(user)
    victim = user.directory / "victim"
    victim.write_text("precious")
    give(user.directory, user.uid)
    mount = ["mount", "--name=stack", f"--lower={stack.top}", str(stack.mnt)]
    user.ok(*mount)
    user.ok("umount", "stack")
    as_root(user, "rm -r /tmp/layerfs-$u")
    links = "; ".join(f"ln -s $v /tmp/layerfs-$u/layerfs/stack.{suffix}" for suffix in ("lock", "log"))
    as_root(user, f"{PLANTED[planted]}; {links}")
    for command in (mount, ["ps", "-a"], ["commit", "stack"]):  # none of them writes there, or believes it
        line = user.refused(*command)
        assert f"/tmp/layerfs-{NOBODY}" in line
        assert "set LAYERFS_RUN to a directory of your own" in line
    assert victim.read_text() == "precious"


def test_without_any_directory_the_user_gets_a_private_one_in_tmp(user: User) -> None:
    stack = Stack(user)
    (stack.top / "file").touch()
    give(user.directory, user.uid)
    user.ok("mount", "--name=stack", f"--lower={stack.top}", stack.mnt)
    try:
        assert "file" in user.program("ls", stack.mnt)
        modes = user.program("stat", "-c%a", f"/tmp/layerfs-{NOBODY}", f"/tmp/layerfs-{NOBODY}/layerfs")
        assert modes.split() == ["700", "700"]
    finally:
        user.ok("umount", "stack")


def test_links_in_the_run_directory_are_never_followed(layerfs: Layerfs, stack: Stack) -> None:
    victim = layerfs.directory / "victim"
    layerfs.run.mkdir(mode=0o700)
    layerfs.expect_log("precious")  # what the link of that name leads to
    (stack.top / "file").touch()
    for suffix in ("lock", "log"):
        victim.write_text("precious")
        link = layerfs.run / f"{stack.name}.{suffix}"
        link.symlink_to(victim)
        line = layerfs.refused("mount", f"--name={stack.name}", f"--lower={stack.top}", stack.mnt)
        assert f"{link} is a symbolic link" in line
        assert victim.read_text() == "precious"
        link.unlink()
    layerfs.ok("mount", f"--name={stack.name}", f"--lower={stack.top}", stack.mnt)


@pytest.mark.parametrize("variable", ["LAYERFS_RUN", "LAYERFS_ROOT"])
@pytest.mark.parametrize("how", ["owner", "mode"])
def test_root_refuses_directories_that_a_user_can_change(
    layerfs: Layerfs, stack: Stack, variable: str, how: str
) -> None:
    directory = Path(layerfs.environment[variable])
    directory.mkdir(mode=0o700)
    if how == "owner":
        os.chown(directory, ATTACKER, ATTACKER)
    else:
        directory.chmod(0o777)
    line = layerfs.refused("mount", f"--name={stack.name}", f"--lower={stack.top}", stack.mnt)
    assert str(directory) in line
    assert ("belongs to user 4001" if how == "owner" else "can be written to by other users") in line
    assert list(directory.iterdir()) == []
    assert stat.S_IMODE(directory.stat().st_mode) == (0o700 if how == "owner" else 0o777)


def test_a_runtime_directory_of_somebody_else_is_refused(user: User) -> None:
    """As after `su` to another user, with the variables of the first one."""
    stack = Stack(user)
    give(user.directory, user.uid)
    as_root(user, "mkdir -m 777 /tmp/run; chown $a /tmp/run")
    user.words.insert(len(user.enter) + len(UNSET), "XDG_RUNTIME_DIR=/tmp/run")
    line = user.refused("mount", "--name=stack", f"--lower={stack.top}", stack.mnt)
    assert "XDG_RUNTIME_DIR, /tmp/run belongs to user 4001" in line


def test_an_upper_that_a_link_leads_to_can_be_committed(layerfs: Layerfs, stack: Stack) -> None:
    layerfs.root = stack.directory / "store"
    layerfs.environment["LAYERFS_ROOT"] = str(layerfs.root)
    real, link = stack.upper, stack.directory / "link"
    link.symlink_to(real.name)
    stack.upper = link
    mnt = stack.mount()
    for number in range(2):
        (mnt / f"file{number}").write_text("x")
        stack.commit()
    assert link.is_symlink()
    assert os.listdir(real) == []
    assert sorted(os.listdir(mnt)) == ["file0", "file1"]
    stack.umount()
    stack.mount()  # as a service does it at each start
    assert sorted(os.listdir(mnt)) == ["file0", "file1"]


def test_a_commit_moves_no_directory_but_the_one_that_was_mounted(layerfs: Layerfs, stack: Stack) -> None:
    """Whoever owns the directory above can put a link to any other directory in its place."""
    precious = layerfs.directory / "precious"
    (precious / "upper").mkdir(parents=True)
    (precious / "work/work").mkdir(parents=True)
    (precious / "upper/file").write_text("precious")
    stack.mnt = layerfs.directory / "elsewhere"
    stack.mnt.mkdir()
    (stack.mount() / "file").write_text("written")
    aside = stack.directory.with_name("aside")
    stack.directory.rename(aside)
    stack.directory.symlink_to(precious)
    status, answer = layerfs.ask(stack.name, "POST", f"/commit?container={stack.name}")
    assert status == 409
    assert b"it is not the directory that was mounted any more" in answer
    assert (precious / "upper/file").read_text() == "precious"
    (precious / "upper").rename(precious / "other")
    (precious / "upper").symlink_to("other")
    status, answer = layerfs.ask(stack.name, "POST", f"/commit?container={stack.name}")
    assert (status, (precious / "upper").is_symlink()) == (409, True)
    stack.directory.unlink()
    aside.rename(stack.directory)
    stack.commit()
    assert (stack.mnt / "file").read_text() == "written"
    assert os.listdir(stack.upper) == []
