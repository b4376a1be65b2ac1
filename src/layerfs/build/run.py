"""RUN: a command in a container on a stage's live mount.

The container has no supervisor and no row: `runc run` is a child of the build, and what the command writes
comes through a pipe. All but the last of what a runtime does comes before a step needs it: it is started
ahead, and waits in a hook (`createRuntime`: the namespaces and mounts are there, the command has not begun)
until it is told to go. What the hook waits for ends with this process, and then the command never begins.

The places in /etc are mounted after the word: the command before could have put a link in the way of a
runtime, which then makes files outside of the tree.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from layerfs.build import targets
from layerfs.build.errors import StepFailed
from layerfs.container import hostfiles, ociruntime, spec, users
from layerfs.container.mountpoints import Point
from layerfs.container.ociruntime import ContainerError
from layerfs.container.rootfs import open_beneath
from layerfs.errors import LayerfsError, from_os_error
from layerfs.host.polling import readable

if TYPE_CHECKING:
    from layerfs.build.workplace import Workplace

HOSTNAME = "buildkitsandbox"
"""As BuildKit's: the same in every build."""
_HOOK = """
read -r word <"$0" && test "$word" = go || exit 1
test $# = 0 && exit
state=$(cat)
pid=${state#*'"pid":'}
exec nsenter -t "${pid%%[!0-9]*}" -m -- sh -c '
while test $# -gt 0; do mount --bind "$1" "$2" || exit; shift 2; done' sh "$@"
"""
"""Waits for the word. The end of whoever would say it is no such word, and before that is heard, no file.

Then mounts what is left to it: pairs of a source and a destination, in the namespace of the container.
"""
_LOOK = 0.1
"""Seconds between two looks whether the build is to end."""
_PIECE = 1 << 16
_ENDING = 20.0
"""Seconds that a container may take to end once it was killed."""
_TAIL = 4096
"""Bytes of the output that are kept for the message when the command fails."""


class Output(Protocol):
    """Where what a command writes goes."""

    def __call__(self, piece: bytes, /, *, error: bool) -> None:
        """Take a *piece* of its standard output, or its standard *error*."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run, and how."""

    words: tuple[str, ...]
    variables: tuple[str, ...]
    """`NAME=VALUE`, the image's and those of the build."""
    directory: str
    user: str
    host: Mapping[str, Any]
    """Docker's `HostConfig`, complete, with the network's mode among it."""
    points: tuple[Point, ...] = ()
    """What is mounted besides what every container has."""
    namespace: str | None = None
    """The path of the network namespace, None for a mode that needs none."""
    network: hostfiles.Network = field(default_factory=hostfiles.Network)


