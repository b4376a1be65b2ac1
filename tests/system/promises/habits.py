"""What programs do: each habit is a sequence of calls as real programs make it, with its syncs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from tests.system.promises.program import MOST, Program, length_of

Habit = Callable[[Program], None]
_CAN_PUNCH = os.environ.get("LAYERFS_EXTENSION") != "0"
"""Without its extension layerfs is not asked to change a file's allocation."""


def make_and_sync(program: Program) -> None:
    """Create, write, fsync."""
    node = program.create(program.directory())
    for _ in range(program.random.randint(1, 3)):
        program.write(node, length_of(node), program.size())
    program.sync(node)


def append(program: Program) -> None:
    """Append as a log does."""
    node = program.file()
    if length_of(node) < MOST:
        for _ in range(program.random.randint(1, 4)):
            program.write(node, length_of(node), program.random.randint(1, 3000))
            program.fdatasync(node)


def overwrite(program: Program) -> None:
    """Overwrite parts of a file, synced or not."""
    node = program.file()
    for _ in range(program.random.randint(1, 3)):
        size = program.size()
        offset = program.random.randint(0, min(length_of(node) + 5000, MOST))
        program.write(node, offset, min(size, max(1, length_of(node) - offset)))
    if program.random.random() < 0.6:
        program.sync(node)


def replace(program: Program) -> None:
    """Replace a file by a new version: write beside it, fsync, rename, fsync the directory."""
    names = program.names()
    if not names:
        return
    directory, name, _ = program.random.choice(names)
    node = program.create(directory)
    new_name = next(n for n, child in program.world.children(directory.id).items() if child is node)
    program.write(node, 0, program.size())
    if program.random.random() < 0.9:
        program.fsync(node)
    program.rename(directory, new_name, directory, name)
    if program.random.random() < 0.8:
        program.fsyncdir(directory)


def make_tree(program: Program) -> None:
    """Make directories in one another with files, and fsync each directory."""
    directory = program.directory()
    made = [directory]
    for _ in range(program.random.randint(1, 3)):
        directory = program.mkdir(directory)
        made.append(directory)
        node = program.create(directory)
        program.write(node, 0, program.random.randint(1, 2000))
        if program.random.random() < 0.5:
            program.fsync(node)
    for directory in reversed(made) if program.random.random() < 0.5 else made[-1:]:
        program.fsyncdir(directory)


def move_names(program: Program) -> None:
    """Link, rename and unlink, with fsync of the parents."""
    names = program.names()
    if not names:
        return
    directory, name, node = program.random.choice(names)
    to = program.directory()
    way = program.random.random()
    if way < 0.25 and program.links:
        program.link(node, to)
    elif way < 0.6:
        program.rename(directory, name, to, program.new_name())
    elif way < 0.7:
        other, other_name, other_node = program.random.choice(names)
        if other_node is not node:
            program.exchange(directory, name, other, other_name)
    else:
        program.unlink(directory, name)
    if program.random.random() < 0.7:
        program.fsyncdir(directory)
        if to is not directory:
            program.fsyncdir(to)
    elif node.places[-1]:
        program.fsync(node)


def move_directory(program: Program) -> None:
    """Rename a directory, of a lower layer or not, or remove an empty one."""
    directories = program.names("dir")
    if not directories:
        return
    directory, name, node = program.random.choice(directories)
    if not program.world.children(node.id) and program.random.random() < 0.5:
        program.unlink(directory, name)
    else:
        inside = {node.id}
        for one in program.directories():
            if any(place in inside for place, _ in one.places[-1]):
                inside.add(one.id)
        to = program.random.choice([one for one in program.directories() if one.id not in inside])
        program.rename(directory, name, to, program.new_name())
        if program.random.random() < 0.7:
            program.fsyncdir(to)
    if program.random.random() < 0.7:
        program.fsyncdir(directory)


