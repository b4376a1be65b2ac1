"""Changing the union: what it looks like afterwards, and what that leaves on disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.union import attributes, mutate, syscalls
from layerfs.union.marking import USER, Trust
from layerfs.union.mutate import Owner
from layerfs.union.upper import Upper
from tests.unit.union_support import ME, Tree

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    (made.lowers[0] / "f").write_text("lower")
    (made.lowers[0] / "d/sub").mkdir(parents=True)
    (made.lowers[0] / "d/x").write_text("x")
    (made.lowers[0] / "d/sub/y").write_text("y")
    made.open()
    yield made
    made.union.close()


def is_whiteout(path: Path) -> bool:
    st = path.lstat()
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def errno_of(call: object, *arguments: object) -> int | None:
    assert callable(call)
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno


def assert_same_after_reopening(tree: Tree) -> None:
    """What the nodes say now is what the disk says."""
    before = tree.snapshot()
    tree.open()
    assert tree.snapshot() == before  # of the disk, of listings made anew
    assert {path.name for path in (tree.work / "work").iterdir()} <= {"whiteout"}


def test_create_write_and_read(tree: Tree) -> None:
    tree.write("new", b"data")
    assert tree.read("new") == b"data"
    assert (tree.upper / "new").read_bytes() == b"data"
    assert_same_after_reopening(tree)


def test_an_upper_made_ahead_gets_what_has_become_of_the_root_since(tree: Tree) -> None:
    os.chmod(tree.upper, 0o755)
    ahead, work = tree.top / "ahead", tree.top / "ahead-work"
    ahead.mkdir(mode=0o755)
    work.mkdir()
    os.setxattr(ahead, "user.removed", b"since")
    os.setxattr(ahead, "user.kept", b"old")
    os.setxattr(tree.upper, "user.kept", b"new")
    os.chmod(tree.upper, 0o1711)
    os.utime(tree.upper, ns=(1, 2))
    new = Upper(ahead, work)
    assert tree.union.match_root(new)
    assert {name: os.getxattr(ahead, name) for name in os.listxattr(ahead)} == {"user.kept": b"new"}
    assert (stat.S_IMODE(ahead.stat().st_mode), ahead.stat().st_mtime_ns) == (0o1711, 2)
    os.utime(tree.upper, ns=(3, 4))
    assert not tree.union.match_root(new)
    assert ahead.stat().st_mtime_ns == 4
    new.close()


def test_create_in_a_lower_directory_copies_up_the_directories_alone(tree: Tree) -> None:
    (tree.lowers[0] / "d/sub").chmod(0o2750)
    os.chown(tree.lowers[0] / "d/sub", 12, 34)
    os.utime(tree.lowers[0] / "d", ns=(1, 1234567890123456789))
    tree.write("d/sub/new", b"1")
    assert sorted(path.name for path in (tree.upper / "d/sub").iterdir()) == ["new"]
    st = (tree.upper / "d/sub").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o2750, 12, 34)
    assert (tree.upper / "d").stat().st_mtime_ns == 1234567890123456789
    assert_same_after_reopening(tree)


def test_create_takes_owner_and_setgid_group(tree: Tree) -> None:
    tree.mkdir("g", 0o755)
    attributes.chown(tree.union, tree.node("g"), -1, 77)
    attributes.chmod(tree.union, tree.node("g"), 0o2777)
    node, st = mutate.create(tree.union, tree.directory("g"), b"f", 0o640, Owner(5, 6))
    assert (st.st_mode & 0o7777, node.stat().st_uid, node.stat().st_gid) == (0o640, 5, 77)
    sub, _ = mutate.mkdir(tree.union, tree.directory("g"), b"s", 0o700, Owner(5, 6))
    st = tree.union.stat(sub)
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o2700, 5, 77)


def test_special_files(tree: Tree) -> None:
    root = tree.union.root
    fifo, _ = mutate.mknod(tree.union, root, b"fifo", stat.S_IFIFO | 0o620, 0, Owner(3, 4))
    device, st = mutate.mknod(tree.union, root, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), ME)
    link, _ = mutate.symlink(tree.union, root, b"link", b"some/where", Owner(3, 4))
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert fifo.stat().st_uid == 3
    assert st.st_rdev == device.stat().st_rdev == os.makedev(1, 3)
    assert tree.union.readlink(link) == b"some/where"
    assert link.stat().st_gid == 4
    assert_same_after_reopening(tree)


def test_a_device_that_would_be_a_whiteout_is_refused(tree: Tree) -> None:
    assert errno_of(mutate.mknod, tree.union, tree.union.root, b"w", stat.S_IFCHR, 0, ME) == errno.EPERM


def test_existing_names_are_not_taken_again(tree: Tree) -> None:
    tree.write("up", b"")
    for name in ("f", "d", "up"):
        assert errno_of(tree.mkdir, name) == errno.EEXIST
        assert errno_of(mutate.create, tree.union, tree.union.root, name.encode(), 0o600, ME) == errno.EEXIST


def test_unlink_leaves_a_whiteout_only_where_something_is_below(tree: Tree) -> None:
    tree.write("up", b"")
    tree.unlink("up")
    tree.unlink("f")
    assert not (tree.upper / "up").exists()
    assert is_whiteout(tree.upper / "f")
    assert tree.names() == [b"d"]
    assert_same_after_reopening(tree)


def test_unlink_of_a_copied_up_file(tree: Tree) -> None:
    tree.write("f", b"changed")
    tree.unlink("f")
    assert is_whiteout(tree.upper / "f")
    assert_same_after_reopening(tree)


def test_create_over_a_whiteout(tree: Tree) -> None:
    tree.unlink("f")
    tree.write("f", b"again")
    assert (tree.upper / "f").read_bytes() == b"again"
    assert_same_after_reopening(tree)


def test_directory_over_a_whiteout_is_opaque(tree: Tree) -> None:
    for name in ("d/sub/y", "d/x"):
        tree.unlink(name)
    tree.rmdir("d/sub")
    tree.rmdir("d")
    assert is_whiteout(tree.upper / "d")
    tree.mkdir("d")
    assert tree.names("d") == []
    assert os.getxattr(tree.upper / "d", "trusted.overlay.opaque") == b"y"
    assert_same_after_reopening(tree)


def test_rmdir_wants_an_empty_directory(tree: Tree) -> None:
    assert errno_of(tree.rmdir, "d") == errno.ENOTEMPTY
    assert errno_of(tree.rmdir, "f") == errno.ENOTDIR
    assert errno_of(tree.unlink, "d") == errno.EISDIR
    assert errno_of(tree.unlink, "nothing") == errno.ENOENT


def test_unlinked_file_stays_readable_and_writable_while_referred_to(tree: Tree) -> None:
    for name in ("f", "new"):
        tree.write("new", b"lower")
        node = tree.file(name)
        node.references += 1
        tree.unlink(name)
        assert os.pread(tree.union.data(node), 10, 0) == b"lower"
        attributes.ensure_upper(tree.union, node)
        os.pwrite(tree.union.data(node, write=True), b"L", 0)
        assert os.pread(tree.union.data(node), 10, 0) == b"Lower"
        assert tree.union.links(node, node.stat()) == 0
        tree.union.forget(node, 1)
        assert node.ino not in tree.union.table.nodes
    assert (tree.lowers[0] / "f").read_bytes() == b"lower"


def test_removed_directory_stays_while_referred_to(tree: Tree) -> None:
    directory = tree.mkdir("gone")
    directory.references += 1
    tree.rmdir("gone")
    tree.union.directories.trim(0)
    assert tree.union.listing(directory) == []
    assert tree.union.links(directory, tree.union.stat(directory)) == 0
    assert errno_of(mutate.create, tree.union, directory, b"x", 0o600, ME) == errno.ENOENT


def test_link(tree: Tree) -> None:
    node = tree.file("f")
    ino = node.ino
    st = mutate.link(tree.union, node, tree.directory("d"), b"also")
    assert st.st_nlink == 2
    tree.write("d/also", b"LOWER")
    assert tree.read("f") == b"LOWER"
    assert tree.file("d/also").ino == ino
    tree.unlink("f")
    tree.write("d/also", b"12345")
    assert tree.read("d/also") == b"12345"
    mutate.link(tree.union, tree.file("d/also"), tree.union.root, b"f")  # over the whiteout
    assert tree.read("f") == b"12345"
    assert_same_after_reopening(tree)


def test_rename_of_files_in_all_combinations(tree: Tree) -> None:
    tree.write("up", b"up")
    tree.rename("up", "up2")
    tree.rename("f", "f2")
    assert is_whiteout(tree.upper / "f")
    tree.rename("d/x", "f")  # a lower file over a whiteout
    assert tree.read("f") == b"x"
    tree.rename("up2", "f2")  # over a file
    assert tree.read("f2") == b"up"
    assert tree.names() == [b"d", b"f", b"f2"]
    assert_same_after_reopening(tree)


def test_rename_of_a_lower_directory_is_a_redirect(tree: Tree) -> None:
    tree.rename("d", "e")
    assert is_whiteout(tree.upper / "d")
    assert os.getxattr(tree.upper / "e", "trusted.overlay.redirect") == b"/d"
    assert tree.names("e") == [b"sub", b"x"]
    tree.rename("e/sub", "sub")
    assert os.getxattr(tree.upper / "sub", "trusted.overlay.redirect") == b"/d/sub"
    tree.rename("e", "sub/e")
    assert tree.read("sub/e/x") == b"x"
    assert tree.read("sub/y") == b"y"
    assert_same_after_reopening(tree)


def test_redirect_counts_from_the_layers_below_the_upper(tree: Tree) -> None:
    tree.rename("d", "e")
    tree.commit()
    tree.rename("e", "g")
    assert os.getxattr(tree.upper / "g", "trusted.overlay.redirect") == b"/e"
    assert tree.read("g/sub/y") == b"y"
    assert_same_after_reopening(tree)


def test_new_directory_over_a_removed_lower_one_is_opaque(tree: Tree) -> None:
    tree.mkdir("n")
    tree.unlink("d/x")
    tree.unlink("d/sub/y")
    tree.rmdir("d/sub")
    tree.rename("n", "d")  # over a directory that holds only whiteouts
    assert tree.names("d") == []
    assert_same_after_reopening(tree)


def test_directory_over_a_whiteout_by_rename(tree: Tree) -> None:
    tree.unlink("f")
    tree.mkdir("n")
    tree.write("n/in", b"1")
    tree.rename("n", "f")
    assert tree.names("f") == [b"in"]
    assert tree.names() == [b"d", b"f"]
    assert not (tree.upper / "n").exists()
    assert_same_after_reopening(tree)


def test_lower_directory_over_an_emptied_lower_directory(tree: Tree) -> None:
    (tree.lowers[0] / "e").mkdir()
    tree.open()
    tree.rename("d", "e")
    assert tree.names() == [b"e", b"f"]
    assert tree.names("e") == [b"sub", b"x"]
    assert_same_after_reopening(tree)


def test_exchange(tree: Tree) -> None:
    tree.rename("d", "f", syscalls.RENAME_EXCHANGE)
    assert tree.names("f") == [b"sub", b"x"]
    assert tree.read("d") == b"lower"
    assert tree.read("f/sub/y") == b"y"
    assert_same_after_reopening(tree)


def test_exchange_of_two_lower_directories(tree: Tree) -> None:
    (tree.lowers[0] / "e").mkdir()
    (tree.lowers[0] / "e/z").write_text("z")
    tree.open()
    tree.rename("d", "e", syscalls.RENAME_EXCHANGE)
    assert tree.names("d") == [b"z"]
    assert tree.names("e") == [b"sub", b"x"]
    assert_same_after_reopening(tree)


def test_rename_that_may_not_be(tree: Tree) -> None:
    tree.mkdir("n")
    assert errno_of(tree.rename, "f", "n", syscalls.RENAME_NOREPLACE) == errno.EEXIST
    assert errno_of(tree.rename, "n", "d") == errno.ENOTEMPTY
    assert errno_of(tree.rename, "n", "f") == errno.ENOTDIR
    assert errno_of(tree.rename, "f", "n") == errno.EISDIR
    assert errno_of(tree.rename, "d", "d/sub/d") == errno.EINVAL
    assert errno_of(tree.rename, "nothing", "x") == errno.ENOENT
    assert errno_of(tree.rename, "f", "nothing", syscalls.RENAME_EXCHANGE) == errno.ENOENT
    assert errno_of(tree.rename, "f", "x", 0x80) == errno.EINVAL
    assert_same_after_reopening(tree)


def test_attributes_that_people_set_are_escaped_and_private_ones_hidden(tree: Tree) -> None:
    tree.mkdir("n")
    node = tree.node("n")
    attributes.setxattr(tree.union, node, b"trusted.overlay.opaque", b"y")
    attributes.setxattr(tree.union, node, b"user.note", b"1")
    assert os.getxattr(tree.upper / "n", "trusted.overlay.overlay.opaque") == b"y"
    assert tree.union.getxattr(node, b"trusted.overlay.opaque") == b"y"
    assert sorted(tree.union.listxattr(node)) == [b"trusted.overlay.opaque", b"user.note"]
    attributes.removexattr(tree.union, node, b"trusted.overlay.opaque")
    assert tree.union.listxattr(node) == [b"user.note"]
    tree.rename("d", "e")
    assert tree.union.listxattr(tree.node("e")) == []
    assert errno_of(tree.union.getxattr, tree.node("e"), b"trusted.overlay.redirect") == errno.ENODATA


def test_times_owner_and_mode(tree: Tree) -> None:
    node = tree.node("f")
    attributes.ensure_upper(tree.union, node)
    attributes.chown(tree.union, node, 7, 8)
    attributes.chmod(tree.union, node, 0o4711)
    attributes.chown(tree.union, node, 9, -1)
    attributes.utime(tree.union, node, None, 1_000_000_000_000_000_007)
    st = (tree.upper / "f").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o4711, 9, 8)
    assert st.st_mtime_ns == 1_000_000_000_000_000_007


def test_without_an_upper_nothing_changes(tree: Tree) -> None:
    from layerfs.union.layer import Layer
    from layerfs.union.view import Union

    tree.union.close()
    tree.union = Union([Layer(tree.lowers[0])])
    assert errno_of(tree.mkdir, "n") == errno.EROFS
    assert errno_of(tree.unlink, "f") == errno.EROFS
    assert errno_of(tree.rename, "f", "g") == errno.EROFS
    assert tree.read("f") == b"lower"


@pytest.mark.parametrize("redirect", [b"/elsewhere", b"/../x"])
def test_a_mark_that_is_not_followed_hinders_no_copy_of_a_file_with_a_name_behind_it(
    tmp_path: Path, redirect: bytes
) -> None:
    tree = Tree(tmp_path, lowers=2)
    below, above = tree.lowers
    (below / "dir").mkdir()
    (above / "dir").mkdir()
    (below / "file").write_text("data")
    os.link(below / "file", below / "dir/other")
    os.setxattr(above / "dir", USER.prefix + b"redirect", redirect)
    tree.open(marking=USER)
    for layer in tree.union.layers:
        layer.trust = Trust.NONE
    tree.write("file", b"more")
    assert (tree.upper / "file").read_bytes() == b"more"
    tree.union.close()


def fail(*arguments: object, **more: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    "operation",
    [
        lambda tree: tree.rmdir("d/sub"),
        lambda tree: tree.rmdir("empty"),
        lambda tree: tree.unlink("f"),
        lambda tree: tree.unlink("new"),
        lambda tree: tree.rename("new", "f"),
        lambda tree: tree.rename("d", "empty"),
    ],
    ids=["rmdir lower", "rmdir upper", "unlink lower", "unlink upper", "rename to a file", "to a directory"],
)
def test_what_failed_keeps_no_descriptor(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, operation: Callable[[Tree], None]
) -> None:
    tree.write("new", b"")
    tree.mkdir("empty")
    tree.unlink("d/sub/y")
    before = tree.snapshot()
    tree.union.trim()
    tree.union.directories.trim(0)
    open_before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as broken:
        for place, name in ((os, "rmdir"), (os, "unlink"), (os, "link"), (syscalls, "renameat2")):
            broken.setattr(place, name, fail)
        broken.setattr("layerfs.union.upper.make_whiteout", fail)
        assert errno_of(operation, tree) == errno.EIO
    tree.union.directories.trim(0)
    assert os.listdir("/proc/self/fd") == open_before
    assert tree.snapshot() == before
    operation(tree)
