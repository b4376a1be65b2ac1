"""Builds: `layerfs build` with an engine, beside `buildah bud --layers` on the kernel's overlayfs and on
fuse-overlayfs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..chroot import inside
from ..measure import timed
from ..peers import command, unmount
from ..registry import Row, Stage, workload
from ..targets import BUILD, BUILD_CHANGED, BUILD_COMMIT, BUILD_STEP, BUILD_UNCHANGED
from ..trees import file_names, make_files
from .commit import BASE
from .engine import engine

PEERS = ("layerfs", "buildah", "buildah-fuse")
FUSE = ("--storage-opt", "overlay.mount_program=/usr/bin/fuse-overlayfs")
STEPS = 20
_ELAPSED = re.compile(r"real\s+(\d+)m ?([\d.]+) ?s")
"""What time(1) says."""


@dataclass(frozen=True)
class Builder:
    """Builds with one peer; each build is timed from the command's start to its end."""

    stage: Stage
    words: tuple[str | Path, ...]

    def build(self, context: Path, *, network: str = "none") -> tuple[float, str]:
        """Build the context; return the seconds and what was said."""
        said = ""

        def work() -> None:
            nonlocal said
            done = subprocess.run(
                [*self.words, "--network", network, "-t", "bench:built", str(context)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            said = done.stdout
            if done.returncode:
                raise RuntimeError(f"{self.words[0]} failed: {' / '.join(said.strip().splitlines()[-3:])}")

        return timed(work), said


@contextmanager
def builder(stage: Stage) -> Iterator[Builder]:
    """Have the first lower tree as the image `BASE`, and what builds upon it."""
    with engine(stage):
        if stage.peer == "layerfs":
            yield Builder(stage, ("layerfs", "build", "--progress", "plain"))
            return
        place = stage.stack.upper
        archive, policy = place / "base.tar", place / "policy.json"
        command("layerfs", "save", BASE, "-o", archive, "--format", "oci-archive")
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        places = ("--root", place / "root", "--runroot", place / "run", "--storage-driver", "overlay")
        buildah = ("buildah", *places, *(FUSE if stage.peer == "buildah-fuse" else ()))
        try:
            trust = ("--signature-policy", policy)
            name = command(*buildah, "pull", "-q", *trust, f"oci-archive:{archive}").split()[-1]
            command(*buildah, "tag", name, f"localhost/{BASE}")
            archive.unlink()
            yield Builder(stage, (*buildah, "bud", "--layers", *trust))
        finally:
            unmount(place)


def shell(stage: Stage) -> None:
    """Make the lower tree one in which a shell can be run."""
    top = stage.stack.lowers[0]
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        (top / name).mkdir(exist_ok=True)
    for name in ("sh", "mkdir", "dd", "time"):
        if not (top / "bin" / name).exists():
            command("cp", "/bin/busybox", top / "bin" / name)


def context(stage: Stage, name: str, dockerfile: str) -> Path:
    """Make a context with that Dockerfile on top of the image that both have."""
    directory = stage.stack.work / name
    directory.mkdir()
    base = BASE if stage.peer == "layerfs" else f"localhost/{BASE}"
    (directory / "Dockerfile").write_text(f"FROM {base}\n{dockerfile}")
    return directory


def clock(stage: Stage) -> None:
    """Put the program `clock` into the lower tree."""
    source = Path(__file__).parents[1] / "clock.c"
    command("gcc", "-O2", "-static", "-o", stage.stack.lowers[0] / "bin/clock", source)


def script(number: int, files: int) -> str:
    """Return what writes *files* files of 4 KiB by the shell alone, and says when it begins and ends."""
    return (
        f"clock begin; mkdir /step{number} && i=0 && while [ $i -lt {files} ]; do"
        f' echo "$TEXT" > /step{number}/f$i; i=$((i+1)); done; clock end'
    )


def spent(said: str) -> float:
    """Return the seconds between what `clock` has said at the beginning and the end of each command."""
    begun, ended = (
        [float(time) for time in re.findall(rf"@{word} ([\d.]+)", said)] for word in ("begin", "end")
    )
    if len(begun) != STEPS or len(ended) != STEPS:
        raise RuntimeError(f"{len(begun)} commands said when they begin, and {len(ended)} when they end")
    return sum(ended) - sum(begun)


@workload(
    "empty",
    Row("20 steps that write 500 files each, the whole build", BUILD),
    Row("20 steps, the builder's own time for one, without the command's", BUILD_STEP),
    Row("20 steps, the time of a command, in the builder's tree"),
    Row("20 steps, the time of a command, in a chroot on the filesystem below"),
    peers=PEERS,
    costly=True,
)
def many_steps(stage: Stage) -> tuple[float, float, float, float]:
    """The commands say when they begin and end; all else, until the end of the build, is the builder's."""
    shell(stage)
    clock(stage)
    text = "x" * 4095
    steps = [script(number, stage.sizes.step) for number in range(STEPS)]
    plain = stage.stack.upper / "plain"
    command("cp", "-a", f"{stage.stack.lowers[0]}/.", plain)
    lines = [f"TEXT={text}", *steps]
    (plain / "steps").write_text("\n".join(lines) + "\n")
    alone = spent(inside(plain, "/bin/sh", "/steps"))
    with builder(stage) as made:
        runs = "".join(f"RUN {step}\n" for step in steps)
        whole, said = made.build(context(stage, "context", f"ENV TEXT={text}\n{runs}"))
    commands = spent(said)
    return whole, (whole - commands) / STEPS, commands / STEPS, alone / STEPS


@workload(
    "empty",
    Row("nothing changed, a context of 10,000 files", BUILD_UNCHANGED),
    Row("one source file changed, in the last step", BUILD_CHANGED),
    peers=PEERS,
)
def again(stage: Stage) -> tuple[float, float]:
    """Four steps; the context is copied by the last but one, and a command looks at it."""
    shell(stage)
    directory = context(
        stage, "context", "RUN echo one > /one\nRUN echo two > /two\nCOPY big /big\nCOPY source /source\n"
    )
    make_files(directory / "big", file_names(100, stage.sizes.files), os.urandom(2048))
    make_files(directory / "source", [f"f{number}" for number in range(100)], b"source\n")
    with builder(stage) as made:
        made.build(directory)
        unchanged, _ = made.build(directory)
        (directory / "source/f7").write_text("changed\n")
        changed, _ = made.build(directory)
    return unchanged, changed


@workload(
    "empty",
    Row("a step that writes 4 GiB, the build without what its command takes", BUILD_COMMIT),
    peers=PEERS,
    costly=True,
)
def large_step(stage: Stage) -> float:
    """What the builder does before and after the command, the start of its own command included."""
    shell(stage)
    with builder(stage) as made:
        run = f"RUN time dd if=/dev/zero of=/large bs=1048576 count={stage.sizes.huge}\n"
        seconds, said = made.build(context(stage, "context", run))
    found = _ELAPSED.search(said)
    if found is None:
        raise RuntimeError(f"time did not say how long dd took: {said[-300:]}")
    return seconds - int(found[1]) * 60 - float(found[2])


REQUIREMENTS = "click\n"
DEBIAN = """RUN apt-get install -y --no-install-recommends ca-certificates less
RUN apt-get install -y --no-install-recommends python3 python3-pip
WORKDIR /app
COPY requirements.txt .
RUN pip install --break-system-packages --no-index --find-links /srv/wheels -r requirements.txt
COPY . .
CMD ["python3", "main.py"]
"""


@workload("tutorial", Row("the tutorial's image, with apt and pip", BUILD), peers=PEERS, costly=True)
def tutorial(stage: Stage) -> float:
    """Packages and wheels are in the image it begins with: no mirror is asked."""
    with builder(stage) as made:
        directory = context(stage, "context", DEBIAN)
        (directory / "requirements.txt").write_text(REQUIREMENTS)
        make_files(directory, [f"source/f{number}.py" for number in range(100)], b"print('x')\n")
        (directory / "main.py").write_text("import click\n")
        return made.build(directory)[0]
