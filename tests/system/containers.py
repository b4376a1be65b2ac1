"""What the tests of containers share: an image made from busybox, and an end to all that was run."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from layerfs.container import netavark
from layerfs.host.record import born
from tests.conftest import PATIENCE, Layerfs, wait_until

IMAGE = "busybox:1"
APPLETS = (
    "sh", "cat", "dd", "echo", "grep", "head", "hostname", "id", "ip", "ls", "mkdir", "mount", "mv",
    "seq", "sleep", "stty", "touch", "true", "tty",
)  # fmt: skip

needs_networks = pytest.mark.skipif(
    netavark.find("netavark") is None or netavark.find("aardvark-dns") is None,
    reason="netavark and aardvark-dns are not installed",
)


class Containers:
    """Containers of one image, and the command line that runs them."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        self.tree = layerfs.directory / "busybox-tree"
        busybox = shutil.which("busybox")
        assert busybox, "install busybox-static"
        for name in ("bin", "etc", "tmp", "root", "srv"):
            (self.tree / name).mkdir(parents=True)
        (self.tree / "tmp").chmod(0o1777)
        shutil.copy(busybox, self.tree / "bin/busybox")
        for applet in APPLETS:
            os.link(self.tree / "bin/busybox", self.tree / "bin" / applet)
        (self.tree / "etc/passwd").write_text(
            "root:x:0:0::/root:/bin/sh\njane:x:1000:100::/home/jane:/bin/sh\n"
        )
        (self.tree / "etc/group").write_text("root:x:0:\nusers:x:100:\nwheel:x:10:jane\n")
        layerfs.ok("import", "-c", 'CMD ["sh"]', "-c", "ENV GREETING=hello", self.tree, IMAGE)

    def run(
        self, *arguments: str, stdin: bytes = b"", timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run `layerfs ARGUMENTS` with *stdin* as its input."""
        return subprocess.run(
            [*self.layerfs.words, *arguments],
            env=self.layerfs.environment,
            input=stdin.decode(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def popen(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start `layerfs ARGUMENTS`."""
        return subprocess.Popen([*self.layerfs.words, *arguments], env=self.layerfs.environment, **more)

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what `layerfs inspect` says of a container."""
        found: dict[str, Any] = json.loads(self.layerfs.ok("inspect", name))[0]
        return found

    def state(self, name: str) -> tuple[str, int]:
        """Return the status of a container, and its exit code."""
        state = self.inspect(name)["State"]
        return state["Status"], state["ExitCode"]

    def directory(self, name: str) -> Path:
        """Return the directory of a container that runs."""
        return self.layerfs.run / "containers" / str(self.inspect(name)["Id"])

    def gone(self, name: str) -> bool:
        """Return whether there is no container called *name*."""
        return self.layerfs("inspect", name).returncode == 1

    def names(self) -> list[str]:
        """Return the names of all containers."""
        listed = self.layerfs.ok("ps", "-a", "--format", "json").splitlines()
        return [json.loads(line)["Names"] for line in listed]

    def remove(self, *names: str) -> None:
        """Remove containers, whatever they do; all of them if none is named."""
        if names := names or tuple(self.names()):
            assert self.layerfs("rm", "-f", *names).returncode == 0

    def end(self) -> None:
        """End every container, in an orderly way where that is possible."""
        try:
            self.remove()
            wait_until(lambda: not self.supervisors())
        finally:
            for path in self.layerfs.run.glob("containers/*/record"):
                with suppress(OSError, ValueError):
                    record = json.loads(path.read_bytes())
                    if born(record["pid"]) == record["born"]:
                        os.kill(record["pid"], signal.SIGKILL)

    def supervisors(self) -> list[int]:
        """Return the pids of the supervisors that live."""
        found = []
        for pid in self.layerfs.processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "conmon\n":
                    found.append(pid)
        return found


@contextmanager
def containers(directory: Path, layerfs: Layerfs | None = None) -> Iterator[Containers]:
    """Make the image in a store below *directory*; end every container, and all else, when the block ends."""
    layerfs = layerfs or Layerfs(directory)
    made = Containers(layerfs)
    try:
        yield made
    finally:
        try:
            made.end()
        finally:
            layerfs.end()


class Terminal:
    """`layerfs ARGUMENTS`, or another *command*, on a terminal of its own; a context manager."""

    def __init__(
        self,
        containers: Containers,
        arguments: Sequence[str],
        rows: int = 33,
        columns: int = 101,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.output = b""
        self.slave = slave
        self.process = subprocess.Popen(
            command or [*containers.layerfs.words, *arguments],
            env=env or containers.layerfs.environment,
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_control,
        )

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size; the process is told."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Type *text*."""
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> str:
        """Wait until *text* has appeared since the last time; return what came before it."""
        deadline = time.monotonic() + 20
        ready = select.poll()  # select(2) takes no descriptor above 1,023
        ready.register(self.master, select.POLLIN)
        while text.encode() not in self.output:
            assert time.monotonic() < deadline, (text, self.output)
            if ready.poll(100):
                self.output += os.read(self.master, 4096)
        before, _, self.output = self.output.partition(text.encode())
        return before.decode()

    def end(self) -> int:
        """Wait for the end of the process and return its exit code."""
        return self.process.wait(20)

    def is_as_it_was(self) -> bool:
        """Return whether the terminal has the settings that it began with."""
        return termios.tcgetattr(self.slave) == self.before

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.master)
        os.close(self.slave)


def _control() -> None:
    """Make standard input the controlling terminal, so that signals come from it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
