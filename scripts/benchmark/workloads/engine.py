"""What an engine makes quick: mounting, running a container, listing; podman beside it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from ..measure import timed
from ..peers import command
from ..registry import Row, Stage, workload
from ..targets import ENGINE_MOUNT, LIST, REQUEST, RUN
from .commit import BASE, MOUNT, request, write_files

_PATIENCE = 20.0
_PODMAN = ("--storage-driver", "overlay", "--runtime", "runc", "--cgroup-manager", "cgroupfs")
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""podman asks for more than root may have on some machines."""
_TIMES = 5
"""How often something short is done, of which the median counts."""


@contextmanager
def engine(stage: Stage) -> Iterator[Path]:
    """Have an engine that has just taken up its work, and the image `BASE`; yield the engine's socket."""
    command("layerfs", "import", stage.stack.lowers[0], BASE)
    path = Path(os.environ["LAYERFS_RUN"], "engine.sock")
    process = subprocess.Popen(["layerfs", "engine"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(2)  # the process that forks mounts imports meanwhile
        yield path
    finally:
        process.terminate()
        process.wait(_PATIENCE)
        command("layerfs", "rmi", "-f", *command("layerfs", "images", "-q").split())


def busybox(stage: Stage) -> None:
    """Make the lower tree one in which a shell can be run."""
    top = stage.stack.lowers[0]
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        (top / name).mkdir(exist_ok=True)
    if not (top / "bin/true").exists():
        command("cp", "/bin/busybox", top / "bin/true")


@workload("empty", Row("mount until usable, with an engine", ENGINE_MOUNT), peers=("layerfs",))
def mount_by_engine(stage: Stage) -> float:
    """A request to the engine, and the first stat of a file in the mount."""
    import json

    from layerfs.client.client import Client

    with engine(stage):
        client = Client.of(Path(os.environ["LAYERFS_ROOT"]))
        body = json.dumps({"mountpoint": stage.top, "image": BASE, "name": MOUNT}).encode()
        try:

            def mount_and_look() -> None:
                client.request("POST", "/layerfs/mounts", body=body)
                os.stat(stage.stack.mountpoint)

            return timed(mount_and_look)
        finally:
            command("layerfs", "rm", "-f", MOUNT)


@workload("empty", Row("commit request to an engine, the first, 10 files", REQUEST), peers=("layerfs",))
def commit_by_engine(stage: Stage) -> float:
    """The engine passes it on to the mount's own daemon."""
    with engine(stage) as path:
        command("layerfs", "mount", "--image", BASE, "--name", MOUNT, stage.stack.mountpoint)
        try:
            write_files(stage, stage.stack.mountpoint, stage.sizes.commit_few)
            query = urlencode({"container": MOUNT, "comment": "bench"})
            return timed(lambda: request("POST", f"/v1.41/commit?{query}", path))
        finally:
            command("layerfs", "rm", "-f", MOUNT)


@workload("empty", Row("run --rm IMAGE true, on the host's network", RUN), peers=("layerfs", "podman"))
def run_true(stage: Stage) -> float:
    """By the docker client where it is there, else by layerfs; and podman with the kernel's overlayfs."""
    busybox(stage)
    if stage.peer == "podman":
        return _podman(stage)
    with engine(stage) as path:
        words = ("docker", "--host", f"unix://{path}") if _has_docker() else ("layerfs",)
        return _median(lambda: command(*words, "run", "--rm", "--network=host", BASE, "/bin/true"))


def _podman(stage: Stage) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/run") as short:  # 50 characters at most
        return _podman_at(stage, Path(short))


def _podman_at(stage: Stage, run_directory: Path) -> float:
    places = ("--root", stage.stack.upper / "root", "--runroot", run_directory, *_PODMAN)
    archive = stage.stack.upper / "image.tar"
    command("tar", "--create", "--file", archive, "--directory", stage.stack.lowers[0], ".")
    command("podman", *places, "import", archive, BASE)
    try:
        run = ("run", "--rm", "--network=host", *_LIMITS, BASE, "/bin/true")
        return _median(lambda: command("podman", *places, *run))
    finally:
        command("podman", *places, "system", "reset", "--force")


def _has_docker() -> bool:
    import shutil

    return shutil.which("docker") is not None


@workload("empty", Row("layerfs ps, with an engine", LIST), Row("layerfs images", LIST), peers=("layerfs",))
def lists(stage: Stage) -> tuple[float, float]:
    """The commands, their own start included."""
    with engine(stage):
        return tuple(_median(lambda word=word: command("layerfs", word)) for word in ("ps", "images"))  # type: ignore[return-value]


def _median(work: object) -> float:
    from statistics import median

    assert callable(work)
    return median(timed(work) for _ in range(_TIMES))