class Container:
    """A container that has been made ahead and waits for `go`."""

    def __init__(self, work: Workplace, tree: Path, order: Order, *, ahead: bool = False) -> None:
        """Make it on the mounted *tree*. Raises `LayerfsError`; then nothing of it is left.

        *ahead*: another command still works on the tree. Then it is refused if something would have to be
        made to mount on, which would be in that one's layer.
        """
        self.order = order
        self.id, self.bundle = work.container()
        self._tree = tree
        self._runtime = ociruntime.installed()[0]
        self._root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._go: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._missing = targets.Missing()
        self._later: list[Point] = []
        """What the hook mounts when nothing else works on the tree: a runtime follows paths that the other
        command could change meanwhile, out of the tree."""
        try:
            self.user = users.find_user(self._root, order.user)
            built = self._specification(ahead=ahead)
            places = _outermost(built["mounts"]) + [point["Destination"] for point in self._later]
            self._missing = targets.missing(self._root, places)
            if ahead and self.made_places:
                raise LayerfsError("something is missing to mount on")
            (self.bundle / "config.json").write_text(json.dumps(built), errors="surrogateescape")
            self._start()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise from_os_error(error, "make a container for RUN") from None
            raise

    def _specification(self, *, ahead: bool) -> dict[str, Any]:
        order = self.order
        own = self.bundle / "files"
        own.mkdir()
        named = hostfiles.write(own, HOSTNAME, "", order.host, order.network)
        # /etc/hostname is the image's, as with BuildKit: a command may write it for those who run the image.
        named = [point for point in named if point["Destination"] != "/etc/hostname"]
        taken = {point["Destination"] for point in order.points}
        named = [point for point in named if point["Destination"] not in taken]
        if ahead:
            named, self._later = [], named
        built = spec.build(
            mount_id=self.id,
            root=self._tree,
            config={
                "Entrypoint": [],
                "Cmd": list(order.words),
                "Env": list(order.variables),
                "WorkingDir": order.directory,
            },
            settings={"HostConfig": order.host, "Tty": False, "Hostname": HOSTNAME, "Domainname": ""},
            user=self.user,
            points=[*named, *order.points],
            joins={"network": order.namespace} if order.namespace else {},
        )
        shell = ociruntime.find_program("sh") or "/bin/sh"
        self._go = os.pipe()
        # By way of this process: who opens it after our end finds nothing, and does not wait for ever.
        go = f"/proc/{os.getpid()}/fd/{self._go[0]}"
        pairs = [(it["Source"], f"{self._tree}{it['Destination']}") for it in self._later]
        hook = {
            "path": shell,
            "args": ["sh", "-c", _HOOK, go, *(path for pair in pairs for path in pair)],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        }
        built["hooks"] = {"createRuntime": [hook]}
        return built

    def _start(self) -> None:
        log = ("--log", str(self.bundle / "log"), "--log-format", "json")
        run = ("run", "--bundle", str(self.bundle), "--pid-file", str(self.bundle / "pid"), self.id)
        self._process = subprocess.Popen(
            [self._runtime.path, *self._runtime.options, *log, *run],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # a terminal's Ctrl-C is for the build, which then ends this
        )

    def fits(self, order: Order) -> bool:
        """Return whether this is the container for *order*, the tree being what it is by now."""
        if order != self.order or self._process is None or self._process.poll() is not None:
            return False
        with suppress(LayerfsError):
            return self._has_places() and users.find_user(self._root, order.user) == self.user
        return False

    def _has_places(self) -> bool:
        """Return whether there are files, and no links, to mount the rest on."""
        for point in self._later:
            try:
                fd = open_beneath(self._root, os.fsencode(point["Destination"].lstrip("/")), os.O_PATH)
            except OSError:
                return False
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return False
            finally:
                os.close(fd)
        return True

    @property
    def made_places(self) -> bool:
        """Whether something is made in the tree to mount on; it is away again once the command has ended."""
        return bool(self._missing.paths)

    def go(self) -> None:
        """Let the command begin."""
        os.write(self._go[1], b"go\n")

    def finish(self, output: Output, check: Callable[[], None]) -> None:
        """Wait for the end of the command, whose output goes to *output*, and take the container away.

        *check* is called now and then, and ends it by raising. Nothing of the command runs when this returns,
        and what was made to mount on is out of the tree again. Raises `StepFailed`, or another `LayerfsError`
        where there was no container to run it in.
        """
        process = self._process
        assert process is not None
        assert process.stdout is not None
        assert process.stderr is not None
        tail = b""
        try:
            errors = process.stderr.fileno()
            waiting = [process.stdout.fileno(), errors]
            while waiting:
                for pipe in readable(waiting, _LOOK):
                    if piece := os.read(pipe, _PIECE):
                        tail = (tail + piece)[-_TAIL:]
                        output(piece, error=pipe == errors)
                    else:
                        waiting.remove(pipe)
                check()
            code = self._wait(check)
        finally:
            self.discard()
        if code != 0:
            raise self._failure(code, tail)

    def _wait(self, check: Callable[[], None]) -> int:
        assert self._process is not None
        while True:
            try:
                return self._process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                check()

    def _failure(self, code: int, tail: bytes) -> LayerfsError:
        if code < 0:
            return ContainerError(f"the OCI runtime of the command was killed by signal {-code}")
        if said := self._complaint:
            found = ociruntime.failure(said)
            if not found.is_about_the_command:
                return ContainerError(f"cannot run the command: {found}")
            code = found.exit_code
        return StepFailed(self.order.words, code, tail)

    def discard(self) -> None:
        """End what there is of the container, and remove it. May be repeated. Raises `LayerfsError`."""
        process, self._process = self._process, None
        self._complaint = ""
        if process is not None:
            if process.poll() is None or (process.returncode or 0) < 0:  # killed, it has ended nothing
                os.write(self._go[1], b"no\n")
                self._end(process)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            with suppress(OSError):
                self._complaint = (self.bundle / "log").read_text(errors="replace")
        for fd in self._go:  # not before: the hook opens them by their numbers
            os.close(fd)
        self._go = ()
        root, self._root = self._root, -1
        if root >= 0:
            try:
                if process is not None:
                    targets.clear_away(root, self._missing)
            except OSError as error:
                raise from_os_error(error, "remove the mountpoints of a RUN") from None
            finally:
                os.close(root)
        shutil.rmtree(self.bundle, ignore_errors=True)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _ENDING
        while True:
            self._runtime.delete(self.id)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK)
                return
            if time.monotonic() > deadline:
                break
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        raise LayerfsError(f"the container {self.id} was killed, but does not end (process {process.pid})")


def _outermost(mounts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the destinations of *mounts* that lie in none of the others."""
    all_ = [str(mount["destination"]) for mount in mounts]
    return [it for it in all_ if not any(it != other and it.startswith(f"{other}/") for other in all_)]
