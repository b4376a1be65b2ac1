"""Runs: many layers that are read by an index show just what they show one by one."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.union import attributes, mutate
from layerfs.union.compaction import CannotIndex, compact
from layerfs.union.descriptors import DirectoryCache, Shelf
from layerfs.union.generation import Gone, go_back, restack, reuse
from layerfs.union.layer import Layer
from layerfs.union.marking import of_this_process
from layerfs.union.node import Directory, File
from layerfs.union.run import Run
from layerfs.union.runindex import NotWhole, RunIndex
from layerfs.union.stack import close_all
from layerfs.union.syscalls import RENAME_EXCHANGE
from layerfs.union.upper import Upper
from layerfs.union.view import Union
from tests.unit.union_support import Tree

pytestmark = pytest.mark.root


class Chain(Tree):
    """Layers on a shelf, as in a store, of which some may be read as runs."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.shelf_path = top / "layers"
        self.shelf_path.mkdir()
        self.shelf = Shelf(self.shelf_path)
        self.directories = DirectoryCache()
        self.ids: list[str] = []
        self.union: Union = None  # type: ignore[assignment]  # set by `open`
        self.lowers = [self._make("base")[0]]
        self.upper, self.work = self._make("upper")
        self.ids.append(self.lowers[0].parent.name)

    @property
    def is_open(self) -> bool:
        return getattr(self, "union", None) is not None

    def _make(self, what: str) -> tuple[Path, Path]:
        number = len(list(self.shelf_path.iterdir()))
        own = self.shelf_path / hashlib.sha256(f"{what} {number}".encode()).hexdigest()
        (own / "fs").mkdir(parents=True)
        (own / "work").mkdir()
        return own / "fs", own / "work"

    def layer(self, path: Path, below: Sequence[Layer]) -> Layer:
        layer = Layer(path, shelf=self.shelf, directories=self.directories)
        layer.below = tuple(reversed(below))
        return layer

    def by(self, lengths: Sequence[int]) -> list[Layer]:
        """Return the layers, bottom first, by runs of these lengths; a run of one is the layer itself."""
        layers: list[Layer] = []
        first = 0
        for length in lengths:
            if length == 1:
                layer = reuse(self.union, os.fsencode(self.lowers[first])) if self.is_open else None
                if layer is None or layer in layers:
                    layer = self.layer(self.lowers[first], layers)
            else:
                layer = self.run(first, length)
            layer.below = tuple(reversed(layers))
            layers.append(layer)
            first += length
        assert first == len(self.lowers)
        return layers

    def index(self, first: int, length: int, lengths: Sequence[int] = ()) -> bytes:
        """Return the index of a run, made from runs of these lengths, by default from its layers."""
        inputs: list[Layer] = []
        at = first
        for each in lengths or [1] * length:
            path = self.lowers[at]
            layer = self.run(at, each) if each > 1 else Layer(path, directories=self.directories)
            layer.below = tuple(reversed(inputs)) or ((inputs or [layer])[0],)
            inputs.append(layer)
            at += each
        try:
            return compact(inputs, self.ids[first : first + length])[0]
        finally:
            close_all(inputs)

    def run(self, first: int, length: int) -> Run:
        path = self.top / f"run-{first}-{length}-{self.ids[first + length - 1]}"
        if not path.exists():
            half = length // 2
            path.write_bytes(self.index(first, length, (half, length - half) if length > 3 else ()))
        ids = self.ids[first : first + length]
        return Run(RunIndex(path, ids), ids, first, shelf=self.shelf, directories=self.directories)

    def open_by(self, *lengths: int) -> Chain:
        """Open the union anew, with runs of these lengths."""
        self.close()
        lowers = self.by(lengths)
        self.union = Union(
            lowers, Upper(self.upper, self.work, shelf=self.shelf), directories=self.directories
        )
        return self

    def commit(self) -> None:
        upper, work = self._make("upper")
        fresh = Upper(upper, work, after=self.union.upper)
        self.union.match_root(fresh)
        self.union.switch_upper(fresh)
        self.ids.append(self.upper.parent.name)
        self.lowers.append(self.upper)
        self.upper, self.work = upper, work

    def go_back_by(self, common: int, *lengths: int) -> Gone:
        """Show the lowest layers, as runs of these lengths; *common* of them are in the union now."""
        self.lowers = self.lowers[: sum(lengths)]
        self.ids = self.ids[: sum(lengths)]
        layers = self.by(lengths)
        upper, work = self._make("upper")
        shutil.copystat(self.lowers[-1], upper)
        self.upper, self.work = upper, work
        return go_back(self.union, layers, Upper(upper, work, after=self.union.upper), common)

    def whole(self) -> dict[bytes, tuple[object, ...]]:
        """Return what `snapshot` does, with link counts, times and attributes."""
        found = self.snapshot()
        for path in found:
            node = self.node(path.removeprefix(b"/"))
            st = self.union.stat(node)
            xattrs = {name: self.union.getxattr(node, name) for name in sorted(self.union.listxattr(node))}
            names = tuple(self.names(path.removeprefix(b"/"))) if isinstance(node, Directory) else ()
            links = self.union.links(node, st)
            found[path] += (links, st.st_mtime_ns, st.st_ctime_ns, xattrs, names)
        return found


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    chain = Chain(tmp_path)
    yield chain
    chain.close()
    chain.directories.trim(0)
    chain.shelf.close()


