"""layerfs as somebody who is not root: an ordinary user, or the root of a user namespace."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Layerfs

PATIENCE = 20
_FUSE = os.makedev(10, 229)
_libc = ctypes.CDLL(None, use_errno=True)


class User(Layerfs):
    """The command line as user and group *uid*, in a mount namespace where /dev/fuse is open to all.

    With *ids*, in a user namespace too, in which ids 0 to *ids* - 1 are *uid* and those after it.
    """

    def __init__(self, directory: Path, uid: int, ids: int = 0) -> None:
        super().__init__(directory)
        self.uid = uid
        self.ids = ids
        self.environment |= {"HOME": str(directory), "USER": "somebody"}
        directory.chmod(0o755)
        os.chown(directory, uid, uid)
        device = directory / "fuse"
        os.mknod(device, stat.S_IFCHR, _FUSE)
        device.chmod(0o666)
        self.become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        then = ["cat"]
        if ids:
            then = [
                *self.become,
                "unshare",
                "--user",
                "--mount",
                "sh",
                "-c",
                "echo; read mapped; echo; exec cat",
            ]
        script = f'mount --bind "$0" /dev/fuse && echo && exec {" ".join(_quoted(then))}'
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", script, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._hear()
        if ids:
            self._hear()
            for kind in ("uid", "gid"):
                Path(f"/proc/{self.holder.pid}/{kind}_map").write_text(f"0 {uid} {ids}\n")
            assert self.holder.stdin is not None
            self.holder.stdin.write(b"\n")
            self.holder.stdin.flush()
            self._hear()
        enter = ["nsenter", f"--target={self.holder.pid}", "--mount"]
        if ids:
            self.enter = [*self.become, *enter, "--user", "--preserve-credentials"]
        else:
            self.enter = [*enter, *self.become]
        self.words = [*self.enter, *self.words]

    def _hear(self) -> None:
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"\n"

    def end(self) -> None:
        """End the namespaces with everything in them."""
        super().end()
        self.holder.kill()
        self.holder.communicate(timeout=PATIENCE)

    def program(self, *words: str | Path) -> str:
        """Run a program as this user, which must work; return its output."""
        done = subprocess.run(
            [*self.enter, *words], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def do(self, action: Callable[[], object], *, where: Path) -> int:
        """Do *action* as this user, in the directory *where*; return its errno, 0 if it works."""
        child = os.fork()
        if child == 0:
            status = 255
            try:
                self._become_user()
                os.chdir(where)
                action()
                status = 0
            except OSError as error:
                status = error.errno or 255
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status != 255, "the action failed in a way of its own"
        return status

    def _become_user(self) -> None:
        kinds = ["mnt"]
        if self.ids:
            self._set_ids()
            kinds.insert(0, "user")
        for kind in kinds:
            fd = os.open(f"/proc/{self.holder.pid}/ns/{kind}", os.O_RDONLY)
            if _libc.setns(fd, 0) != 0:
                code = ctypes.get_errno()
                raise AssertionError(f"cannot enter the {kind} namespace: {os.strerror(code)}")
            os.close(fd)
        if not self.ids:
            self._set_ids()

    def _set_ids(self) -> None:
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)


def _quoted(words: list[str]) -> list[str]:
    return [f"'{word}'" for word in words]


def require_readable_checkout(uid: int) -> None:
    """Skip the test where user *uid* cannot read the interpreter or layerfs."""
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable]
    done = subprocess.run(
        [*command, "-c", "import layerfs.cli, layerfs.mounting.daemon"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        pytest.skip("another user cannot read the interpreter, its packages or layerfs")


def start(uid: int, ids: int = 0) -> Iterator[User]:
    """Yield the user *uid*, with a directory that others than root can reach; end all that they started."""
    require_readable_checkout(uid)
    with tempfile.TemporaryDirectory() as name:
        user = User(Path(name), uid, ids)
        try:
            yield user
        finally:
            user.end()


def give(top: Path, uid: int) -> None:
    """Make user and group *uid* the owner of everything at and below *top*."""
    for path in (top, *top.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


def works(user: User, where: Path, *actions: Callable[[], object]) -> None:
    """Do each action as *user*; all must work."""
    for number, action in enumerate(actions):
        code = user.do(action, where=where)
        assert code == 0, (number, os.strerror(code))
