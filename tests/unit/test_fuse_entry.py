"""What the extension says of a name that nothing is known of, and when it leaves that to Python."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.fuse import wire

_wire = pytest.importorskip("layerfs.fuse._wire")
BASE = 5 << 48


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """The descriptor of an empty directory, `tmp_path`."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def plain_entry(
    directory: int, name: str, *, taken: dict[int, object] | None = None, prefix: bytes = b"user.overlay."
) -> tuple[int, int, bytes] | None:
    """Ask the extension, which the tests need, about a name on a device whose numbers begin at `BASE`."""
    assert wire.extension is not None, wire.status()
    bases = {os.fstat(directory).st_dev: BASE}
    return wire.extension.plain_entry(directory, os.fsencode(name), bases, taken or {}, prefix)


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "socket"])
def test_a_name_with_no_more_to_it_than_its_stat(tmp_path: Path, directory: int, kind: str) -> None:
    path = tmp_path / "name"
    if kind == "file":
        path.write_bytes(bytes(5000))
    elif kind == "link":
        path.symlink_to("anywhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        socket.socket(socket.AF_UNIX).bind(os.fsencode(path))
    st = path.lstat()
    found = plain_entry(directory, "name")
    assert found is not None
    ino, kind_of, entry = found
    assert (ino, kind_of) == (BASE | st.st_ino, st.st_mode & 0o170000)
    assert len(entry) == 128
    assert struct.unpack_from("=Q", entry)[0] == ino
    assert struct.unpack_from("=QQQ", entry, 40) == (ino, st.st_size, st.st_blocks)
    assert struct.unpack_from("=IIII", entry, 100) == (st.st_mode, st.st_nlink, st.st_uid, st.st_gid)


@pytest.mark.parametrize("why", ["directory", "taken", "device not known"])
def test_what_python_has_to_look_at(tmp_path: Path, directory: int, why: str) -> None:
    path = tmp_path / "name"
    path.mkdir() if why == "directory" else path.touch()
    if why == "device not known":
        assert wire.extension is not None
        assert wire.extension.plain_entry(directory, b"name", {}, {}, b"user.overlay.") is None
    else:
        taken: dict[int, object] = {BASE | path.stat().st_ino: None} if why == "taken" else {}
        assert plain_entry(directory, "name", taken=taken) is None


@pytest.mark.root
def test_private_attributes(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "name"
    path.touch()
    with pytest.raises(OSError, match="No such file"):
        plain_entry(directory, "missing")
    for name in ("user.a", "user.overlays", "user.b.overlay.c", "trusted.overlay.metacopy"):
        os.setxattr(path, name, b"x")
        assert plain_entry(directory, "name") is not None, name
    os.setxattr(path, "user.overlay.metacopy", b"")
    assert plain_entry(directory, "name") is None
    assert plain_entry(directory, "name", prefix=b"") is not None
    os.removexattr(path, "user.overlay.metacopy")
    for number in range(30):  # more names than it looks through
        os.setxattr(path, f"user.{number:040}", b"")
    assert plain_entry(directory, "name") is None


@pytest.mark.root
def test_what_was_known_of_a_number_is_forgotten_with_a_new_name(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "name"
    path.touch()
    assert wire.extension is not None
    library = ctypes.CDLL(_wire.__file__)
    wire.extension.know(8)

    def says_there_is_none(ino: int) -> bool:
        body = struct.pack("=II", 20, 0) + b"security.capability\0"
        header = struct.pack("=IIQQIIIHH", 40 + len(body), 22, 1, ino, 0, 0, 0, 0, 0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return bool(library.answer_known(ours.fileno(), header, body, ctypes.c_size_t(len(body))))

    assert not says_there_is_none(1)  # somebody asks, so lookups look from now on
    found = plain_entry(directory, "name")
    assert found is not None
    assert says_there_is_none(found[0])
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    assert plain_entry(directory, "name") is not None
    assert not says_there_is_none(found[0])


@pytest.mark.parametrize(
    "time", [0, -1, -(2**31) * 10**9 - 1, 2**63 - 1, 2**63, -(2**63) - 1, (2**63 - 1) * 10**9]
)
def test_a_time_may_have_more_bits_than_64_of_nanoseconds(tmp_path: Path, time: int) -> None:
    assert wire.extension is not None
    more = {"st_blksize": 4096, "st_rdev": 0, "st_atime_ns": time, "st_mtime_ns": time, "st_ctime_ns": time}
    st = os.stat_result(list(tmp_path.stat()), more)
    answer = wire.extension.direntplus((7, st, 1, 0), 7, 3, 0, b"name")
    seconds, nanoseconds = divmod(time, 10**9)
    assert struct.unpack_from("=qqq", answer, 40 + 24) == (seconds,) * 3
    assert struct.unpack_from("=III", answer, 40 + 48) == (nanoseconds,) * 3


@pytest.mark.parametrize("length", [1, 8, 9, 255])
def test_direntplus(length: int) -> None:
    assert wire.extension is not None
    name = b"n" * length
    entry = b"entry".ljust(128, b"-")
    record = wire.extension.direntplus(entry, 7, 1 << 62, 0o100644, name)
    assert len(record) % 8 == 0
    assert record[:128] == entry
    assert wire.extension.direntplus(None, 7, 1 << 62, 0o100644, name) == bytes(128) + record[128:]
    record = record[128:]
    assert record == (struct.pack("=QQII", 7, 1 << 62, length, 8) + name).ljust(len(record), b"\0")
    assert len(record) - 24 - length < 8
    with pytest.raises(ValueError, match="256 bytes"):
        wire.extension.direntplus(None, 7, 3, 0, b"n" * 256)
