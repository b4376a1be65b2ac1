"""Committing what was written: layerfs on its socket and as a command, and `buildah commit`."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from ..measure import timed
from ..peers import command
from ..registry import Row, Stage, workload
from ..targets import COMMAND, REQUEST
from ..trees import file_names, make_directories

MOUNT = "bench"
BASE = "bench:base"
RESULT = "bench:result"


def write_files(stage: Stage, top: Path, files: int) -> None:
    """Write *files* files of 4 KiB below *top*, a hundred a directory."""
    names = file_names(max(1, files // 100), files)
    make_directories(top, names)
    stage.prober.run(top, "create", names)


@contextmanager
def written(stage: Stage, files: int) -> Iterator[None]:
    """Have an image of the store mounted by name, as a commit needs it, and *files* files written to it."""
    command("layerfs", "import", stage.stack.lowers[0], BASE)
    try:
        command("layerfs", "mount", "--image", BASE, "--name", MOUNT, stage.stack.mountpoint)
        try:
            write_files(stage, stage.stack.mountpoint, files)
            yield
        finally:
            command("layerfs", "rm", "-f", MOUNT)
    finally:
        command("layerfs", "rmi", "-f", *command("layerfs", "images", "-q").split())


def request(method: str, path: str, socket_path: Path) -> None:
    """Ask a control socket for something, as any client of the Docker Engine API does."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(socket_path))
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status not in (200, 201):
        raise RuntimeError(f"{method} {path} answered {response.status}: {body!r}")


def request_commit() -> None:
    """Commit by a request on the mount's socket."""
    repository, _, tag = RESULT.partition(":")
    query = urlencode({"container": MOUNT, "repo": repository, "tag": tag, "comment": "bench"})
    request("POST", f"/v1.41/commit?{query}", Path(os.environ["LAYERFS_RUN"], f"{MOUNT}.sock"))


def commit_request(stage: Stage, files: int) -> float:
    """Return the time of a request, from connecting to the answer."""
    with written(stage, files):
        return timed(request_commit)


def buildah_commit(stage: Stage, files: int) -> float:
    """Return the time of `buildah commit` of a working container in which *files* files were written."""
    store = stage.stack.upper
    policy = store / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    places = ("--root", store / "root", "--runroot", store / "run", "--storage-driver", "overlay")

    def buildah(*words: str | Path) -> str:
        return command("buildah", *places, *words)

    buildah("from", "--name", MOUNT, "scratch")
    try:
        write_files(stage, Path(buildah("mount", MOUNT).strip()), files)
        commit = ("commit", "-q", "--signature-policy", policy, MOUNT, RESULT)
        return timed(lambda: buildah(*commit))
    finally:
        buildah("rm", MOUNT)


def commit_command(stage: Stage, files: int) -> float:
    """Return the time of the command, its own start included."""
    if stage.peer == "buildah":
        return buildah_commit(stage, files)
    with written(stage, files):
        return timed(lambda: command("layerfs", "commit", "-m", "bench", MOUNT, RESULT))


@workload("empty", Row("commit request, 10 files written", REQUEST), peers=("layerfs",))
def request_few(stage: Stage) -> float:
    """Hardly anything."""
    return commit_request(stage, stage.sizes.commit_few)


@workload("empty", Row("commit request, 10,000 files written", REQUEST), peers=("layerfs",), costly=True)
def request_some(stage: Stage) -> float:
    """As many as a large package has."""
    return commit_request(stage, stage.sizes.commit_some)


@workload("empty", Row("commit request, 100,000 files written", REQUEST), peers=("layerfs",), costly=True)
def request_many(stage: Stage) -> float:
    """As many as a distribution has."""
    return commit_request(stage, stage.sizes.commit_many)


@workload("empty", Row("commit command, 10 files written", COMMAND), peers=("layerfs", "buildah"))
def command_few(stage: Stage) -> float:
    """Hardly anything."""
    return commit_command(stage, stage.sizes.commit_few)


@workload(
    "empty", Row("commit command, 10,000 files written", COMMAND), peers=("layerfs", "buildah"), costly=True
)
def command_some(stage: Stage) -> float:
    """As many as a large package has."""
    return commit_command(stage, stage.sizes.commit_some)


@workload(
    "empty", Row("commit command, 100,000 files written", COMMAND), peers=("layerfs", "buildah"), costly=True
)
def command_many(stage: Stage) -> float:
    """As many as a distribution has."""
    return commit_command(stage, stage.sizes.commit_many)
