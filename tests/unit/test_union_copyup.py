"""Copy-up, hard links, inode numbers, and the switch of the upper."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.union import attributes, mutate
from layerfs.union.copyup import CopyUp, copy_up
from layerfs.union.upper import Upper
from tests.unit.union_support import Tree

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    made.close()


def test_everything_about_a_file_is_copied(tree: Tree) -> None:
    path = tree.lowers[0] / "f"
    path.write_bytes(os.urandom(300_000))
    os.chown(path, 12, 34)
    path.chmod(0o6751)
    os.setxattr(path, "user.note", b"\x00value")
    os.setxattr(path, "security.capability", b"\x01\x00\x00\x02" + b"\x00" * 16)
    os.setxattr(path, "trusted.overlay.opaque", b"y")
    os.utime(path, ns=(1_111_111_111_111_111_111, 1_222_222_222_222_222_222))
    os.utime(tree.lowers[0], ns=(1, 1_333_333_333_333_333_333))
    os.utime(tree.upper, ns=(1, 1_333_333_333_333_333_333))
    tree.open()
    copy_up(tree.union, tree.file("f"))
    copy = tree.upper / "f"
    old, new = path.stat(), copy.stat()
    for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_atime_ns"):
        assert getattr(old, field) == getattr(new, field), field
    assert copy.read_bytes() == path.read_bytes()
    assert os.getxattr(copy, "user.note") == b"\x00value"
    assert os.getxattr(copy, "security.capability") == os.getxattr(path, "security.capability")
    assert "trusted.overlay.opaque" not in os.listxattr(copy)
    assert tree.upper.stat().st_mtime_ns == 1_333_333_333_333_333_333


def test_holes_stay_holes(tree: Tree) -> None:
    with (tree.lowers[0] / "sparse").open("wb") as sparse:
        sparse.write(b"start")
        sparse.seek(40 << 20)
        sparse.write(b"middle")
        sparse.truncate(90 << 20)
    tree.open()
    copy_up(tree.union, tree.file("sparse"))
    st = (tree.upper / "sparse").stat()
    assert st.st_size == 90 << 20
    assert st.st_blocks * 512 < 1 << 20
    assert (tree.upper / "sparse").read_bytes() == (tree.lowers[0] / "sparse").read_bytes()


def test_copy_of_a_file_that_is_cut_takes_only_what_stays(tree: Tree) -> None:
    (tree.lowers[0] / "f").write_bytes(b"x" * 100_000)
    tree.open()
    job = CopyUp(tree.union, tree.file("f"), 10)
    try:
        job.copy()
        job.finish()
    finally:
        job.close()
    assert (tree.upper / "f").read_bytes() == b"x" * 10


def test_links_devices_and_fifos_are_copied_as_what_they_are(tree: Tree) -> None:
    (tree.lowers[0] / "link").symlink_to("target")
    os.mkfifo(tree.lowers[0] / "fifo", 0o604)
    tree.open()
    for name in ("link", "fifo"):
        attributes.ensure_upper(tree.union, tree.node(name))
        attributes.chown(tree.union, tree.node(name), 5, 6)
    assert os.readlink(tree.upper / "link") == "target"
    assert (tree.upper / "fifo").is_fifo()
    assert (tree.upper / "link").lstat().st_uid == 5


def test_failed_copy_up_changes_nothing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.lowers[0] / "d").mkdir()
    (tree.lowers[0] / "d/f").write_bytes(b"x" * 10_000)
    tree.open()
    before = tree.snapshot()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    assert tree.union.upper is not None
    for where, call in (
        (tree.union.upper, "make_durable"),
        (os, "link"),
        (os, "utime"),
        (os, "chown"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, call, full)
            with pytest.raises(OSError) as caught:
                copy_up(tree.union, tree.file("d/f"))
        assert caught.value.errno == errno.ENOSPC
        assert tree.snapshot() == before
        assert not list((tree.work / "work").iterdir())
        assert not (tree.upper / "d/f").exists()
    copy_up(tree.union, tree.file("d/f"))
    assert tree.snapshot() == before


def test_hard_links_survive_copy_up_whoever_has_looked_them_up(tree: Tree) -> None:
    low = tree.lowers[0]
    (low / "a").write_text("one")
    (low / "d").mkdir()
    os.link(low / "a", low / "d/b")
    os.link(low / "a", low / "c")
    tree.open()
    tree.write("a", b"ONE")  # d/b and c have not been looked up
    assert tree.read("d/b") == tree.read("c") == b"ONE"
    assert len({(tree.upper / name).stat().st_ino for name in ("a", "d/b", "c")}) == 1
    tree.open()
    tree.write("c", b"TWO")
    assert tree.read("a") == tree.read("d/b") == b"TWO"
    assert tree.file("a") is tree.file("d/b")


def test_hard_link_that_was_deleted_does_not_come_back_with_a_copy_up(tree: Tree) -> None:
    low = tree.lowers[0]
    (low / "a").write_text("one")
    os.link(low / "a", low / "b")
    tree.open()
    tree.file("a").references += 1
    tree.unlink("b")
    assert tree.union.links(tree.file("a"), tree.file("a").stat()) == 1
    tree.write("a", b"ONE")
    assert tree.names() == [b"a"]
    assert (tree.upper / "a").stat().st_nlink == 1


def test_hard_links_below_renamed_directories_survive_copy_up(tree: Tree) -> None:
    low = tree.lowers[0]
    (low / "a/b").mkdir(parents=True)
    (low / "one").write_text("old")
    os.link(low / "one", low / "a/b/two")
    os.link(low / "one", low / "three")
    tree.open()
    tree.rename("a", "z")
    tree.rename("z/b", "y")
    tree.commit()
    tree.rename("y", "z/x")
    tree.open()
    tree.write("three", b"new")
    assert tree.read("one") == tree.read("z/x/two") == b"new"


def test_inode_numbers_stay_over_copy_up_rename_commit_and_remount(tree: Tree) -> None:
    (tree.lowers[0] / "d").mkdir()
    (tree.lowers[0] / "d/f").write_text("1")
    tree.open()
    file, directory = tree.file("d/f").ino, tree.directory("d").ino

    def numbers(path: str) -> tuple[int, int]:
        return tree.file(f"{path}/f").ino, tree.directory(path).ino

    tree.write("d/f", b"2")
    assert numbers("d") == (file, directory)
    tree.rename("d", "e")
    assert numbers("e") == (file, directory)
    tree.open()
    assert numbers("e") == (file, directory)
    tree.commit()
    tree.write("e/f", b"3")
    assert numbers("e") == (file, directory)
    tree.open()
    assert numbers("e") == (file, directory)


def test_switch_seals_what_was_written_and_goes_on(tree: Tree) -> None:
    (tree.lowers[0] / "f").write_text("0")
    tree.open()
    tree.mkdir("d")
    tree.write("d/new", b"1")
    tree.write("f", b"1")
    sealed = tree.upper
    tree.commit()
    before = tree.snapshot()
    tree.write("d/new", b"2")
    tree.write("f", b"2")
    tree.unlink("d/new")
    tree.write("d/other", b"3")
    assert (sealed / "d/new").read_bytes() == (sealed / "f").read_bytes() == b"1"
    assert sorted(os.listdir(sealed / "d")) == ["new"]
    after = tree.snapshot()
    assert before[b"/d"][-1] == after[b"/d"][-1]
    tree.open()
    assert tree.snapshot() == after


def test_file_open_over_a_switch_is_copied_before_it_is_written(tree: Tree) -> None:
    tree.open()
    tree.write("f", b"before")
    node = tree.file("f")
    fd = tree.union.data(node, write=True)
    tree.commit()
    assert fd >= 0
    tree.union.drop_data(node)
    with pytest.raises(OSError):
        tree.union.data(node, write=True)
    tree.write("f", b"after!")
    assert (tree.lowers[-1] / "f").read_bytes() == b"before"
    assert (tree.upper / "f").read_bytes() == b"after!"


def test_unlinked_file_stays_private_over_a_switch(tree: Tree) -> None:
    tree.open()
    tree.write("f", b"data")
    node = tree.file("f")
    node.references += 1
    tree.unlink("f")
    tree.commit()
    assert tree.union.in_upper(node)
    os.pwrite(tree.union.data(node, write=True), b"D", 0)
    assert os.pread(tree.union.data(node), 10, 0) == b"Data"
    assert not list(tree.lowers[-1].iterdir())


def test_copy_up_under_way_over_a_switch_lands_in_the_new_upper(tree: Tree) -> None:
    (tree.lowers[0] / "f").write_text("0")
    tree.open()
    job = CopyUp(tree.union, tree.file("f"))
    try:
        job.copy()
        tree.commit()
        job.finish()
    finally:
        job.close()
    assert not list(tree.lowers[-1].iterdir())
    assert (tree.upper / "f").read_bytes() == b"0"


def test_file_unlinked_while_its_copy_is_under_way(tree: Tree) -> None:
    (tree.lowers[0] / "f").write_text("0")
    tree.open()
    node = tree.file("f")
    node.references += 1
    job = CopyUp(tree.union, node)
    try:
        job.copy()
        tree.unlink("f")
        job.finish()
    finally:
        job.close()
    os.pwrite(tree.union.data(node, write=True), b"1", 0)
    assert tree.names() == []
    assert tree.open().names() == []


def test_an_upper_serves_one_union_at_a_time(tree: Tree) -> None:
    tree.open()
    with pytest.raises(OSError) as caught:
        Upper(tree.upper, tree.work)
    assert caught.value.errno == errno.EBUSY


def test_upper_and_work_must_lie_side_by_side(tree: Tree) -> None:
    (tree.upper / "work").mkdir()
    with pytest.raises(OSError) as caught:
        Upper(tree.upper, tree.upper / "work")
    assert caught.value.errno == errno.EINVAL


def test_what_a_crash_left_in_the_work_directory_goes_at_the_next_start(tree: Tree) -> None:
    (tree.work / "work/deep").mkdir(parents=True)
    (tree.work / "work/#1").write_text("half a copy")
    (tree.work / "mine").write_text("not ours")
    tree.open()
    assert not list((tree.work / "work").iterdir())
    assert (tree.work / "mine").exists()


def test_link_to_a_lower_file_over_a_whiteout(tree: Tree) -> None:
    (tree.lowers[0] / "a").write_text("a")
    (tree.lowers[0] / "b").write_text("b")
    tree.open()
    tree.unlink("b")
    mutate.link(tree.union, tree.file("a"), tree.union.root, b"b")
    assert tree.open().read("b") == b"a"