def over_a_whiteout(program: Program) -> None:
    """Remove a name and use it again."""
    names = program.names()
    if not names:
        return
    directory, name, _ = program.random.choice(names)
    program.unlink(directory, name)
    if program.random.random() < 0.3:
        program.fsyncdir(directory)
    if program.random.random() < 0.3:
        program.mkdir(directory, name)
    else:
        node = program.create(directory, name)
        program.write(node, 0, program.size())
        program.fsync(node)
    if program.random.random() < 0.6:
        program.fsyncdir(directory)


def cut_short(program: Program) -> None:
    """Truncate, to less or more, and write on."""
    node = program.file()
    length = program.random.choice((0, program.random.randint(0, length_of(node) + 3000)))
    program.truncate(node, length)
    if program.random.random() < 0.5:
        program.write(node, length_of(node), program.random.randint(1, 5000))
    if program.random.random() < 0.7:
        program.sync(node)


def write_through(program: Program) -> None:
    """Write with O_SYNC and O_DSYNC."""
    node = program.file()
    for _ in range(program.random.randint(1, 3)):
        program.write_synced(node, program.random.randint(0, min(length_of(node), MOST)), program.size())


def write_directly(program: Program) -> None:
    """Write with O_DIRECT, and sync."""
    node = program.file()
    page = program.random.randint(0, min(length_of(node), MOST) // 4096)
    program.write_direct(node, page * 4096, 4096 * program.random.choice((1, 2, 30)))
    if program.random.random() < 0.7:
        program.sync(node)


def punch_holes(program: Program) -> None:
    """Take parts out of a file."""
    node = program.file()
    if length_of(node):
        offset = program.random.randrange(length_of(node))
        program.punch(node, offset, program.random.randint(1, length_of(node) - offset))
        if program.random.random() < 0.7:
            program.sync(node)


def map_and_write(program: Program) -> None:
    """Write through a mapping, with msync or without."""
    node = program.file()
    if length_of(node):
        offset = program.random.randrange(length_of(node))
        program.write_mapped(node, offset, min(program.size(), length_of(node) - offset))
        if program.random.random() < 0.7:
            program.msync(node)


def link_symbolically(program: Program) -> None:
    """Make symbolic links, and fsync the directory."""
    directory = program.directory()
    program.symlink(directory)
    if program.random.random() < 0.7:
        program.fsyncdir(directory)


def mark(program: Program) -> None:
    """Change mode and attributes, and fsync."""
    node = program.file()
    if program.random.random() < 0.5:
        program.chmod(node)
    if program.random.random() < 0.5:
        program.setxattr(node)
    if program.random.random() < 0.7:
        program.fsync(node)


def be_careless(program: Program) -> None:
    """Change many things and sync nothing."""
    for _ in range(program.random.randint(1, 5)):
        node = program.file()
        if program.random.random() < 0.6 and length_of(node) < MOST:
            program.write(node, program.random.randint(0, length_of(node)), program.size())
        else:
            program.chmod(node)


def look_again(program: Program) -> None:
    """Sync what was written some time ago."""
    program.sync(program.file())
    if program.random.random() < 0.3:
        program.fsyncdir(program.directory())


HABITS: list[Habit] = [
    make_and_sync,
    append,
    overwrite,
    overwrite,
    replace,
    make_tree,
    move_names,
    move_directory,
    over_a_whiteout,
    cut_short,
    write_through,
    write_directly,
    punch_holes,
    map_and_write,
    link_symbolically,
    mark,
    be_careless,
    look_again,
]


def chosen(seed: int, number: int) -> list[Habit]:
    """Return the habits of one program: some programs have a few, others all."""
    rng = random.Random(f"habits/{seed}/{number}")
    possible = [habit for habit in HABITS if habit is not punch_holes or _CAN_PUNCH]
    return possible if rng.random() < 0.4 else [*rng.sample(possible, rng.randint(2, 5)), make_and_sync]
