"""A union that goes back: what is seen then, by name and by nodes that are in use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.union import attributes, mutate, syscalls
from layerfs.union.copyup import CopyUp
from layerfs.union.generation import refresh
from layerfs.union.node import Directory, File, shown_number
from tests.unit.union_support import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    lower = made.lowers[0]
    (lower / "d" / "e").mkdir(parents=True)
    (lower / "d" / "f").write_text("f")
    (lower / "d" / "e" / "deep").write_text("deep")
    (lower / "a").write_text("a")
    (lower / "b").write_text("b")
    os.link(lower / "a", lower / "a2")
    made.open()
    yield made
    made.close()


def use(tree: Tree, path: str) -> File | Directory:
    """Return the node at *path*, which somebody has in use from now on."""
    node = tree.node(path)
    node.references += 1
    return node


def touch(tree: Tree, node: File | Directory) -> None:
    """Do what each request for *node* begins with."""
    refresh(tree.union, node)


def write(tree: Tree, node: File, data: bytes) -> None:
    """Write to a file that somebody has open."""
    attributes.ensure_upper(tree.union, node)
    os.pwrite(tree.union.data(node, write=True), data, 0)


def content(tree: Tree, node: File) -> bytes:
    return os.pread(tree.union.data(node), 1 << 20, 0)


def test_shows_what_was_there_and_nothing_else(tree: Tree) -> None:
    tree.write("b", b"changed")
    tree.write("new", b"new")
    tree.unlink("a")
    tree.mkdir("made")
    tree.rename("d", "moved")
    tree.commit()
    then = tree.snapshot()
    tree.write("b", b"once more")
    tree.unlink("new")
    tree.rmdir("made")
    tree.rename("moved", "d")
    tree.write("d/f", b"F")
    tree.write("a", b"again")
    tree.go_back(2)
    now = tree.snapshot()
    assert {path: found[:-1] for path, found in now.items()} == {p: found[:-1] for p, found in then.items()}
    assert [shown_number(int(str(found[-1]))) for found in now.values()] == [
        shown_number(int(str(then[path][-1]))) for path in now
    ]


def test_a_file_that_is_the_same_keeps_its_node(tree: Tree) -> None:
    same, deep, directory = use(tree, "b"), use(tree, "d/e/deep"), use(tree, "d/e")
    tree.write("d/f", b"changed")
    tree.go_back(1)
    assert tree.node("b") is same
    assert tree.node("d/e") is directory
    assert tree.node("d/e/deep") is deep
    assert not tree.union.table.lapsed


def test_a_changed_file_lapses_and_keeps_its_contents(tree: Tree) -> None:
    tree.write("b", b"B")
    old = use(tree, "b")
    assert isinstance(old, File)
    tree.go_back(1)
    new = tree.file("b")
    assert new is not old
    assert new.ino != old.ino
    assert shown_number(new.ino) == shown_number(old.ino)
    assert (content(tree, old), content(tree, new)) == (b"B", b"b")
    assert tree.union.links(old, old.stat()) == 0


def test_a_write_to_a_lapsed_file_gets_into_no_layer(tree: Tree, tmp_path: Path) -> None:
    tree.write("b", b"B")
    old = use(tree, "b")
    assert isinstance(old, File)
    sealed = tree.upper
    tree.go_back(1)
    touch(tree, old)
    write(tree, old, b"X")
    assert content(tree, old) == b"X"
    assert tree.read("b") == b"b"
    assert (sealed / "b").read_bytes() == b"B"
    assert list(tree.upper.iterdir()) == []


def test_a_copy_up_that_was_begun_before_goes_to_nobody(tree: Tree) -> None:
    tree.write("new", b"new")
    tree.commit()
    old = use(tree, "new")
    assert isinstance(old, File)
    job = CopyUp(tree.union, old)
    job.copy()
    tree.go_back(1)
    job.finish()
    job.close()
    assert old.orphan
    assert tree.names() == [b"a", b"a2", b"b", b"d"]


def test_a_copy_up_that_was_begun_before_of_a_file_that_stays_goes_to_the_new_upper(tree: Tree) -> None:
    node = use(tree, "b")
    assert isinstance(node, File)
    job = CopyUp(tree.union, node)
    job.copy()
    tree.go_back(1)
    job.finish()
    job.close()
    assert tree.node("b") is node
    write(tree, node, b"B")
    assert (tree.upper / "b").read_bytes() == b"B"


def test_a_directory_that_is_no_more_is_like_a_removed_one(tree: Tree) -> None:
    tree.mkdir("made")
    tree.write("made/file", b"x")
    made = use(tree, "made")
    assert isinstance(made, Directory)
    tree.go_back(1)
    touch(tree, made)
    assert made.removed
    assert tree.union.links(made, tree.union.stat(made)) == 0
    assert tree.union.lookup(made, b"file") is None
    assert tree.union.listing(made) == []
    with pytest.raises(FileNotFoundError):
        mutate.create(tree.union, made, b"another", 0o644, mutate.Owner(0, 0))


def test_a_renamed_directory_is_at_its_old_place_again(tree: Tree) -> None:
    directory, deep = use(tree, "d"), use(tree, "d/e/deep")
    assert isinstance(deep, File)
    tree.rename("d", "moved")
    tree.rename("moved/e", "moved/e2")
    tree.go_back(1)
    touch(tree, deep)  # by its descriptor, before anybody has asked for its name
    assert tree.union.path_of(deep) == b"d/e/deep"
    write(tree, deep, b"DEEP")
    assert tree.read("d/e/deep") == b"DEEP"
    assert tree.node("d") is directory
    assert tree.find("moved") is None
    assert not tree.union.table.lapsed


def test_a_working_directory_follows_its_directory(tree: Tree) -> None:
    directory = use(tree, "d/e")
    assert isinstance(directory, Directory)
    tree.rename("d", "moved")
    tree.go_back(1)
    touch(tree, directory)
    assert tree.union.path_of(directory) == b"d/e"
    assert tree.union.lookup(directory, b"deep") is tree.node("d/e/deep")


def test_a_file_that_was_deleted_is_itself_again(tree: Tree) -> None:
    node = use(tree, "d/f")
    assert isinstance(node, File)
    tree.unlink("d/f")
    tree.go_back(1)
    touch(tree, node)
    assert tree.node("d/f") is node
    assert tree.union.links(node, node.stat()) == 1


def test_names_that_were_taken_away_count_again(tree: Tree) -> None:
    node = use(tree, "a2")
    tree.unlink("a")
    assert tree.union.links(node, tree.union.stat(node)) == 1
    tree.commit()
    tree.write("b", b"B")
    gone = tree.go_back(2)
    assert tree.union.links(tree.node("a2"), tree.union.stat(node)) == 1
    gone = tree.go_back(1)
    assert gone.files == [node]
    assert tree.node("a") is tree.node("a2") is node
    assert tree.union.links(node, tree.union.stat(node)) == 2


def test_hard_links_made_since_are_gone(tree: Tree) -> None:
    node = use(tree, "b")
    assert isinstance(node, File)
    mutate.link(tree.union, node, tree.union.root, b"linked")
    tree.go_back(1)
    assert tree.find("linked") is None
    assert tree.node("b") is not node
    assert tree.union.links(tree.node("b"), tree.union.stat(tree.node("b"))) == 1


def test_goes_forward_to_what_was_given_up(tree: Tree) -> None:
    tree.write("b", b"B")
    tree.unlink("a")
    tree.mkdir("made")
    tree.write("made/file", b"x")
    tree.rename("d", "moved")
    given_up, then = tree.upper, tree.snapshot()
    old = use(tree, "b")
    tree.go_back(1)
    assert tree.read("b") == b"b"
    tree.write("b", b"another")
    tree.go_back(1, given_up)
    now = tree.snapshot()
    assert {path: found[:-1] for path, found in now.items()} == {p: found[:-1] for p, found in then.items()}
    assert tree.node("b") is old
    tree.write("b", b"C")
    assert (given_up / "b").read_bytes() == b"B"


def test_directories_that_change_are_told_of(tree: Tree) -> None:
    deep = use(tree, "d/e")
    use(tree, "d")
    tree.write("d/e/new", b"x")
    given_up = tree.upper
    gone = tree.go_back(1)
    assert {each.ino for each in gone.directories} == {1, tree.node("d").ino, deep.ino}
    gone = tree.go_back(1, given_up)
    assert {each.ino for each in gone.directories} == {1, tree.node("d").ino, deep.ino}


def test_whiteouts_and_opaque_directories(tree: Tree) -> None:
    directory = use(tree, "d")
    tree.unlink("d/f")
    tree.unlink("d/e/deep")
    tree.rmdir("d/e")
    tree.rmdir("d")
    tree.mkdir("d")
    tree.write("d/other", b"other")
    opaque = use(tree, "d")
    tree.go_back(1)
    assert tree.names("d") == [b"e", b"f"]
    assert tree.read("d/e/deep") == b"deep"
    touch(tree, opaque)
    assert isinstance(opaque, Directory)
    assert opaque.removed
    assert shown_number(tree.node("d").ino) == shown_number(directory.ino)


def test_attributes_of_a_kept_directory_are_those_of_then(tree: Tree) -> None:
    directory = use(tree, "d")
    attributes.ensure_upper(tree.union, directory)
    attributes.chmod(tree.union, directory, 0o700)
    attributes.setxattr(tree.union, directory, b"user.mark", b"1")
    tree.go_back(1)
    touch(tree, directory)
    assert tree.union.stat(directory).st_mode & 0o777 == 0o755
    assert tree.union.listxattr(directory) == []


def test_goes_back_many_times_with_a_file_of_each_time_in_use(tree: Tree) -> None:
    held = []
    for count in range(80):
        tree.write("b", b"%d" % count)
        held.append(use(tree, "b"))
        tree.go_back(1)
    assert tree.read("b") == b"b"
    assert len({node.ino for node in held}) == 80
    for count, node in enumerate(held):
        touch(tree, node)
        assert isinstance(node, File)
        assert content(tree, node) == b"%d" % count
        tree.union.forget(node, 1)
    assert not tree.union.table.lapsed
    assert not tree.union.table.twins or set(tree.union.table.twins) == {shown_number(tree.node("b").ino)}


def test_an_exchange_is_taken_back(tree: Tree) -> None:
    file, directory = use(tree, "b"), use(tree, "d")
    tree.rename("b", "d", syscalls.RENAME_EXCHANGE)
    tree.go_back(1)
    assert tree.read("b") == b"b"
    assert tree.node("d") is directory
    touch(tree, file)
    assert file.ino in tree.union.table.lapsed


def test_all_names_of_a_file_are_one_again(tree: Tree) -> None:
    (tree.lowers[0] / "d" / "a3").hardlink_to(tree.lowers[0] / "a")
    tree.commit()
    for path in ("a", "a2", "d/a3"):
        use(tree, path)
    tree.write("d/a3", b"A")
    tree.go_back(2)
    assert tree.node("a") is tree.node("a2") is tree.node("d/a3")
    node = tree.file("a2")
    mutate.link(tree.union, node, tree.union.root, b"linked")
    assert {tree.node(path) for path in ("a", "a2", "d/a3", "linked")} == {node}
    assert (tree.upper / "a").stat().st_nlink == 4


def test_a_removed_directory_stays_removed(tree: Tree) -> None:
    """The kernel has marked its inode dead: nothing is ever found in that again."""
    directory = use(tree, "d/e")
    assert isinstance(directory, Directory)
    tree.unlink("d/e/deep")
    tree.rmdir("d/e")
    tree.go_back(1)
    touch(tree, directory)
    assert directory.removed
    assert tree.node("d/e") is not directory
    assert shown_number(tree.node("d/e").ino) == directory.ino
    assert tree.read("d/e/deep") == b"deep"
    tree.go_back(1)
    assert tree.node("d/e") is not directory
