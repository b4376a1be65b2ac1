"""Times at the edges of what filesystems hold: shown, copied up, set and kept as overlayfs does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Layerfs, detach, wait_until

pytestmark = pytest.mark.root
_NS = 10**9
TIMES = {
    "year 0": -62_167_219_200 * _NS,
    "before 1901": (-(2**31) - 1) * _NS,
    "1901": -(2**31) * _NS,
    "1970": -1,
    "2038": 2**31 * _NS + 5,
    "2106": 2**32 * _NS + 999_999_999,
    "2262": 2**63 - 1,
    "after 2262": 2**63,
    "2446": 15_032_385_535 * _NS,
    "after 2446": 15_032_385_536 * _NS,
    "2486": 16_299_260_424 * _NS,
    "2514": 17_179_869_183 * _NS,
    "the last year": 67_767_976_233_529_199 * _NS,
}
KINDS = ("kept", "changed", "set", "written", "directory", "link")
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-I", "256"),
    "xfs": ("mkfs.xfs", "-q", "-m", "bigtime=1"),
}

Shown = dict[str, tuple[int, int] | str]


@pytest.fixture(params=["ext4", "xfs", "tmpfs"])
def filesystem(request: pytest.FixtureRequest, layerfs: Layerfs, tmp_path: Path) -> Path:
    """A filesystem of its own for the layers; `layerfs` takes it away with everything else."""
    path = tmp_path / "layers"
    path.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True, timeout=PATIENCE)
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(320 << 20)
        subprocess.run([*_MAKE[request.param], image], check=True, timeout=PATIENCE)
        subprocess.run(["mount", "-o", "loop", image, path], check=True, timeout=PATIENCE)
    return path


class Side:
    """Layers with a file of each kind for each time, to be mounted by either."""

    def __init__(self, directory: Path) -> None:
        self.lower, self.upper, self.work, self.mnt = (
            directory / name for name in ("lower", "upper", "work", "mnt")
        )
        for path in (self.lower, self.upper, self.work, self.mnt):
            path.mkdir(parents=True)
        for when, time in TIMES.items():
            for kind in KINDS:
                path = self.lower / f"{kind}, {when}"
                if kind == "directory":
                    path.mkdir()
                elif kind == "link":
                    path.symlink_to("nowhere")
                else:
                    path.write_bytes(b"text")
                os.utime(path, ns=(time, time), follow_symlinks=False)

    def change(self) -> None:
        """Change all but what is to be kept, and make something new for each time."""
        for when, time in TIMES.items():
            (self.mnt / f"changed, {when}").chmod(0o600)
            (self.mnt / f"directory, {when}").chmod(0o700)
            (self.mnt / f"new directory, {when}").mkdir()
            with (self.mnt / f"written, {when}").open("ab", buffering=0) as file:
                file.write(b"more")
            (self.mnt / f"new, {when}").write_bytes(b"text")
            for kind in ("set", "written", "new", "new directory", "link"):
                path = self.mnt / f"{kind}, {when}"
                os.utime(path, ns=(time, time), follow_symlinks=False)

    def shown(self) -> Shown:
        """Return the times of everything, read by way of a listing; errors by their name."""
        found: Shown = {}
        for entry in os.scandir(self.mnt):
            try:
                st = entry.stat(follow_symlinks=False)
                found[entry.name] = (st.st_atime_ns, st.st_mtime_ns)
            except OSError as error:
                found[entry.name] = str(error)
        return found


def _as_the_kernel_does(directory: Path) -> tuple[Shown, Shown]:
    """Return what the kernel's overlayfs shows before and after the changes."""
    side = Side(directory)
    options = f"lowerdir={side.lower},upperdir={side.upper},workdir={side.work},metacopy=off"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, side.mnt], check=True, timeout=PATIENCE
    )
    try:
        before = side.shown()
        side.change()
        return before, side.shown()
    finally:
        detach(side.mnt)


@pytest.mark.parametrize("extension", ["1", "0"])
def test_times_are_those_that_overlayfs_shows(layerfs: Layerfs, filesystem: Path, extension: str) -> None:
    layerfs.environment["LAYERFS_EXTENSION"] = extension
    before, after = _as_the_kernel_does(filesystem / "kernel")
    side = Side(filesystem / "layerfs")
    layers = (f"--lower={side.lower}", f"--upper={side.upper}", f"--work={side.work}")
    layerfs.ok("mount", "--name", "edges", *layers, side.mnt)
    assert side.shown() == before
    side.change()
    # A time that the disk cannot hold is shown until the kernel forgets the file, which a thread asks for.
    wait_until(lambda: side.shown() == after)
    layerfs.ok("umount", side.mnt)
    layerfs.ok("mount", "--name", "edges", side.mnt)
    assert side.shown() == after
    layerfs.ok("umount", side.mnt)
