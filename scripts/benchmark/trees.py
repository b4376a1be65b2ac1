"""The lower trees that the workloads run on: each made once, on demand, and then only read."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .chroot import make_debian, make_tutorial, make_workshop
from .sizes import Sizes

MIB = 1 << 20
DEPTHS = (1, 8, 32, 128)


def file_names(directories: int, files: int) -> list[str]:
    """Return the relative paths of *files* files in *directories* directories, directory by directory."""
    return [f"d{number * directories // files:04}/f{number:06}" for number in range(files)]


def small_names(sizes: Sizes) -> list[str]:
    """Return the relative paths of the files of the trees "small", "links" and "huge"."""
    return file_names(sizes.directories, sizes.files)


def layered_names(sizes: Sizes) -> list[str]:
    """Return the relative paths of the files of the trees "layers"."""
    return file_names(sizes.layered_directories, sizes.layered)


def make_directories(top: Path, names: list[str]) -> None:
    """Create the directories that the files *names* below *top* are in."""
    for directory in sorted({os.path.dirname(name) for name in names}):
        (top / directory).mkdir(parents=True)


def make_files(top: Path, names: list[str], content: bytes) -> None:
    """Create the files *names* below *top*, each with *content*."""
    make_directories(top, names)
    for name in names:
        (top / name).write_bytes(content)


def make_large_file(path: Path, mib: int) -> None:
    """Make a file of *mib* MiB that no filesystem can store in less."""
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


def make_empty(top: Path, _: Sizes) -> None:
    """Make a tree of one file."""
    make_files(top, ["d/f"], b"content\n")


def make_small(top: Path, sizes: Sizes) -> None:
    """Make 10,000 files of 2 KiB in 100 directories."""
    make_files(top, small_names(sizes), os.urandom(2048))


def make_links(top: Path, sizes: Sizes) -> None:
    """Make 10,000 symbolic links in 100 directories."""
    names = small_names(sizes)
    make_directories(top, names)
    for name in names:
        os.symlink(f"../{name}.target", top / name)


def make_many(top: Path, sizes: Sizes) -> None:
    """Make 100,000 empty files in 1,000 directories."""
    make_files(top, file_names(10 * sizes.directories, sizes.many), b"")


def make_past(top: Path, sizes: Sizes) -> None:
    """Make 50,000 files of 2 KiB in 500 directories."""
    make_files(top, file_names(5 * sizes.directories, sizes.past_files), os.urandom(2048))


def make_wide(top: Path, sizes: Sizes) -> None:
    """Make a directory of 100,000 empty files."""
    make_files(top, [f"wide/f{number:06}" for number in range(sizes.many)], b"")


def make_large(top: Path, sizes: Sizes) -> None:
    """Make one file of 1 GiB."""
    make_large_file(top / "large", sizes.large)


def make_huge(top: Path, sizes: Sizes) -> None:
    """Make one file of 4 GiB, and 10,000 small ones."""
    make_small(top, sizes)
    make_large_file(top / "huge", sizes.huge)


def make_layers(count: int, top: Path, sizes: Sizes) -> None:
    """Make 2,500 files in 25 directories, as *count* layers that each have all directories and a share."""
    names, content = layered_names(sizes), os.urandom(2048)
    for layer in range(count):
        make_directories(top / f"{layer:03}", names)
    for number, name in enumerate(names):
        (top / f"{number % count:03}" / name).write_bytes(content)


TREES: dict[str, Callable[[Path, Sizes], None]] = {
    "empty": make_empty,
    "small": make_small,
    "links": make_links,
    "many": make_many,
    "past": make_past,
    "wide": make_wide,
    "large": make_large,
    "huge": make_huge,
    "debian": make_debian,
    "workshop": make_workshop,
    "tutorial": make_tutorial,
    **{f"layers{count}": partial(make_layers, count) for count in DEPTHS},
}


def lower_trees(kind: str, directory: Path, sizes: Sizes) -> tuple[Path, ...]:
    """Return the layers of the tree *kind* (a key of `TREES`), made below *directory* where it is not."""
    top = directory / kind
    if not top.exists():
        partly = directory / f"{kind}.partial"
        partly.mkdir(parents=True)
        TREES[kind](partly, sizes)
        partly.rename(top)
    return tuple(sorted(top.iterdir())) if kind.startswith("layers") else (top,)
