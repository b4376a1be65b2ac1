"""Who a container runs as, read from images that may be hostile."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from layerfs.container.rootfs import open_inside, read_inside
from layerfs.container.users import User, find_user
from layerfs.errors import BadRequest

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
jane:x:1000:100:Jane,,,:/home/jane:/bin/sh
broken:x:one:1:::
short:x:5
homeless:x:7:7:::
"""
GROUP = """\
root:x:0:
users:x:100:jane
wheel:x:10:root,jane
audio:x:29:jane,homeless
many:x:-1:jane
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with users and groups."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", User(0, 0, (10,), "/root")),
        ("0", User(0, 0, (10,), "/root")),
        ("jane", User(1000, 100, (10, 29), "/home/jane")),
        ("1000", User(1000, 100, (10, 29), "/home/jane")),
        ("01000", User(1000, 100, (10, 29), "/home/jane")),
        ("jane:wheel", User(1000, 10, (), "/home/jane")),
        ("jane:77", User(1000, 77, (), "/home/jane")),
        ("4321", User(4321, 0, (), "/")),
        ("4321:audio", User(4321, 29, (), "/")),
        ("homeless", User(7, 7, (29,), "/")),
        ("2147483647:2147483647", User(2147483647, 2147483647, (), "/")),
    ],
)
def test_users(root: Path, wanted: str, found: User) -> None:
    assert find_user(root, wanted) == found


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("broken", "unable to find user broken"),
        ("jane:nobody", "unable to find group nobody: no matching entries in group file"),
        ("jane:", "give USER or USER:GROUP"),
        ("2147483648", "must be in the range 0 to 2147483647"),
        ("99999999999999999999999999", "unable to find user"),
        ("-1", "unable to find user -1"),
        ("jane:many", "unable to find group many"),
    ],
)
def test_unknown_users(root: Path, wanted: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        find_user(root, wanted)


def test_an_image_without_users(tmp_path: Path) -> None:
    assert find_user(tmp_path, "") == User(0, 0)
    assert find_user(tmp_path, "5:6") == User(5, 6)
    with pytest.raises(BadRequest):
        find_user(tmp_path, "root")


@pytest.mark.parametrize("link", ["/etc/users", "../../../../../../etc/users", "users", "/proc/../etc/users"])
def test_links_lead_to_places_inside(tmp_path: Path, link: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/users").write_text("inside:x:5:5:::\n")
    (tmp_path / "etc/passwd").symlink_to(link)
    assert find_user(tmp_path, "inside").uid == 5


def test_what_lies_outside_cannot_be_reached(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret:x:5:5:::\n")
    for target in (
        f"{tmp_path}/secret",
        "../../secret",
        "../../../../../../../.." + str(tmp_path / "secret"),
    ):
        (root / "etc/passwd").symlink_to(target)
        assert read_inside(root, "etc/passwd") == ""
        (root / "etc/passwd").unlink()
    assert read_inside(root, "../secret") == ""
    with pytest.raises(OSError):
        open_inside(root, "/../secret", os.O_RDONLY)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    (tmp_path / "etc/group").mkdir()
    assert find_user(tmp_path, "1:2") == User(1, 2)
    (tmp_path / "etc/passwd").unlink()
    (tmp_path / "etc/passwd").symlink_to("passwd")
    with pytest.raises(OSError):
        find_user(tmp_path, "1")
    (tmp_path / "etc/passwd").unlink()
    with (tmp_path / "etc/passwd").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadRequest, match="has more than 4 MiB"):
        find_user(tmp_path, "1")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device node")
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_device_in_an_image_is_never_opened(root: Path, kind: int) -> None:
    for name in ("passwd", "group"):
        (root / "etc" / name).unlink()
        os.mknod(root / "etc" / name, kind | 0o666, os.makedev(240, 77))
        with pytest.raises(OSError):
            os.close(os.open(root / "etc" / name, os.O_RDONLY | os.O_NONBLOCK))  # nothing drives it
    assert find_user(root, "5:6") == User(5, 6, (), "/")


def test_other_kinds_of_files_are_no_lists_of_users(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/group").unlink()
    (root / "etc/passwd").mkdir()
    os.mkfifo(root / "etc/group")
    assert find_user(root, "5:6") == User(5, 6, (), "/")


def test_parents_in_links_are_followed_while_directories_are_renamed(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "etc/passwd").rename(root / "a/users")
    (root / "etc/passwd").symlink_to("/a/b/../b/../users")
    for name in ("x", "z"):
        (root / name).mkdir()
    child = os.fork()
    if child == 0:
        while True:
            os.rename(root / "x", root / "y")
            os.rename(root / "y", root / "x")
    try:
        for _ in range(3000):  # one in 40 was refused with EAGAIN
            assert read_inside(root, "etc/passwd") == PASSWD
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
