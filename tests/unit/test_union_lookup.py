"""What a name means in a stack of layers, in every on-disk form."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.union.marking import TRUSTED, USER, Marking
from tests.unit.union_support import Tree

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path, lowers=3)
    yield made
    made.close()
    subprocess.run(["rm", "-rf", *made.lowers], check=True)  # trees too deep for pytest's own clearing


def put(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def test_upper_layers_hide_lower_ones_and_directories_merge(tree: Tree) -> None:
    put(tree.lowers[0] / "d", a="bottom", b="bottom")
    put(tree.lowers[1] / "d", b="middle", c="middle")
    put(tree.upper / "d", c="upper")
    tree.open()
    assert tree.names("d") == [b"a", b"b", b"c"]
    assert [tree.read(f"d/{name}") for name in "abc"] == [b"bottom", b"middle", b"upper"]


def test_file_over_directory_and_directory_over_file(tree: Tree) -> None:
    put(tree.lowers[0] / "x", inside="no")
    put(tree.lowers[0], y="no")
    put(tree.lowers[1], x="file")
    put(tree.lowers[1] / "y", inside="yes")
    put(tree.lowers[2] / "x", other="top")
    tree.open()
    assert tree.names("x") == [b"other"]  # the file in between cuts off what is below it
    assert tree.names("y") == [b"inside"]


def test_device_whiteout_hides_and_is_not_listed(tree: Tree) -> None:
    put(tree.lowers[0], a="1", b="2")
    whiteout(tree.lowers[1] / "a")
    tree.open()
    assert tree.names() == [b"b"]
    assert tree.find("a") is None


def test_name_above_a_whiteout_shows_again(tree: Tree) -> None:
    put(tree.lowers[0], a="old")
    whiteout(tree.lowers[1] / "a")
    put(tree.lowers[2], a="new")
    assert tree.open().read("a") == b"new"


def test_directory_above_a_whiteout_does_not_merge_with_what_is_below_it(tree: Tree) -> None:
    put(tree.lowers[0] / "d", old="1")
    whiteout(tree.lowers[1] / "d")
    put(tree.lowers[2] / "d", new="2")
    assert tree.open().names("d") == [b"new"]


@pytest.mark.parametrize("marking", [TRUSTED, USER])
@pytest.mark.parametrize(
    "attribute", ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"]
)
def test_opaque_attribute(tree: Tree, attribute: str, marking: Marking) -> None:
    put(tree.lowers[0] / "d", old="1")
    put(tree.lowers[1] / "d", new="2")
    os.setxattr(tree.lowers[1] / "d", attribute, b"y")
    own = attribute.encode().startswith(marking.private)
    assert tree.open(marking=marking).names("d") == ([b"new"] if own else [b"new", b"old"])


def test_xattr_whiteouts_count_only_in_marked_directories(tree: Tree) -> None:
    put(tree.lowers[0] / "d", gone="1", stays="2")
    put(tree.lowers[1] / "d", gone="", stays="")
    for name in ("gone", "stays"):
        os.setxattr(tree.lowers[1] / "d" / name, "trusted.overlay.whiteout", b"y")
    assert tree.open().names("d") == [b"gone", b"stays"]
    os.removexattr(tree.lowers[1] / "d/stays", "trusted.overlay.whiteout")
    os.setxattr(tree.lowers[1] / "d", "trusted.overlay.opaque", b"x")
    assert tree.open().names("d") == [b"stays"]


def test_aufs_whiteouts_in_layers_of_others(tree: Tree) -> None:
    put(tree.lowers[0] / "d", gone="1", stays="2", again="3")
    put(tree.lowers[0] / "e", old="1")
    put(tree.lowers[1] / "d", again="4", **{".wh.gone": "", ".wh.again": ""})
    put(tree.lowers[1] / "e", new="2", **{".wh..wh..opq": ""})
    tree.open(aufs=True)
    assert tree.names("d") == [b"again", b"stays"]
    assert tree.read("d/again") == b"4"
    assert tree.names("e") == [b"new"]


def test_aufs_names_are_plain_files_in_layers_of_our_own(tree: Tree) -> None:
    put(tree.lowers[0], x="1")
    put(tree.lowers[1], **{".wh.x": "file"})
    assert tree.open().names() == [b".wh.x", b"x"]


@pytest.mark.parametrize("redirect", [b"/a/b", b"b"])
def test_redirects(tree: Tree, redirect: bytes) -> None:
    put(tree.lowers[0] / "a/b", below="1")
    put(tree.lowers[1] / "a/c", above="2")
    whiteout(tree.lowers[1] / "a/b")
    os.setxattr(tree.lowers[1] / "a/c", "trusted.overlay.redirect", redirect)
    tree.open()
    assert tree.names("a") == [b"c"]
    assert tree.names("a/c") == [b"above", b"below"]


def test_redirects_through_two_layers(tree: Tree) -> None:
    put(tree.lowers[0] / "one", below="1")
    put(tree.lowers[1] / "two")
    whiteout(tree.lowers[1] / "one")
    os.setxattr(tree.lowers[1] / "two", "trusted.overlay.redirect", b"/one")
    put(tree.lowers[2] / "three")
    whiteout(tree.lowers[2] / "two")
    os.setxattr(tree.lowers[2] / "three", "trusted.overlay.redirect", b"/two")
    tree.open()
    assert tree.names() == [b"three"]
    assert tree.names("three") == [b"below"]


@pytest.mark.parametrize("redirect", [b"/../../etc", b"..", b"", b"/", b"a/b", b"/a//b"])
def test_redirects_that_lead_elsewhere_are_refused(tree: Tree, redirect: bytes) -> None:
    put(tree.lowers[1] / "d")
    os.setxattr(tree.lowers[1] / "d", "trusted.overlay.redirect", redirect)
    tree.open()
    with pytest.raises(OSError) as caught:
        tree.find("d")
    assert caught.value.errno == errno.EINVAL


def test_redirect_to_what_is_not_there_merges_with_nothing(tree: Tree) -> None:
    put(tree.lowers[1] / "d", own="1")
    os.setxattr(tree.lowers[1] / "d", "trusted.overlay.redirect", b"/nowhere")
    assert tree.open().names("d") == [b"own"]


def test_symbolic_links_in_a_layer_are_never_followed(tree: Tree) -> None:
    put(tree.top / "outside", secret="1")
    (tree.lowers[0] / "link").symlink_to(tree.top / "outside")
    put(tree.lowers[1] / "d")
    os.setxattr(tree.lowers[1] / "d", "trusted.overlay.redirect", b"/link")
    tree.open()
    assert stat.S_ISLNK(tree.file("link").kind)
    assert tree.names("d") == []


def test_directory_swapped_for_a_link_under_the_mount_is_not_followed(tree: Tree) -> None:
    put(tree.top / "outside", secret="1")
    put(tree.lowers[0] / "d", inside="1")
    tree.open()
    directory = tree.directory("d")
    tree.union.directories.trim(0)
    (tree.lowers[0] / "d").rename(tree.lowers[0] / "moved")
    (tree.lowers[0] / "d").symlink_to(tree.top / "outside")
    with pytest.raises(OSError) as caught:
        tree.union.lookup(directory, b"secret")
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


def test_names_are_bytes(tree: Tree) -> None:
    name = b"caf\xe9 \xff" + b"x" * 240
    (tree.lowers[0] / os.fsdecode(name)).write_text("1")
    tree.open()
    assert tree.names() == [name]
    assert tree.file(name).is_regular


def test_inode_numbers_survive_a_remount_and_are_unique(tree: Tree) -> None:
    put(tree.lowers[0] / "d", a="1", b="2")
    put(tree.lowers[1] / "d", c="3")
    before = tree.open().snapshot()
    assert tree.open().snapshot() == before
    numbers = [entry[-1] for entry in before.values()]
    assert len(set(numbers)) == len(numbers)


def test_deep_tree_with_few_descriptors(tree: Tree) -> None:
    path = "/".join(["d"] * 1500)
    fd = os.open(tree.lowers[0], os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    tree.open()
    assert tree.names(path) == []
    tree.union.directories.trim(10)
    assert len(tree.union.directories) <= 10
    node = tree.directory(path)
    tree.union.listings.drop(node)
    assert tree.union.listing(node) == []


def test_cookies_do_not_move_when_names_come_and_go(tree: Tree) -> None:
    put(tree.lowers[0], **{f"n{number}": "" for number in range(500)})
    tree.open()
    before = {name: cookie for cookie, name in tree.union.listing(tree.union.root)}
    for number in range(0, 500, 3):
        tree.unlink(f"n{number}")
        tree.write(f"new{number}", b"")
    after = {name: cookie for cookie, name in tree.union.listing(tree.union.root)}
    assert {name: after[name] for name in after if name in before} == {
        name: before[name] for name in after if name in before
    }
    assert min(after.values()) > 2
    assert max(after.values()) < 1 << 63
    assert len(set(after.values())) == len(after)
