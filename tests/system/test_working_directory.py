"""Commands are called anywhere: in a directory, too, where somebody has put something for Python to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Layerfs, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def trap(layerfs: Layerfs) -> Path:
    """A directory with a package called layerfs, which writes the file `sprung` beside it when it is run."""
    package = layerfs.directory / "trap" / "layerfs"
    package.mkdir(parents=True)
    sprung = package.parent / "sprung"
    (package / "__init__.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    return package.parent


def call(layerfs: Layerfs, trap: Path, *arguments: str | Path) -> None:
    """Run `layerfs ARGUMENTS` in the directory *trap*."""
    program = Path(sys.executable).with_name("layerfs")
    environment = layerfs.environment | {"LAYERFS_ENGINE": "none"}
    subprocess.run([program, *arguments], cwd=trap, env=environment, check=True, timeout=PATIENCE)


def test_no_command_runs_a_package_of_the_working_directory(layerfs: Layerfs, trap: Path) -> None:
    tree, mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
    for path in (tree, mnt):
        path.mkdir()
    (tree / "file").write_bytes(bytes(100_000))
    archive = layerfs.directory / "a.tar"
    call(layerfs, trap, "import", tree, "a:1")
    call(layerfs, trap, "save", "a:1", "-o", archive)
    call(layerfs, trap, "mount", "--name", "m", "--image", "a:1", mnt)
    (mnt / "new").touch()
    call(layerfs, trap, "umount", "m")
    call(layerfs, trap, "commit", "m", "b:1")  # by a process of its own the layer is settled
    layerfs.ok("rm", "m")
    layerfs.ok("rmi", "b:1", "a:1")
    call(layerfs, trap, "load", "-i", archive)  # which several processes unpack
    wait_until(lambda: not layerfs.processes())
    assert sorted(path.name for path in trap.iterdir()) == ["layerfs"]
