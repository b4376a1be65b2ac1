"""One Dockerfile built by layerfs and by buildah, from the same image, and where the two images differ."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuse.oracle import snapshot
from tests.fuse.oracle.snapshot import Snapshot
from tests.system.builds import Builds

PATIENCE = 400
"""Seconds that one command may take; a Debian tree is copied within it."""
COMPARED = (
    "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal",
    "User", "Volumes", "WorkingDir",
)  # fmt: skip
WRITTEN = 1_600_000_000
"""When the files of contexts were written, in seconds. COPY keeps that time; a command makes a new one."""


class Project(NamedTuple):
    """A context, and the options it is built with."""

    dockerfile: str
    files: Mapping[str, str]
    """Contents by name. What begins with `#!` may be executed, what begins with `-> ` is a link."""
    options: tuple[str, ...] = ()
    contents_left_out: Mapping[str, str] = {}
    """Regular expressions of paths whose contents two builds cannot have alike, and the reason."""


class Image(NamedTuple):
    """What is compared of an image."""

    tree: Snapshot
    config: dict[str, Any]


class Peers:
    """Both builders, and a storage of buildah's own with *driver*."""

    def __init__(self, builds: Builds, driver: str) -> None:
        self.builds = builds
        self._place = builds.layerfs.directory / "peer"
        self._place.mkdir()
        self._began = time.time_ns()
        self._policy = self._place / "policy.json"
        self._policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._words: tuple[str, ...] = (
            "buildah",
            *("--root", f"{self._place}/root"),
            *("--runroot", f"{self._place}/run"),
            *("--storage-driver", driver),
        )

    def share(self, image: str) -> None:
        """Give an image of layerfs to buildah; both call it `localhost/IMAGE`."""
        archive = self._place / "image.tar"
        save = ("save", image, "-o", archive, "--format", "oci-archive", "--compression", "none")
        _worked(self.builds.layerfs(*save, timeout=PATIENCE))
        name = self._buildah("pull", "-q", "--signature-policy", str(self._policy), f"oci-archive:{archive}")
        archive.unlink()
        self._buildah("tag", name.split()[-1], f"localhost/{image}")
        self.builds.layerfs.ok("tag", image, f"localhost/{image}")

    def build(self, name: str, project: Project) -> tuple[Image, Image]:
        """Build *project* by both; return the image of layerfs, called *name*, and buildah's."""
        context = _written(self.builds, project)
        options = ("--network", "host", *project.options, "-t", f"localhost/{name}")
        _worked(self.builds.layerfs("build", *options, str(context), timeout=PATIENCE))
        assert self.builds.left() == []
        docker = ("--format", "docker")  # an OCI image has no HEALTHCHECK
        self._buildah("bud", "-q", *docker, "--signature-policy", str(self._policy), *options, str(context))
        return self.look(f"localhost/{name}"), self._theirs(f"localhost/{name}")

    def end(self) -> None:
        """Remove what buildah has."""
        self._buildah("rm", "--all")
        self._buildah("rmi", "--all", "--force")
        # With overlay the storage's directory is a mount for as long as it is in use.
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        for mountpoint in sorted(
            (line.split()[1] for line in mounts if str(self._place) in line), reverse=True
        ):
            subprocess.run(["umount", mountpoint], check=True, timeout=PATIENCE)

    def look(self, image: str) -> Image:
        """Return an image of layerfs as it is compared."""
        mnt = self.builds.layerfs.directory / "looked-at"
        mnt.mkdir(exist_ok=True)
        self.builds.layerfs.ok("mount", "--image", image, "--name", "looked-at", "--read-only", mnt)
        try:
            return Image(_taken(mnt, self._began), self.builds.config(image))
        finally:
            self.builds.layerfs.ok("rm", "-f", "looked-at")

    def _theirs(self, image: str) -> Image:
        container = self._buildah("from", "--pull-never", image)
        try:
            tree = _taken(Path(self._buildah("mount", container)), self._began)
        finally:
            self._buildah("rm", container)
        return Image(tree, json.loads(self._buildah("inspect", "--type", "image", image))["Docker"]["config"])

    def _buildah(self, *words: str) -> str:
        command = [*self._words, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return _worked(done).strip()


@contextmanager
def peers(builds: Builds, driver: str = "vfs") -> Iterator[Peers]:
    """Yield both builders; nothing of buildah's stays mounted."""
    made = Peers(builds, driver)
    try:
        yield made
    finally:
        made.end()


def assert_same(project: Project, ours: Image, theirs: Image) -> None:
    """Compare trees and configurations of two images of *project*."""
    expected = _without_mount_points(theirs.tree, ours.tree)
    lines = snapshot.differences(_comparable(project, expected), _comparable(project, ours.tree))
    lines = [line.replace("the kernel", "buildah") for line in lines]
    configs = [_comparable_config(image.config) for image in (theirs, ours)]
    lines += [f"{key}: {configs[0][key]} by buildah, {configs[1][key]} by layerfs" for key in COMPARED
              if configs[0][key] != configs[1][key]]  # fmt: skip
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:60])


