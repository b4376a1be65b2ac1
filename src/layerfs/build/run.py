"""RUN: a command in a container on a stage's live mount.

The container has no supervisor and no row: `runc run` is a child of the build, and what the command writes
comes through a pipe. All but the last of what a runtime does comes before a step needs it: it is started
ahead, while the command before runs, and then waits in its `gate`, which this process alone can open. When
this process ends, the command never begins.

The places in /etc are mounted after the word: the command before could have put a link in the way of a
runtime, which then makes files outside of the tree.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from layerfs.build import gate, targets
from layerfs.build.child import Child
from layerfs.build.errors import StepFailed
from layerfs.build.gate import Gate
from layerfs.container import hostfiles, ociruntime, spec, users
from layerfs.container.inside import mount_files
from layerfs.container.mountpoints import Point
from layerfs.container.ociruntime import ContainerError
from layerfs.container.rootfs import open_beneath
from layerfs.errors import LayerfsError, from_os_error
from layerfs.host.polling import readable

if TYPE_CHECKING:
    from layerfs.build.workplace import Workplace

HOSTNAME = "buildkitsandbox"
"""As BuildKit's: the same in every build."""
_LOOK = 0.1
"""Seconds between two looks whether the build is to end."""
_ENDING = 20.0
"""Seconds that a container may take to end once it was killed."""
_GIVEN_UP = 2.0
"""Seconds that one may take to end by itself whose command will never begin."""
_CODES = {errno.ENOENT: 127, errno.ENOTDIR: 127, errno.EACCES: 126, errno.EISDIR: 126, errno.ENOEXEC: 126}
"""The exit codes that a runtime has for a command that cannot be executed."""
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
    """A container whose command waits for `go`."""

    def __init__(self, work: Workplace, tree: Path, order: Order, *, ahead: bool = False) -> None:
        """Make it on the mounted *tree*. Raises `LayerfsError`; then nothing of it is left.

        *ahead*: another command still works on the tree. Then it is refused if something would have to be
        made in that, which would be in the other's layer.
        """
        self.order = order
        self.id, self.bundle = work.container()
        self._tree = tree
        self._ahead = ahead
        self._runtime = ociruntime.installed()[0]
        self._root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._gate = Gate() if gate.is_there() else None
        self._process: Child | None = None
        self._begun = False
        self._refused = 0
        """The number of the error with which the command could not be executed."""
        self._complaint = ""
        self._tail = b""
        self._missing = targets.Missing()
        self._later: list[Point] = []
        """What is mounted when nothing else works on the tree: a runtime follows paths that the other
        command could change meanwhile, out of the tree."""
        try:
            if ahead and (self._gate is None or not gate.takes(order.directory)):
                raise LayerfsError("a container cannot be made ahead")
            self.user = users.find_user(self._root, order.user)
            built = self._specification(ahead=ahead)
            places = _outermost(built["mounts"]) + [point["Destination"] for point in self._later]
            self._missing = targets.missing(self._root, places)
            if ahead and self.made_places:
                raise LayerfsError("something is missing to mount on")
            (self.bundle / "config.json").write_text(json.dumps(built), errors="surrogateescape")
            if self._gate is not None:
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
        return spec.build(
            mount_id=self.id,
            root=self._tree,
            config={
                "Entrypoint": [],
                "Cmd": [*(gate.WORDS if self._gate else ()), *order.words],
                "Env": list(order.variables),
                # The command before may yet remove that, or make it: it is entered after the word.
                "WorkingDir": "/" if ahead else order.directory,
            },
            settings={"HostConfig": order.host, "Tty": False, "Hostname": HOSTNAME, "Domainname": ""},
            user=self.user,
            points=[*named, *order.points],
            joins={"network": order.namespace} if order.namespace else {},
        )

    def _start(self) -> None:
        log = ("--log", str(self.bundle / "log"), "--log-format", "json")
        given = self._gate.descriptors if self._gate is not None else ()
        run = ("run", "--bundle", str(self.bundle), *(gate.OPTIONS if given else ()), self.id)
        words = [self._runtime.path, *self._runtime.options, *log, *run]
        self._process = Child(words, *given, owner=self.user.uid)
        if self._gate is not None:
            self._gate.started()

    def fits(self, order: Order) -> bool:
        """Return whether this is the container for *order*, the tree being what it is by now."""
        if order != self.order:
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

    def go(self, check: Callable[[], None]) -> bool:
        """Let the command begin; return whether it does so.

        One that was made ahead and does not is to be made again. Of another one `finish` says what is wrong.
        *check* is called now and then while it is not ready yet, and ends that by raising.
        """
        if self._gate is None:
            self._start()
            return True
        process = self._running
        while not self._gate.is_ready(process.fd, _LOOK):
            if process.wait(0):
                return not self._ahead
            check()
        try:
            mount_files(self._gate.process, [(it["Source"], it["Destination"]) for it in self._later])
        except OSError:
            return False
        self._begun = self._gate.go(self.order.directory if self._ahead else "")
        return self._begun or not self._ahead

    @property
    def _running(self) -> Child:
        assert self._process is not None
        return self._process

    def watch(self, output: Output, check: Callable[[], None]) -> None:
        """Wait until the command has ended, with all that it has started; *output* is given what it writes.

        *check* is called now and then, and ends this by raising. What was made to mount on is out of the tree
        again when it returns. Raises `LayerfsError`.
        """
        process = self._running

        def take(piece: bytes, error: bool) -> None:
            self._tail = (self._tail + piece)[-_TAIL:]
            output(piece, error=error)

        inside = self._gate.process if self._gate is not None else -1
        ends = {fd for fd in (inside, process.fd) if fd >= 0}
        while ends.isdisjoint(readable((*ends, *process.pipes), _LOOK)):
            process.pass_on(take)
            check()
        while process.pass_on(take):
            check()
        if process.wait(0) and process.was_killed:  # and perhaps nothing in the container
            raise self._failure(process.code or 0)
        if self._gate is not None and (error := self._gate.refusal()):
            self._refused = error
            take(f"exec: {json.dumps(self.order.words[0])}: {os.strerror(error)}\n".encode(), True)
        self._clear_away()

    def finish(self, check: Callable[[], None]) -> None:
        """Say how the command that `watch` has seen end has ended, and take the container away.

        Raises `StepFailed`, or another `LayerfsError` where there was no container to run it in.
        """
        process = self._running
        while not process.wait(_LOOK):
            check()
        self.discard()
        if process.code != 0:
            raise self._failure(process.code or 0)

    def _failure(self, code: int) -> LayerfsError:
        if code < 0:
            return ContainerError(f"the OCI runtime of the command was killed by signal {-code}")
        if self._refused:
            code = _CODES.get(self._refused, 0)
            if not code:
                return ContainerError(f"cannot run the command: {os.strerror(self._refused)}")
        elif said := self._complaint:
            found = ociruntime.failure(said)
            if not found.is_about_the_command:
                return ContainerError(f"cannot run the command: {found}")
            code = found.exit_code
        return StepFailed(self.order.words, code, self._tail)

    def discard(self) -> None:
        """End what there is of the container, and remove it. May be repeated. Raises `LayerfsError`."""
        process, self._process = self._process, None
        if self._gate is not None:
            self._gate.close()
        if process is not None:
            ends_itself = self._gate is not None and not self._begun
            if not process.wait(_GIVEN_UP if ends_itself else 0) or process.was_killed:
                self._end(process)
            process.close()
            with suppress(OSError):
                self._complaint = (self.bundle / "log").read_text(errors="replace")
        try:
            if process is not None:
                self._clear_away()
        finally:
            root, self._root = self._root, -1
            if root >= 0:
                os.close(root)
            shutil.rmtree(self.bundle, ignore_errors=True)

    def _clear_away(self) -> None:
        """Take what was made to mount on out of the tree, if it is there."""
        missing, self._missing = self._missing, targets.Missing()
        try:
            targets.clear_away(self._root, missing)
        except OSError as error:
            raise from_os_error(error, "remove the mountpoints of a RUN") from None

    def _end(self, process: Child) -> None:
        deadline = time.monotonic() + _ENDING
        while True:
            self._runtime.delete(self.id)
            if process.wait(_LOOK):
                return
            if time.monotonic() > deadline:
                break
            process.kill()
        raise LayerfsError(f"the container {self.id} was killed, but does not end (process {process.pid})")


def _outermost(mounts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the destinations of *mounts* that lie in none of the others."""
    all_ = [str(mount["destination"]) for mount in mounts]
    return [it for it in all_ if not any(it != other and it.startswith(f"{other}/") for other in all_)]