def populate(chain: Chain) -> None:
    base = chain.lowers[0]
    for directory in ("a/b/c", "d", "e"):
        (base / directory).mkdir(parents=True)
    for name in ("a/f", "a/b/f", "a/b/c/f", "d/f", "d/g", "top"):
        (base / name).write_text(name)
    os.link(base / "d/g", base / "a/g")
    os.link(base / "d/g", base / "e/g")
    os.symlink("top", base / "link")
    shutil.copystat(base, chain.upper)


def some_change(chain: Chain, source: random.Random) -> None:
    """Change the tree in some way; some are impossible."""
    tree = chain.snapshot()
    directories = [path[1:].decode() for path in tree if stat.S_ISDIR(int(str(tree[path][0])))]
    files = [path[1:].decode() for path in tree if not stat.S_ISDIR(int(str(tree[path][0])))]
    files.append("none")
    new = f"{source.choice(directories)}/{source.choice('abcdefg')}".lstrip("/")
    what = source.randrange(13)
    with suppress(OSError, AssertionError):  # what cannot be is not done
        if what <= 1:
            chain.write(source.choice([*files, new]), b"%d" % source.randrange(1 << 30))
        elif what == 2:
            chain.unlink(source.choice(files))
        elif what == 3:
            chain.mkdir(new)
        elif what == 4:
            victim = source.choice(directories) or "none"
            for path in sorted(
                (path[1:].decode() for path in tree if path.startswith(f"/{victim}/".encode())), reverse=True
            ):
                (chain.rmdir if path in directories else chain.unlink)(path)
            chain.rmdir(victim)
            if source.random() < 0.7:
                chain.mkdir(victim)
        elif what in (5, 6):
            chain.rename(source.choice(directories), new)
        elif what == 7:
            chain.rename(source.choice(files), new)
        elif what == 8:
            mutate.link(chain.union, chain.file(source.choice(files)), *chain.place(new))
        elif what == 9:
            node = chain.node(source.choice([*files, *directories]))
            attributes.ensure_upper(chain.union, node)
            attributes.chmod(chain.union, node, source.choice((0o700, 0o755, 0o711)))
            attributes.setxattr(chain.union, node, b"user.x", b"%d" % source.randrange(9))
        elif what == 10:
            chain.rename(
                source.choice(directories + files), source.choice(directories + files), RENAME_EXCHANGE
            )
        else:
            chain.write(new, b"made")


def random_chain(chain: Chain, seed: int, layers: int) -> random.Random:
    source = random.Random(seed)
    populate(chain)
    chain.open_by(1)
    while len(chain.lowers) < layers:
        for _ in range(source.randrange(4)):
            some_change(chain, source)
        chain.commit()
    return source


def partition(source: random.Random, total: int) -> list[int]:
    lengths = []
    while total:
        lengths.append(min(total, source.choice((1, 1, 2, 3, 4, 8, 16))))
        total -= lengths[-1]
    return lengths


@pytest.mark.parametrize("seed", range(24))
def test_a_chain_shows_the_same_whichever_runs_it_is_read_by(chain: Chain, seed: int) -> None:
    source = random_chain(chain, seed, 24)
    total = len(chain.lowers)
    expected = chain.open_by(*[1] * total).whole()
    for lengths in ([total], [1, total - 1], *(partition(source, total) for _ in range(4))):
        assert chain.open_by(*lengths).whole() == expected, lengths


@pytest.mark.parametrize("seed", range(6))
def test_an_index_is_the_same_whatever_it_was_made_from(chain: Chain, seed: int) -> None:
    random_chain(chain, seed, 17)
    assert chain.index(1, 16, (4, 4, 8)) == chain.index(1, 16)


@pytest.mark.parametrize("seed", range(16))
def test_reading_by_runs_changes_nothing_for_those_who_have_it_in_use(chain: Chain, seed: int) -> None:
    source = random_chain(chain, 100 + seed, 12)
    for _ in range(6):
        for _ in range(3):
            some_change(chain, source)
        before = chain.whole()
        nodes = {path: chain.node(path[1:]) for path in before}
        for node in nodes.values():
            node.references += 1
        restack(chain.union, chain.by(partition(source, len(chain.lowers))))
        assert {path: chain.node(path[1:]) for path in before} == nodes
        assert chain.whole() == before
        for node in nodes.values():
            chain.union.forget(node, 1)
        chain.commit()
    fresh = chain.whole()
    total = len(chain.lowers)
    chain.open_by(*[1] * total)
    assert without_links(chain.whole()) == without_links(fresh)


