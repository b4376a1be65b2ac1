"""Digests of what is copied, and the memory that saves reading it again."""

from __future__ import annotations

import io
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.build import context, copying, digests, sources
from layerfs.build.copying import Job
from layerfs.build.sources import of_stack
from layerfs.union import syscalls
from tests.build.archives import compressed, of_tree
from tests.build.stages import Stage, digest, stack_of

pytestmark = pytest.mark.root


class Tree:
    """A context that is filled and looked at without a store."""

    def __init__(self, tmp_path: Path) -> None:
        self.context = tmp_path / "context"
        self.scratch = tmp_path / "scratch"
        self.memory = tmp_path / "cache/digests.db"
        (self.context / "d/sub").mkdir(parents=True)
        self.scratch.mkdir()
        (self.context / "Dockerfile").write_text("FROM scratch\n")
        (self.context / "d/file").write_text("file")
        (self.context / "d/sub/inner").write_text("inner")
        (self.context / "d/link").symlink_to("file")
        os.setxattr(self.context / "d/file", "user.note", b"note")
        os.mkfifo(self.context / "d/pipe")

    def digest(self, *sources: str, remembered: bool = True, **options: object) -> str:
        job = Job(sources=sources or (".",), destination="/", **options)  # type: ignore[arg-type]
        with context.from_directory(self.context) as opened:
            return digest(job, opened.source, self.scratch, self.memory if remembered else None)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of the files that are opened to be read."""
    found: list[bytes] = []
    opened = sources._DiskDirectory.open

    def noting(self: sources._DiskDirectory, item: sources.Item) -> sources.Content:
        found.append(item.name)
        return opened(self, item)

    monkeypatch.setattr(sources._DiskDirectory, "open", noting)
    return found


def settle() -> None:
    """Wait until what was changed is old enough to be remembered."""
    time.sleep(0.06)


def rewrite(tree: Tree) -> None:
    (tree.context / "d/file").write_text("elif")


def touch_back(tree: Tree) -> None:
    """Change a file and give it the size and the time that it had."""
    st = (tree.context / "d/file").stat()
    (tree.context / "d/file").write_text("elif")
    os.utime(tree.context / "d/file", ns=(st.st_atime_ns, st.st_mtime_ns))


def replace(tree: Tree) -> None:
    st = (tree.context / "d/file").stat()
    (tree.context / "new").write_text("elif")
    os.setxattr(tree.context / "new", "user.note", b"note")
    os.utime(tree.context / "new", ns=(st.st_atime_ns, st.st_mtime_ns))
    (tree.context / "new").rename(tree.context / "d/file")


def relink(tree: Tree) -> None:
    (tree.context / "d/link").unlink()
    (tree.context / "d/link").symlink_to("elif")


def retype(tree: Tree) -> None:
    (tree.context / "d/pipe").unlink()
    (tree.context / "d/pipe").touch()


CHANGES: dict[str, Callable[[Tree], object]] = {
    "rewritten": rewrite,
    "rewritten with the old time": touch_back,
    "replaced": replace,
    "renamed": lambda tree: (tree.context / "d/file").rename(tree.context / "d/fil"),
    "removed": lambda tree: (tree.context / "d/sub/inner").unlink(),
    "added": lambda tree: (tree.context / "d/sub/more").touch(),
    "mode": lambda tree: (tree.context / "d/file").chmod(0o600),
    "directory's mode": lambda tree: (tree.context / "d/sub").chmod(0o700),
    "attribute": lambda tree: os.setxattr(tree.context / "d/file", "user.note", b"other"),
    "directory's attribute": lambda tree: os.setxattr(tree.context / "d/sub", "user.note", b"other"),
    "link": relink,
    "type": retype,
    "moved to another directory": lambda tree: (tree.context / "d/file").rename(tree.context / "d/sub/file"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_gives_another_digest(tree: Tree, change: str) -> None:
    settle()
    before = tree.digest()
    CHANGES[change](tree)
    assert tree.digest() != before
    assert tree.digest() == tree.digest(remembered=False)


def test_times_and_owners_of_a_context_do_not_count(tree: Tree) -> None:
    settle()
    before = tree.digest()
    for path in (tree.context / "d/file", tree.context / "d", tree.context):
        os.utime(path, ns=(1, 1))
        os.chown(path, 5, 5)
    os.setxattr(tree.context / "d/file", "trusted.note", b"counts")
    os.removexattr(tree.context / "d/file", "trusted.note")
    assert tree.digest() == before


def test_unchanged_files_are_not_read_again(tree: Tree, reads: list[bytes]) -> None:
    settle()
    first = tree.digest()
    assert set(reads) >= {b"file", b"inner"}
    reads.clear()
    assert tree.digest() == first
    assert reads == [b"Dockerfile"], "its text is needed"
    (tree.context / "d/sub/inner").write_text("changed")
    settle()
    reads.clear()
    assert tree.digest() != first
    assert set(reads) == {b"Dockerfile", b"inner"}


def test_what_has_just_changed_is_not_believed(tree: Tree, reads: list[bytes]) -> None:
    """Two writes in one tick of the clock leave the same times."""
    file = tree.context / "d/file"
    for number in range(30):
        file.write_text(f"{number:04}")
        first = tree.digest("d/file")
        file.write_text(f"{number + 5000:04}")
        assert tree.digest("d/file") != first


def test_a_digest_waits_for_what_has_just_changed(tree: Tree) -> None:
    (tree.context / "d/file").write_text("new")
    with (
        context.from_directory(tree.context) as opened,
        copying.select(Job(sources=(".",), destination="/"), opened.source, scratch=tree.scratch) as found,
    ):
        made = found.digest()
        assert made.settles_ns == 0
        (tree.context / "d/file").write_text("wen")
        layer = tree.scratch.parent / "layer"
        layer.mkdir()
        assert not copying.write(found, None, layer, scratch=tree.scratch).is_as(made)
        again = found.digest()
        layer = tree.scratch.parent / "layer2"
        layer.mkdir()
        assert copying.write(found, None, layer, scratch=tree.scratch).is_as(again)


@pytest.mark.parametrize("damage", ["text", "cut", "page", "records", "version", "empty", "directory"])
def test_a_damaged_memory_is_made_anew(tree: Tree, reads: list[bytes], damage: str) -> None:
    settle()
    for number in range(200):
        (tree.context / f"d/more{number}").write_text(str(number))
    settle()
    first = tree.digest()
    data = tree.memory.read_bytes()
    if damage == "text":
        tree.memory.write_bytes(b"no database at all" * 1000)
    elif damage == "cut":
        tree.memory.write_bytes(data[: len(data) // 2])
    elif damage == "page":
        tree.memory.write_bytes(data[:4096] + os.urandom(len(data) - 4096))
    elif damage == "empty":
        tree.memory.write_bytes(b"")
    elif damage == "directory":
        tree.memory.unlink()
        tree.memory.mkdir()
    else:
        with sqlite3.connect(tree.memory) as db:
            if damage == "version":
                db.execute("PRAGMA user_version = 99")
            else:
                db.execute("UPDATE directories SET records = randomblob(length(records))")
        db.close()
    assert tree.digest() == first
    reads.clear()
    assert tree.digest() == first
    if damage != "directory":
        assert reads == [b"Dockerfile"]


def test_a_memory_that_cannot_be_written_is_done_without(tree: Tree) -> None:
    tree.memory.parent.write_text("in the way")
    assert tree.digest() == tree.digest(remembered=False)


def test_two_memories_at_once(tree: Tree) -> None:
    settle()
    with digests.Memory(tree.memory) as one, digests.Memory(tree.memory) as two:
        one.save((1, 2), {3: (4, 5, 6, bytes(16))})
        two.save((1, 3), {3: (4, 5, 6, bytes(16))})
    with digests.Memory(tree.memory) as again:
        assert again.load((1, 2)) == again.load((1, 3)) == {3: (4, 5, 6, bytes(16))}
        assert again.load((2, 2)) == {}


def test_what_is_selected_counts(tree: Tree) -> None:
    (tree.context / "d/b").write_text("file")
    os.setxattr(tree.context / "d/b", "user.note", b"note")
    whole = tree.digest("d")
    assert tree.digest("d", exclude=("sub",)) != whole
    assert tree.digest("d/sub", "d/file") != tree.digest("d/file", "d/sub")
    assert tree.digest("d/b") != tree.digest("d/file"), "the name counts"
    assert tree.digest("d/b") == tree.digest("*/b")
    assert tree.digest(files=(("a", b"1"),)) != tree.digest(files=(("a", b"2"),))
    assert tree.digest(files=(("a", b"1"),)) == tree.digest(files=(("a", b"1"),))


@pytest.mark.parametrize("program", ["", "gzip", "zstd"])
def test_a_context_that_comes_as_an_archive_has_the_same_digest(
    tree: Tree, reads: list[bytes], program: str
) -> None:
    with (tree.context / "d/sparse").open("wb") as sparse:
        sparse.truncate(1 << 20)
    os.link(tree.context / "d/file", tree.context / "d/again")
    data = of_tree(tree.context)
    first = tree.digest(remembered=False)
    reads.clear()
    with context.from_tar(io.BytesIO(compressed(data, program) if program else data), tree.scratch) as opened:
        assert digest(Job(sources=(".",), destination="/"), opened.source, tree.scratch) == first
    assert reads == []


def test_owners_count_in_a_stage_unless_all_are_given(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "app").mkdir(parents=True)
    (layer / "app/x").write_text("x")
    stack = stack_of([layer])
    assert stack is not None

    def made(**options: object) -> str:
        with of_stack(stack, "the stage") as source:
            job = Job(sources=("app",), destination="/", **options)  # type: ignore[arg-type]
            return digest(job, source, tmp_path)

    before, given = made(), made(chown="5")
    os.chown(layer / "app/x", 7, 7)
    assert made() != before
    assert made(chown="5") == given


def test_a_stage_and_a_context_of_the_same_files(stage: Stage, other: Stage) -> None:
    (stage.context / "d/sub").mkdir(parents=True)
    (stage.context / "d/sub/f").write_text("f")
    os.setxattr(stage.context / "d/sub/f", "user.note", b"note")
    other.copy("d", to="/d")
    assert other.stack is not None
    with of_stack(other.stack, "other") as source:
        theirs = digest(Job(sources=("d",), destination="/", chown="0"), source, stage.scratch)
    assert theirs == stage.digest("d")


def test_attributes_are_found_on_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    os.setxattr(tmp_path / "link", "trusted.note", b"1", follow_symlinks=False)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert syscalls.listxattrat(fd, b"link") == [b"trusted.note"]
    finally:
        os.close(fd)
