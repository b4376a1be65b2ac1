"""One more process in a container that runs: made first, started later, asked for its exit code at the end.

What is known of such processes lies in the memory of the process that made them, as with dockerd.
"""

from __future__ import annotations

import json
import os
import pty
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container import capabilities
from layerfs.container.lifecycle import bundle_of
from layerfs.container.ociruntime import ContainerError, Runtime, failure
from layerfs.container.settings import absolute, environment
from layerfs.container.spec import given_rights, identity
from layerfs.errors import Conflict, NotFound
from layerfs.host.record import born, directories
from layerfs.host.terminal import set_size

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_KEPT = 1000
"""Processes that have ended and are remembered."""
_PREFIX = "exec-"
"""What the names of their directories begin with, before the pid of the process that made them."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What is to run."""

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    terminal: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    privileged: bool = False
    keys: str = ""
    """The keys to detach, as the client wrote them."""


@dataclass
class Exec:
    """A process in a container."""

    container: str
    """The id of the container."""
    wanted: Execution
    id: str = field(default_factory=lambda: secrets.token_hex(32))
    pid: int = 0
    exit_code: int | None = None
    process: subprocess.Popen[bytes] | None = None
    """The OCI runtime that is its parent."""
    master: int = -1
    """Our side of its terminal."""
    started: bool = False
    _directory: tempfile.TemporaryDirectory[str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self.started and self.exit_code is None

    def start(self, row: Mount, *, detached: bool) -> None:
        """Start it in the container *row*, with pipes or a terminal for its input and output, or *detached*.

        Raises `Conflict` if it was started before, or the container does not run, and `LayerfsError`.
        """
        with self._lock:
            if self.started:
                raise Conflict(f"exec command {self.id[:12]} was started already")
            record, bundle = bundle_of(row)
            description = _process(bundle, self.wanted)
            self.started = True
        self._directory = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=bundle.parent)
        place = Path(self._directory.name)
        (place / "process.json").write_text(json.dumps(description), errors="surrogateescape")
        runtime = Runtime(record.runtime)
        words = [
            runtime.path,
            *runtime.options,
            f"--log={place / 'log'}",
            "exec",
            f"--process={place / 'process.json'}",
            f"--pid-file={place / 'pid'}",
            row.id,
        ]
        try:
            self.process = self._terminal(words) if self.wanted.terminal else self._pipes(words, detached)
        except BaseException:
            self.exit_code = 126
            self._directory.cleanup()
            raise
        if detached:
            self._await_beginning(place / "pid")
            threading.Thread(target=self._let_run, name=f"exec {self.id[:12]}", daemon=True).start()

    def _pipes(self, words: list[str], detached: bool) -> subprocess.Popen[bytes]:
        stdin = subprocess.PIPE if self.wanted.stdin and not detached else subprocess.DEVNULL
        output = subprocess.DEVNULL if detached else subprocess.PIPE
        return subprocess.Popen(
            words, bufsize=0, cwd="/", stdin=stdin, stdout=output, stderr=output, start_new_session=True
        )

    def _terminal(self, words: list[str]) -> subprocess.Popen[bytes]:
        self.master, slave = pty.openpty()
        try:
            # The runtime copies between this terminal, which it makes raw, and the one of the container.
            return subprocess.Popen(
                ["setsid", "--ctty", "--wait", *words], cwd="/", stdin=slave, stdout=slave, stderr=slave
            )
        finally:
            os.close(slave)

    def _await_beginning(self, pid: Path) -> None:
        """Return when the process has begun: this one may end now, and its directory with what it is told.

        Raises `ContainerError` if it could not begin.
        """
        assert self.process is not None
        while not pid.exists():
            if self.process.poll() is not None:
                self.wait()
                return
            time.sleep(0.002)

    def _let_run(self) -> None:
        if self.master >= 0:  # somebody has to take what it writes
            with suppress(OSError):
                while os.read(self.master, 65536):
                    pass
        with suppress(ContainerError):
            self.wait()

    def wait(self) -> int:
        """Wait for its end and return its exit code. Raises `ContainerError` if it could not begin."""
        assert self.process is not None
        code = self.process.wait()
        if self.exit_code is not None:
            return self.exit_code
        assert self._directory is not None
        log = Path(self._directory.name, "log")
        said = log.read_text(errors="replace") if code and log.exists() else ""
        with self._lock:
            if self.master >= 0:
                os.close(self.master)
                self.master = -1
        self._directory.cleanup()
        if "level=error" in said:  # the runtime itself
            error = failure(said)
            self.exit_code = error.exit_code
            raise error
        self.exit_code = code if code >= 0 else 128 - code
        return self.exit_code

    def find_pid(self) -> int:
        """Return the pid of the process on the machine, 0 while or when it has none."""
        if self.running and not self.pid and self._directory is not None:
            with suppress(OSError, ValueError):
                self.pid = int(Path(self._directory.name, "pid").read_text())
        return self.pid

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal a size; raises `Conflict` if it has none."""
        with self._lock:
            if self.master < 0:
                raise Conflict(f"exec command {self.id[:12]} has no terminal, or does not run")
            set_size(self.master, rows, columns)

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it, if it runs."""
        if pid := self.find_pid():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Execs:
    """The processes that this process has made in containers, by id."""

    def __init__(self) -> None:
        """Know none."""
        self._known: dict[str, Exec] = {}
        self._lock = threading.Lock()

    def add(self, new: Exec) -> None:
        """Remember *new*; of those that have ended the oldest are forgotten."""
        with self._lock:
            self._known[new.id] = new
            for old in [one for one in self._known.values() if one.exit_code is not None][:-_KEPT]:
                del self._known[old.id]

    def get(self, identifier: str) -> Exec:
        """Return the one with this id or start of an id; raises `NotFound`."""
        with self._lock:
            found = self._known.get(identifier)
            if found is None and len(identifier) >= 4:
                found = next((one for key, one in self._known.items() if key.startswith(identifier)), None)
        if found is None:
            raise NotFound(f"No such exec instance: {identifier}")
        return found

    def of(self, container: str) -> list[Exec]:
        """Return those in the container with the id *container* that have not ended."""
        with self._lock:
            return [
                one for one in self._known.values() if one.container == container and one.exit_code is None
            ]


