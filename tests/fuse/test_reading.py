"""Looking at the merged tree: names, contents, whiteouts, opaque directories, listings."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, errno_of

pytestmark = pytest.mark.root


def whiteout(path: Path) -> None:
    """Make the whiteout *path* in a layer."""
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


@pytest.fixture(scope="module")
def merged(shared_layerfs: Layerfs) -> Path:
    """A mounted stack with a bit of everything to look at."""
    stack = Stack(shared_layerfs)
    for layer in (stack.bottom, stack.top, stack.upper):
        name = layer.name
        for directory in ("both", "opaque", "marked"):
            (layer / directory).mkdir()
            (layer / directory / f"of-{name}").write_text(f"{name}\n")
        (layer / "both/same").write_text(f"{name}\n")
    (stack.bottom / "gone").write_text("never seen")
    (stack.bottom / "gone-tree/inner").mkdir(parents=True)
    (stack.bottom / "file-over-directory/hidden").mkdir(parents=True)
    (stack.bottom / "directory-over-file").write_text("hidden")
    (stack.bottom / "back").write_text("the old one")
    for name in ("gone", "gone-tree", "back"):
        whiteout(stack.top / name)
    (stack.upper / "back").write_text("the new one")
    (stack.top / "file-over-directory").write_text("a file")
    (stack.top / "directory-over-file").mkdir()
    os.setxattr(stack.top / "opaque", "trusted.overlay.opaque", b"y")
    (stack.top / "marked/.wh..wh..opq").touch()
    (stack.bottom / "both/aufs").write_text("deleted by the file .wh.aufs")
    (stack.top / "both/.wh.aufs").touch()
    (stack.upper / "both/.wh.same").write_text("no whiteout in an upper: just a file")
    odd = os.fsencode(stack.top) + b"/odd"
    os.mkdir(odd)
    for raw in (b"\xff\xfe", b"new\nline", b"n" * 255, b"\xc3\xa9", b"back\\slash", b" "):
        with open(odd + b"/" + raw, "wb") as file:
            file.write(raw)
    (stack.bottom / "link").symlink_to("both/same")
    (stack.bottom / "large").write_bytes(bytes(range(256)) * 20_000)
    os.mkfifo(stack.bottom / "fifo", 0o640)
    os.mknod(stack.bottom / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return stack.mount()


def test_the_highest_layer_counts(merged: Path) -> None:
    assert (merged / "both/same").read_text() == "upper\n"
    assert (merged / "both/of-bottom").read_text() == "bottom\n"
    assert (merged / "both/of-top").read_text() == "top\n"
    assert (merged / "file-over-directory").read_text() == "a file"
    assert os.listdir(merged / "directory-over-file") == []


def test_a_merged_directory_lists_every_layer_once(merged: Path) -> None:
    assert sorted(os.listdir(merged / "both")) == [".wh.same", "of-bottom", "of-top", "of-upper", "same"]


@pytest.mark.parametrize("name", ["gone", "gone-tree", "gone-tree/inner", "both/aufs", "both/.wh.aufs"])
def test_a_whiteout_hides_its_name(merged: Path, name: str) -> None:
    assert errno_of(lambda: os.lstat(merged / name)) == errno.ENOENT
    assert Path(name).name not in os.listdir((merged / name).parent if "tree/" not in name else merged)


def test_a_name_made_anew_over_a_whiteout(merged: Path) -> None:
    assert (merged / "back").read_text() == "the new one"


@pytest.mark.parametrize("name", ["opaque", "marked"])
def test_an_opaque_directory_hides_what_is_below(merged: Path, name: str) -> None:
    assert sorted(os.listdir(merged / name)) == ["of-top", "of-upper"]
    assert errno_of(lambda: os.lstat(merged / name / "of-bottom")) == errno.ENOENT


def test_names_are_bytes(merged: Path) -> None:
    odd = os.fsencode(merged / "odd")
    names = os.listdir(odd)
    assert sorted(names) == sorted([b"\xff\xfe", b"new\nline", b"n" * 255, b"\xc3\xa9", b"back\\slash", b" "])
    for name in names:
        assert Path(os.fsdecode(odd + b"/" + name)).read_bytes() == name


def test_a_name_of_256_bytes_is_too_long(merged: Path) -> None:
    assert errno_of(lambda: os.lstat(merged / ("n" * 256))) == errno.ENAMETOOLONG


def test_types_and_numbers_of_a_listing_are_those_of_stat(merged: Path) -> None:
    seen = 0
    for directory, _, _ in os.walk(merged):
        with os.scandir(directory) as entries:
            for entry in entries:
                st = os.lstat(entry.path)
                assert entry.inode() == st.st_ino
                assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(st.st_mode)
                assert entry.is_symlink() == stat.S_ISLNK(st.st_mode)
                assert st.st_dev == merged.stat().st_dev
                seen += 1
    assert seen > 25


def test_special_files(merged: Path) -> None:
    assert os.readlink(merged / "link") == "both/same"
    assert (merged / "link").read_text() == "upper\n"
    fifo = os.lstat(merged / "fifo")
    assert (stat.S_ISFIFO(fifo.st_mode), stat.S_IMODE(fifo.st_mode)) == (True, 0o640)
    assert os.lstat(merged / "null").st_rdev == os.makedev(1, 3)
    with (merged / "null").open("wb") as null:  # device nodes work: dev is on for root
        assert null.write(b"x") == 1


def test_reading_at_any_offset(merged: Path) -> None:
    content = bytes(range(256)) * 20_000
    with (merged / "large").open("rb", buffering=0) as file:
        for offset, size in (
            (0, 1),
            (1, 4096),
            (4095, 2),
            (131071, 131073),
            (5_119_990, 100),
            (5_120_000, 5),
        ):
            assert os.pread(file.fileno(), size, offset) == content[offset : offset + size]
    assert (merged / "large").read_bytes() == content


def test_a_lower_file_keeps_its_access_time(stack: Stack) -> None:
    (stack.bottom / "old").write_text("old")
    os.utime(stack.bottom / "old", ns=(10**9, 10**9))
    assert (stack.mount() / "old").read_text() == "old"
    assert (stack.bottom / "old").stat().st_atime_ns == 10**9


def test_a_directory_of_20000_names_listed_while_others_come_and_go(stack: Stack) -> None:
    (stack.bottom / "big").mkdir()
    (stack.top / "big").mkdir()
    staying = set()
    for number in range(20_000):
        path = (stack.bottom if number % 2 else stack.top) / f"big/stays-{number}"
        path.touch()
        staying.add(path.name)
    big = stack.mount() / "big"
    stop = threading.Event()
    changes = 0

    def churn() -> None:
        nonlocal changes
        while not stop.is_set():
            (big / f"comes-{changes}").touch()
            if changes >= 20:
                (big / f"comes-{changes - 20}").unlink()
            changes += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(2):
            before = changes
            names = os.listdir(big)
            assert len(names) == len(set(names)), "something is there twice"
            assert staying <= set(names), "something was missed"
            assert changes > before, "nothing happened meanwhile"
    finally:
        stop.set()
        thread.join()
    assert set(os.listdir(big)) == staying | {f"comes-{number}" for number in range(changes)[-20:]}


def test_a_listing_can_be_continued_from_any_place(stack: Stack) -> None:
    """telldir and seekdir, with names deleted on the way, as `rm -r` and NFS servers do it."""
    for number in range(1200):
        (stack.bottom / f"f{number}").touch()
    mnt = stack.mount()
    seen: list[str] = []
    places: list[tuple[int, str]] = []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.telldir.argtypes = libc.readdir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    name_at = 19  # offset of d_name in struct dirent: readdir(3)
    stream = libc.opendir(os.fsencode(mnt))
    try:
        place = libc.telldir(stream)
        while entry := libc.readdir(stream):
            name = ctypes.string_at(entry + name_at).decode()
            if not name.startswith("."):
                seen.append(name)
                places.append((place, name))
                if len(seen) % 2:
                    (mnt / name).unlink()
            place = libc.telldir(stream)
        assert len(seen) == len(set(seen)) == 1200
        for place, name in places[1::200]:  # these are still there
            libc.seekdir(stream, place)
            assert ctypes.string_at(libc.readdir(stream) + name_at).decode() == name
    finally:
        libc.closedir(stream)
