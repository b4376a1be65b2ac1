"""The process that stays with a container: conmon(8), as Podman and CRI-O use it.

It holds the terminal or the pipes, writes the log, lets clients attach, notes the exit code, and runs a
command at the end: the one that has cleared away (`layerfs.container.exited`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs.container.ociruntime import ContainerError, Runtime, failure, find_program
from layerfs.errors import NotFound
from layerfs.host import rundir
from layerfs.host.polling import readable
from layerfs.unixhttp.message import quoted_root

_PATIENCE = 60.0
"""Seconds that a container may take to be created."""
_LAST_WORD = 5.0
"""Seconds that the exit code may take to appear after the process has ended."""
_EXITED = str(Path(__file__).with_name("exited.py"))
"""Run as a file: to import it as a module would import all that the room imports."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """What a supervisor is to do for a container."""

    mount_id: str
    bundle: Path
    """The directory with config.json; the attach socket and the exit code appear there."""
    log: Path
    log_limit: int | None
    """Bytes that the log may have until it begins anew; None for no limit, 0 for no log at all."""
    root: Path
    """The store's root, for the command that clears away."""
    terminal: bool
    stdin: bool
    stdin_stays_open: bool
    """Whether more clients may attach and write after the first one has left."""
    holds: tuple[int, ...] = ()
    """Descriptors that it is to have open for as long as the container runs: see `publishing`."""


def find_conmon() -> str:
    """Return the path of conmon; raises `NotFound`."""
    if path := find_program("conmon"):
        return path
    raise NotFound("conmon is not installed: install the package conmon")


def create(conmon: str, oci: Runtime, wanted: Supervised) -> int:
    """Start a supervisor that creates a container; return the pid of its process, which waits to be started.

    Raises `ContainerError`; then neither is left.
    """
    answer, report = os.pipe()
    output = wanted.bundle / "conmon.log"
    try:
        with output.open("wb") as messages:
            process = subprocess.Popen(
                [conmon, *_arguments(oci, wanted)],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                env={**os.environ, "LAYERFS_RUN": str(rundir.run_dir()), "_OCI_SYNCPIPE": str(report)},
                pass_fds=(report, *wanted.holds),
                cwd="/",
            )
        os.close(report)
        report = -1
        process.wait(_PATIENCE)
        return _read_pid(answer, output)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise ContainerError(f"conmon did not start within {_PATIENCE:g} seconds") from None
    finally:
        os.close(answer)
        if report >= 0:
            os.close(report)


def _arguments(oci: Runtime, wanted: Supervised) -> list[str]:
    bundle = str(wanted.bundle)
    arguments = [
        "--api-version=1",
        f"--cid={wanted.mount_id}",
        f"--cuuid={wanted.mount_id}",
        f"--name={wanted.mount_id}",
        f"--runtime={oci.path}",
        *(f"--runtime-arg={option}" for option in oci.options),
        f"--bundle={bundle}",
        f"--container-pidfile={bundle}/pid",
        f"--conmon-pidfile={bundle}/conmon.pid",
        f"--exit-dir={bundle}",
        f"--log-path={'none' if wanted.log_limit == 0 else f'k8s-file:{wanted.log}'}",
        *([f"--log-size-max={wanted.log_limit}"] if wanted.log_limit else []),
        "--full-attach",
        "--no-sync-log",
        f"--exit-command={sys.executable}",
    ]
    exited = (
        *("-I", "-S", _EXITED, str(wanted.root), wanted.mount_id),
        *(str(rundir.engine_socket()), quoted_root(wanted.root)),
    )
    arguments += [f"--exit-command-arg={word}" for word in exited]
    options = {"-t": wanted.terminal, "-i": wanted.stdin, "--leave-stdin-open": wanted.stdin_stays_open}
    return [*arguments, *(option for option, given in options.items() if given)]


def _read_pid(answer: int, output: Path) -> int:
    """Return the pid that conmon reports; raise what it reports instead."""
    text, deadline = b"", time.monotonic() + _PATIENCE
    while not text.endswith(b"\n"):
        ready = readable([answer], max(0.0, deadline - time.monotonic()))
        part = os.read(answer, 65536) if ready else b""
        if not part:
            break
        text += part
    try:
        report = json.loads(text)
    except ValueError:
        said = output.read_text(errors="replace").strip()
        raise ContainerError(f"conmon ended at its start: {said or 'it gave no reason'}") from None
    pid = int(report.get("data", -1))
    if pid <= 0:
        raise failure(str(report.get("message", "")))
    return pid


def exit_code(bundle: Path, mount_id: str) -> int | None:
    """Return the exit code of a container that has ended, None if its supervisor died before it wrote it."""
    deadline = time.monotonic() + _LAST_WORD
    while True:
        supervised = _supervisor_lives(bundle)  # before looking, so that nothing falls between
        with suppress(FileNotFoundError, ValueError):
            return int((bundle / mount_id).read_text())
        if not supervised or time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def _supervisor_lives(bundle: Path) -> bool:
    from layerfs.host.record import born

    try:
        pid = int((bundle / "conmon.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return os.fsencode(f"--bundle={bundle}") in words and born(pid) is not None