def without_links(tree: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """Leave out the numbers of copies, of those with several names, and of links: they end with a mount."""
    return {path: (*what[:6], *what[8:9], *what[10:]) for path, what in tree.items()}


@pytest.mark.parametrize("seed", range(16))
def test_going_back_into_and_across_runs(chain: Chain, seed: int) -> None:
    source = random.Random(1000 + seed)
    populate(chain)
    chain.open_by(1)
    past = {1: chain.whole()}
    for _ in range(5):
        while len(chain.lowers) < 14:
            for _ in range(2):
                some_change(chain, source)
            chain.commit()
            past[len(chain.lowers)] = chain.whole()
        restack(chain.union, chain.by(partition(source, len(chain.lowers))))
        some_change(chain, source)
        held = [chain.node(path[1:]) for path in chain.snapshot()]
        for node in held:
            node.references += 1
        depth = source.randrange(1, len(chain.lowers) + 1)
        chain.go_back_by(depth, *partition(source, depth))
        assert without_links(chain.whole()) == without_links(past[depth])
        for node in held:
            chain.union.forget(node, 1)


def test_a_removed_file_and_directory_in_use_stay_removed(chain: Chain) -> None:
    populate(chain)
    chain.open_by(1)
    for _ in range(4):
        chain.commit()
    file, directory = chain.file("a/b/f"), chain.directory("e")
    file.references = directory.references = 1
    chain.unlink("a/b/f")
    chain.unlink("e/g")
    chain.rmdir("e")
    restack(chain.union, chain.by([2, 3]))
    assert chain.union.links(file, chain.union.stat(file)) == 0
    assert os.pread(chain.union.data(file), 10, 0) == b"a/b/f"
    assert chain.union.listing(directory) == []
    assert chain.find("a/b/f") is None
    assert chain.find("e") is None
    assert chain.union.table.lapsed == set()


def test_a_layer_without_its_tree_is_an_error_and_no_missing_name(chain: Chain) -> None:
    populate(chain)
    chain.open_by(1)
    for number in range(3):
        chain.write(f"d/new{number}", b"x")
        chain.commit()
    chain.open_by(4)
    shutil.rmtree(chain.lowers[2])
    with pytest.raises(OSError) as caught:
        chain.find("d/new1")
    assert caught.value.errno == errno.EIO
    assert isinstance(chain.find("d/new0"), File)


def test_links_on_the_way_in_a_layer_are_not_followed(chain: Chain) -> None:
    populate(chain)
    chain.open_by(1)
    for _ in range(3):
        chain.commit()
    chain.open_by(4)
    shutil.rmtree(chain.lowers[0] / "a/b")
    (chain.top / "elsewhere").mkdir()
    (chain.top / "elsewhere/f").write_text("secret")
    os.symlink(chain.top / "elsewhere", chain.lowers[0] / "a/b")
    with pytest.raises(OSError):
        chain.find("a/b/f")


def test_an_index_that_was_damaged_or_is_of_other_layers_is_not_used(chain: Chain) -> None:
    populate(chain)
    chain.open_by(1)
    for _ in range(3):
        chain.commit()
    data = bytearray(chain.index(0, 4))
    path = chain.top / "index"
    path.write_bytes(data)
    RunIndex(path, chain.ids)
    with pytest.raises(NotWhole):
        RunIndex(path, [*chain.ids[1:], chain.ids[0]])
    for position in (0, 20, 40, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(NotWhole):
            RunIndex(path, chain.ids)
    for length in (0, 10, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(NotWhole):
            RunIndex(path, chain.ids)


def test_layers_that_an_index_cannot_speak_for_are_told(chain: Chain, tmp_path: Path) -> None:
    populate(chain)
    tree = tmp_path / "other"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_text("")
    prefix = of_this_process().prefix
    os.setxattr(tree / "d/f", prefix + b"metacopy", b"")
    below = Layer(chain.lowers[0])
    for spoil, said in ((b"metacopy", "metadata alone"), (b"redirect", "not absolute")):
        layer = Layer(tree)
        layer.below = (below,)
        with pytest.raises(CannotIndex, match=said) as caught:
            compact([below, layer], ["0" * 64, "1" * 64])
        assert caught.value.layer is layer
        if spoil == b"metacopy":
            os.removexattr(tree / "d/f", prefix + b"metacopy")
            os.setxattr(tree / "d", prefix + b"redirect", b"e")
