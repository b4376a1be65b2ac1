"""The life of a mount: mounting, committing, and what its daemon keeps in memory."""

from __future__ import annotations

import http.client
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from ..measure import timed, walk
from ..peers import PEERS, command, daemon_pid, unmount
from ..registry import Stage, workload
from ..trees import WALK_FILES, file_names, make_files

MOUNTING = ("layerfs", "overlay", "fuse-overlayfs")
DAEMONS = ("layerfs", "fuse-overlayfs")
MOUNT = "bench"
BASE = "bench:base"
RESULT = "bench:result"
GIB = 1 << 30


@workload("mount until usable", "empty", peers=MOUNTING)
def mount(stage: Stage) -> float:
    """The mount command, and the first stat of a file in it."""

    def mount_and_look() -> None:
        PEERS[stage.peer](stage.stack)
        os.stat(stage.path("d/f"))

    try:
        return timed(mount_and_look)
    finally:
        unmount(stage.stack.mountpoint)


def resident() -> float:
    """Return the resident memory of the daemon of the present mount, in bytes."""
    status = Path(f"/proc/{daemon_pid()}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@workload("resident memory of an idle daemon", "empty", unit="B", peers=DAEMONS)
def memory_idle(stage: Stage) -> float:
    """Just mounted."""
    with stage.mounted():
        return resident()


@workload("resident memory after a walk over 100,000 files", "many", unit="B", peers=DAEMONS)
def memory_walked(stage: Stage) -> float:
    """The kernel keeps the inodes cached, so the daemon has to know them all."""
    with stage.mounted():
        assert walk(stage.top) > WALK_FILES
        return resident()


@contextmanager
def image_mounted(stage: Stage) -> Iterator[None]:
    """Have an image of the store mounted by name, as a commit needs it; all of it is removed afterwards."""
    command("layerfs", "import", stage.stack.lower, BASE)
    try:
        command("layerfs", "mount", "--image", BASE, "--name", MOUNT, stage.stack.mountpoint)
        try:
            yield
        finally:
            command("layerfs", "rm", "-f", MOUNT)
    finally:
        command("layerfs", "rmi", "-f", *command("layerfs", "images", "-q").split())


def write_upper(stage: Stage, files: int, size: int) -> None:
    """Write *files* files that are *size* bytes together, a hundred a directory."""
    make_files(stage.stack.mountpoint, file_names(max(1, files // 100), files), os.urandom(size // files))


def request_commit() -> None:
    """Ask for a commit on the mount's socket, as any client of the Docker Engine API does."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(f"{os.environ['LAYERFS_RUN']}/{MOUNT}.sock")
    repository, _, tag = RESULT.partition(":")
    query = urlencode({"container": MOUNT, "repo": repository, "tag": tag, "comment": "bench"})
    connection.request("POST", f"/v1.41/commit?{query}")
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 201:
        raise RuntimeError(f"commit answered {response.status}: {body!r}")


@workload("commit request, 10 files written", "empty", peers=("layerfs",))
def commit_few(stage: Stage) -> float:
    """From connecting to the control socket to the answer."""
    with image_mounted(stage):
        write_upper(stage, 10, 10 * 4096)
        return timed(request_commit)


@workload("commit request, 50,000 files of 1 GiB written", "empty", peers=("layerfs",))
def commit_many(stage: Stage) -> float:
    """The same; it should take the same."""
    with image_mounted(stage):
        write_upper(stage, 50_000, GIB)
        return timed(request_commit)


@workload("layerfs commit, the command, 10 files written", "empty", peers=("layerfs",))
def commit_command(stage: Stage) -> float:
    """With the start of the command."""
    with image_mounted(stage):
        write_upper(stage, 10, 10 * 4096)
        return timed(lambda: command("layerfs", "commit", "-m", "bench", MOUNT, RESULT))