def _comparable(project: Project, tree: Snapshot) -> Snapshot:
    """Return *tree* without what two builds of *project* cannot have alike.

    Times of directories are left out: they change with every name that is made below, by either builder at
    its own time. Times of files are compared, unless a command has written them.
    """
    compared = {}
    for path, item in tree.items():
        name = os.fsdecode(path)
        if not path:  # the root directory is the builder's own
            continue
        if any(re.fullmatch(pattern, name) for pattern in project.contents_left_out):
            item = item._replace(content=b"", size=0)
        compared[path] = item
    return compared


MOUNT_POINTS = (b"dev", b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b"proc", b"run", b"sys")
"""What containers have mounted, and what the base may lack."""


def _without_mount_points(theirs: Snapshot, ours: Snapshot) -> Snapshot:
    """Return *theirs* without the empty files and directories that buildah leaves where it had mounts.

    A RUN of layerfs leaves none: what was mounted is no part of what the command has made.
    """
    empty = hashlib.sha256().digest()
    full = {path.rpartition(b"/")[0] for path in theirs}
    return {
        path: item
        for path, item in theirs.items()
        if path not in MOUNT_POINTS
        or path in ours
        or path in full
        or (item.type == stat.S_IFREG and item.content != empty)
    }


def _comparable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is compared of a configuration, with one form for what is not there."""
    found = {key: config.get(key) or None for key in COMPARED}
    labels = dict(found["Labels"] or {})
    labels.pop("io.buildah.version", None)  # buildah says who has built the image
    # Where ENV sets again what the image below has, layerfs leaves it in its place, as BuildKit does; buildah
    # puts it last. No program can rely on the order.
    ports = [port for each in found["ExposedPorts"] or {} for port in _ports(each)]
    return {**found, "Labels": labels, "Env": sorted(found["Env"] or []), "ExposedPorts": sorted(ports)}


def _ports(exposed: str) -> list[str]:
    """Return the ports of a range, of which layerfs makes single ones, as docker does; buildah leaves it."""
    numbers, _, protocol = exposed.partition("/")
    first, _, last = numbers.partition("-")
    return [f"{number}/{protocol}" for number in range(int(first), int(last or first) + 1)]


def _written(builds: Builds, project: Project) -> Path:
    files = {name: text for name, text in project.files.items() if not text.startswith("-> ")}
    context = builds.context(project.dockerfile, files)
    for name in project.files.keys() - files.keys():
        (context / name).symlink_to(project.files[name].removeprefix("-> "))
    for name, text in files.items():
        (context / name).chmod(0o755 if text.startswith("#!") else 0o644)
    for path in context.rglob("*"):
        os.utime(path, (WRITTEN, WRITTEN), follow_symlinks=False)
    return context


def _taken(top: Path, began: int) -> Snapshot:
    """Return what is below *top*; directories, and what was written since *began* (ns), have no times.

    Other times are in whole seconds: buildah's layers have no more.
    """
    tree = snapshot.take(os.fsencode(top), began, kernel=False, digests=True)
    return {
        path: item._replace(mtime=0 if item.type == stat.S_IFDIR else item.mtime // 10**9)
        for path, item in tree.items()
    }


def _worked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}: {done.stderr[-3000:]}"
    return done.stdout