KNOWN = Execs()


def clear_away() -> None:
    """Remove the directories of processes whose makers were killed: nobody asks for those processes now."""
    for path in directories().glob(f"{_PREFIX}*"):
        maker = path.name.split("-")[1]
        if not maker.isdecimal() or born(int(maker)) is None:
            shutil.rmtree(path, ignore_errors=True)


def _process(bundle: Path, wanted: Execution) -> dict[str, Any]:
    """Return the container's own process with what *wanted* has otherwise. Raises `LayerfsError`."""
    process: dict[str, Any] = json.loads((bundle / "config.json").read_bytes())["process"]
    variables = [text for text in process["env"] if wanted.terminal or not text.startswith("TERM=")]
    if wanted.terminal:
        variables = environment(["TERM=xterm"], variables)
    if wanted.user:
        from layerfs.container.users import find_user

        user = find_user(bundle / "rootfs", wanted.user)
        process["user"] = identity(user)
        variables = environment(variables, [f"HOME={user.home}"])
        process["capabilities"] = given_rights(user, process["capabilities"]["bounding"])
    if wanted.privileged:
        rights = capabilities.available()
        process["capabilities"] = dict.fromkeys(("bounding", "permitted", "effective"), rights)
    process["args"] = list(wanted.command)
    process["env"] = environment(variables, wanted.environment)
    process["terminal"] = wanted.terminal
    if wanted.workdir:
        process["cwd"] = absolute(wanted.workdir)
    return process
