"""Debian's package tools in a chroot on a mount, without a network."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Stack, errno_of
from tests.system.programs import needs, run

pytestmark = pytest.mark.root
SCRIPTS = Path(__file__).parents[2] / "scripts"
VARIABLES = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}


@pytest.fixture(scope="module")
def debian_tree() -> Path:
    """A minimal Debian tree."""
    command: list[str | Path] = ["timeout", "100", SCRIPTS / "debian-tree"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no Debian tree: {done.stderr.strip()[-200:]}")
    return Path(done.stdout.rstrip("\n"))


def build_package(directory: Path, version: int) -> Path:
    """Build a Debian package that has something of everything; return its file."""
    tree = directory / f"tree{version}"
    for name in (
        "DEBIAN",
        "etc/greeter",
        "usr/bin",
        "usr/share/greeter/old" if version == 1 else "usr/lib/greeter",
    ):
        (tree / name).mkdir(parents=True)
    control = f"Package: greeter\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.org>\n"
    (tree / "DEBIAN/control").write_text(control + "Description: greets\n")
    (tree / "DEBIAN/conffiles").write_text("/etc/greeter/greeter.conf\n")
    (tree / "DEBIAN/postinst").write_text("#!/bin/sh\necho configured >/var/lib/greeter.state\n")
    (tree / "DEBIAN/postrm").write_text('#!/bin/sh\n[ "$1" != purge ] || rm -f /var/lib/greeter.state\n')
    for script in ("postinst", "postrm"):
        (tree / "DEBIAN" / script).chmod(0o755)
    (tree / "etc/greeter/greeter.conf").write_text("who=world\n")
    program = tree / "usr/bin/greeter"
    program.write_text(f'#!/bin/sh\n. /etc/greeter/greeter.conf\necho "hello $who, this is {version}"\n')
    program.chmod(0o4755)
    os.link(program, program.with_name("hello"))
    program.with_name("hi").symlink_to("greeter")
    package = directory / f"greeter{version}.deb"
    run("dpkg-deb", "--build", "--root-owner-group", tree, package)
    return package


@needs("dpkg-deb")
def test_dpkg(debian_tree: Path, stack: Stack) -> None:
    """A package is installed, upgraded, removed and purged in a Debian tree; nothing of it is left."""
    stack.bottom = debian_tree
    stack.upper.chmod(0o755)
    packages = [build_package(stack.directory, version) for version in (1, 2)]
    mnt = stack.mount()

    def chroot(*command: str) -> str:
        return run("chroot", mnt, *command, variables=VARIABLES)

    def state() -> str:
        return chroot("dpkg-query", "-Wf", "${db:Status-Status} ${Version}", "greeter")

    for version, package in enumerate(packages, 1):
        shutil.copy(package, mnt / "package.deb")
        chroot("dpkg", "-i", "/package.deb")
        (mnt / "package.deb").unlink()
        assert state() == f"installed {version}"
        assert chroot("greeter") == chroot("hello") == chroot("hi") == f"hello world, this is {version}\n"
        assert (mnt / "usr/bin/greeter").stat().st_nlink == 2
        assert chroot("dpkg", "--verify", "greeter") == ""
        stack.commit()
    assert not (mnt / "usr/share/greeter").exists()
    chroot("dpkg", "-r", "greeter")
    assert state() == "config-files 2"
    assert (mnt / "etc/greeter/greeter.conf").exists()
    stack.remount()
    chroot("dpkg", "-P", "greeter")
    assert chroot("dpkg", "--audit") == ""
    assert chroot("find", "/", "-xdev", "-name", "*greeter*") == ""
    assert not (debian_tree / "var/lib/greeter.state").exists()
    removed = [line for line in stack.layerfs.ok("diff", stack.name).splitlines() if line.startswith("D")]
    assert len(removed) > 5


@needs("dpkg-deb")
def test_apt_removes_what_debian_brought(debian_tree: Path, stack: Stack) -> None:
    """apt takes packages away that are in the lower layer, with their many files, without a network."""
    stack.bottom = debian_tree
    stack.upper.chmod(0o755)
    mnt = stack.mount()
    assert (mnt / "usr/share/zoneinfo/UTC").exists()
    run("chroot", mnt, "apt-get", "-y", "-q", "purge", "tzdata", variables=VARIABLES)
    assert not (mnt / "usr/share/zoneinfo/UTC").exists()
    stack.remount()
    assert errno_of(lambda: os.stat(mnt / "usr/share/zoneinfo/UTC")) == errno.ENOENT
    run("chroot", mnt, "apt-get", "check", variables=VARIABLES)
    assert "tzdata" not in run("chroot", mnt, "dpkg-query", "-Wf", "${Package}\n", variables=VARIABLES)
    assert (debian_tree / "usr/share/zoneinfo/UTC").exists()
