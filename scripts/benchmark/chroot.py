"""Work inside a root filesystem: commands in a chroot of a Debian tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .peers import command, unmount
from .sizes import Sizes

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

PROGRAMS = ("gcc", "git", "libc6-dev", "make", "nodejs", "python3-sympy")

PREPARE = """
mkdir /srv/sources && cd /srv/sources
cp -a /usr/include /usr/lib/python3* .
find . -name __pycache__ -prune -exec rm -r {} +
find . -type l -delete
tar cf /srv/sources.tar .
git init -q && git add . && git -c user.name=bench -c user.email=bench@example.org commit -qm sources
git gc -q
mv /srv/sources /srv/repository
"""

PARTS = 20
PART = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int part{number}(int count)
{{
    char text[64];

    snprintf(text, sizeof text, "part {number} of %d", count);
    return (int)strlen(text);
}}
"""
MAIN = """int main(int count, char **words)
{{
    int total = words[0] == 0;
    {calls}
    return total == 0;
}}
"""
MAKEFILE = """parts := $(patsubst %.c,%.o,$(wildcard *.c))
CFLAGS := -O2 -Wall
program: $(parts)
\t$(CC) -o $@ $^
clean:
\trm -f program $(parts)
"""


def inside(root: Path, *words: str) -> str:
    """Run a command in a chroot of *root*; return what it printed."""
    proxies = {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
    done = subprocess.run(
        ["chroot", root, *words],
        env=ENVIRONMENT | proxies,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} in {root} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


@contextmanager
def system_mounts(root: Path) -> Iterator[None]:
    """Have /proc and /dev/pts in *root*, as package scripts expect; its other devices are its own."""
    command("mount", "-t", "proc", "proc", root / "proc")
    try:
        command("mount", "-t", "devpts", "devpts", root / "dev/pts")
        yield
    finally:
        unmount(root / "dev")
        unmount(root / "proc")


def make_root(top: Path) -> None:
    """Make a minimal Debian tree that knows its mirror's packages."""
    source = command(Path(__file__).parents[1] / "debian-tree").strip()
    command("cp", "-a", f"{source}/.", top)
    inside(top, "apt-get", "update")


def make_debian(top: Path, _: Sizes) -> None:
    """Make a Debian tree that has the packages of Node.js downloaded, not installed."""
    make_root(top)
    inside(top, "apt-get", "install", "-y", "--download-only", "nodejs")


def make_tutorial(top: Path, _: Sizes) -> None:
    """Make a Debian tree that has the packages of Python downloaded, not installed, and a wheel."""
    make_root(top)
    words = ("install", "-y", "--no-install-recommends", "--download-only")
    inside(top, "apt-get", *words, "ca-certificates", "less", "python3", "python3-pip")
    wheels = top / "srv/wheels"
    command(sys.executable, "-m", "pip", "download", "--quiet", "--dest", wheels, "click")


def make_workshop(top: Path, _: Sizes) -> None:
    """Make a Debian tree in which somebody works: programs, and below /srv what they are used on."""
    make_root(top)
    with system_mounts(top):
        inside(top, "apt-get", "install", "-y", "--no-install-recommends", *PROGRAMS)
    inside(top, "apt-get", "clean")
    inside(top, "sh", "-ec", PREPARE)
    program = top / "srv/program"
    program.mkdir()
    for number in range(PARTS):
        (program / f"part{number}.c").write_text(PART.format(number=number))
    calls = "".join(f"int part{number}(int); total += part{number}(count);\n" for number in range(PARTS))
    (program / "main.c").write_text(MAIN.format(calls=calls))
    (program / "Makefile").write_text(MAKEFILE)
