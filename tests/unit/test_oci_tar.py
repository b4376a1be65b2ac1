"""The tar reader on its own: every format that is about, sparse files, and headers that lie."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.archive import tarformat
from layerfs.archive.holes import parts_with_data
from layerfs.archive.streams import Damaged, Feed
from layerfs.archive.tar import Kind, Member, Reader
from tests.unit.oci_support import archive

END = bytes(1024)


def members(data: bytes, *, cut: int = 1 << 20) -> list[tuple[Member, bytes]]:
    """Return the members of an archive and what they hold, reading it in pieces of *cut* bytes."""
    pieces = (data[at : at + cut] for at in range(0, len(data), cut))
    reader = Reader(Feed(pieces))
    return [(member, b"".join(iter(lambda: bytes(reader.some(100)), b""))) for member in reader]


def header(name: str = "x", size: int = 0, kind: bytes = b"0", **fields: Any) -> bytes:
    """Return one header as `tarfile` makes it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def patched(block: bytes, offset: int, value: bytes) -> bytes:
    """Return a header with other bytes somewhere, and the checksum for them."""
    changed = bytearray(block)
    changed[offset : offset + len(value)] = value
    changed[148:156] = b"        "
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """Return a pax header with these records, as they are."""
    data = b"".join(records)
    return header("pax", len(data), kind) + padded(data)


def record(key: str, value: str) -> bytes:
    rest = len(key.encode()) + len(value.encode()) + 3
    length = next(n for n in range(rest, rest + 9) if n == rest + len(str(n)))
    return f"{length} {key}={value}\n".encode()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("cut", [1, 7, 512, 100_000])
def test_formats(form: int, cut: int) -> None:
    long = "d/" * 60 + "x" * 90
    data = archive(
        ({"name": long, "mtime": 5, "uid": 7, "gid": 8, "mode": 0o4711}, b"1" * 1000),
        ({"name": "l", "type": tarfile.SYMTYPE, "linkname": "y" * 90}, b""),
        ({"name": "h", "type": tarfile.LNKTYPE, "linkname": long[:90]}, b""),
        ({"name": "d/", "type": tarfile.DIRTYPE}, b""),
        ({"name": "c", "type": tarfile.CHRTYPE, "devmajor": 5, "devminor": 1}, b""),
        form=form,
    )
    (file, content), (link, _), (hard, _), (directory, _), (device, _) = members(data, cut=cut)
    assert (file.name.decode(), file.size, content) == (long, 1000, b"1" * 1000)
    assert (file.mtime_ns, file.uid, file.gid, file.mode) == (5 * 10**9, 7, 8, 0o4711)
    assert (link.kind, link.target) == ("symlink", b"y" * 90)
    assert (hard.kind, hard.target.decode()) == ("link", long[:90])
    assert (directory.kind, directory.name.rstrip(b"/")) == ("directory", b"d")
    assert (device.kind, device.major, device.minor) == ("character", 5, 1)


def test_old_and_odd_headers() -> None:
    old = patched(header("d/"), 156, b"\0")
    old = patched(old, 257, bytes(8))
    star = patched(patched(header("name"), 345, b"prefix\0"), 508, b"tar\0")
    star = patched(patched(star, 257, b"ustar\0"), 480, b"12345678901")
    big = patched(header("big"), 108, b"\x80" + bytes(3) + (3_000_000_000).to_bytes(4, "big"))
    before = patched(header("before"), 136, b"\xff" * 12)
    label = header("volume", kind=b"V")
    with_size = header(
        "link", 700, kind=b"1", linkname="big"
    )  # old programs said sizes of what has no content
    found = members(old + label + star + big + before + with_size + END)
    assert [(member.kind, member.name) for member, _ in found] == [
        ("directory", b"d/"),
        ("file", b"prefix/name"),
        ("file", b"big"),
        ("file", b"before"),
        ("link", b"link"),
    ]
    assert found[2][0].uid == 3_000_000_000
    assert found[3][0].mtime_ns == -(10**9)


def test_pax_records() -> None:
    data = (
        pax(record("mtime", "7"), record("SCHILY.xattr.user.g", "all"), kind=b"g")
        + pax(
            record("path", "caf\u00e9\n"),
            record("mtime", "-1.25"),
            record("uid", "3000000"),
            record("SCHILY.xattr.user.a%3Db%2525%x", "\n="),
            record("SCHILY.xattr.user.empty", ""),
            record("comment", "x"),
        )
        + header("short")
        + pax(record("size", "3"))
        + header("sized", 1)
        + padded(b"abc")
        + END
    )
    (first, _), (second, content) = members(data)
    assert first.name.decode() == "caf\u00e9\n"
    assert (first.mtime_ns, first.uid) == (-1_250_000_000, 3_000_000)
    assert first.xattrs == {b"user.g": b"all", b"user.a=b%25%x": b"\n=", b"user.empty": b""}
    assert (second.name, second.mtime_ns, second.size, content) == (b"sized", 7 * 10**9, 3, b"abc")


def gnu_sparse(size: int, real: int, *parts: tuple[int, int]) -> bytes:
    block = patched(header("s", size, b"S"), 483, b"%011o\0" % real)
    for at, (offset, length) in enumerate(parts):
        block = patched(block, 386 + 24 * at, b"%011o\0%011o\0" % (offset, length))
    return block


def sparse_1_0(real: str, lines: str, data: bytes) -> bytes:
    content = padded(lines.encode()) + data
    about = pax(
        record("GNU.sparse.major", "1"),
        record("GNU.sparse.minor", "0"),
        record("GNU.sparse.name", "s"),
        record("GNU.sparse.realsize", real),
    )
    return about + header("GNUSparseFile.0/s", len(content)) + padded(content)


def sparse_0_1(size: str, parts: str, data: bytes) -> bytes:
    about = pax(record("GNU.sparse.size", size), record("GNU.sparse.map", parts))
    return about + header("s", len(data)) + padded(data)


SPARSE = {
    "old GNU": gnu_sparse(6, 100, (10, 4), (50, 2)) + padded(b"abcdef"),
    "0.1": sparse_0_1("100", "10,4,50,2", b"abcdef"),
    "1.0": sparse_1_0("100", "2\n10\n4\n50\n2\n", b"abcdef"),
    "0.0": pax(
        record("GNU.sparse.size", "100"),
        record("GNU.sparse.numblocks", "2"),
        *(
            record(f"GNU.sparse.{key}", value)
            for key, value in (("offset", "10"), ("numbytes", "4"), ("offset", "50"), ("numbytes", "2"))
        ),
    )
    + header("s", 6)
    + padded(b"abcdef"),
}


@pytest.mark.parametrize("form", SPARSE)
def test_sparse_files(form: str) -> None:
    ((member, content), (after, _)) = members(SPARSE[form] + header("after") + END)
    assert (member.name, member.size, list(member.extents or ())) == (b"s", 100, [(10, 4), (50, 2)])
    assert content == b"abcdef"
    assert after.name == b"after"


ZEROS = "0\n" * 3
LIES = {
    "overlapping parts": (gnu_sparse(6, 100, (10, 4), (12, 2)), "overlap"),
    "parts in disorder": (sparse_0_1("100", "50,2,10,4", b"abcdef"), "overlap"),
    "parts behind the end": (sparse_0_1("51", "10,4,50,2", b"abcdef"), "do not fit"),
    "more data than parts": (sparse_0_1("100", "10,4", b"abcdef"), "do not fit"),
    "less data than parts": (sparse_0_1("100", "10,4,50,20", b"abcdef"), "do not fit"),
    "a negative part": (sparse_0_1("100", "-10,4", b"abcd"), "no number"),
    "half a part": (sparse_0_1("100", "10,4,50", b"abcd"), "half a part"),
    "an enormous part": (sparse_0_1("100", "10,9223372036854775807", b"abcd"), "do not fit"),
    "a number that is too large": (sparse_0_1("9223372036854775808", "0,4", b"abcd"), "no number"),
    "a map of nothing": (sparse_1_0("100", "", b""), "no map"),
    "a map that never ends": (sparse_1_0("100", "9" * 600, b""), "cannot be read"),
    "a map with too many parts": (sparse_1_0("100", "99999999\n0\n0\n", b""), "more than .* parts"),
    "a map with negative numbers": (sparse_1_0("100", "1\n-1\n4\n", b"abcd"), "no number"),
    "a map that is cut short": (sparse_1_0("100", "200\n" + ZEROS, b""), "no map|cannot be read"),
    "repeated offsets": (
        pax(
            record("GNU.sparse.size", "9"), record("GNU.sparse.offset", "1"), record("GNU.sparse.offset", "1")
        ),
        "disorder",
    ),
    "a record without a length": (pax(b"x path=y\n"), "without a length"),
    "a record that is too long": (pax(b"99 path=y\n"), "wrong length"),
    "a record that is too short": (pax(b"5 path=y\n"), "wrong length"),
    "a record of length 0": (pax(b"0 path=y\n"), "wrong length"),
    "a record without a value": (pax(b"7 path\n"), "without a key"),
    "a record without a key": (pax(b"6 =yy\n"), "without a key"),
    "a negative length": (pax(b"-9 path=y\n"), "without a length"),
    "a long length": (pax(b"9" * 30 + b" path=y\n"), "without a length"),
    "headers and then nothing": (pax(record("path", "x")) + END, "belongs to the next member"),
    "headers and then the end": (pax(record("path", "x")), "too early"),
    "a negative size": (patched(header(), 124, b"\xff" * 12), "no number"),
    "letters for a size": (patched(header(), 124, b"12x45678901\0"), "no number"),
    "an enormous size": (patched(header(), 124, b"\x80" + b"\xff" * 11), "no number"),
    "a wrong checksum": (header()[:148] + b"0000000\0" + header()[156:], "bad checksum"),
    "a huge name": (header("././@LongLink", 1 << 21, b"L"), "larger than 1 MiB"),
    "a huge pax header": (header("pax", 1 << 40, b"x"), "larger than 1 MiB"),
    "half a header": (header()[:300], "too early"),
    "half a content": (header("x", 1000) + b"half", "too early"),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(lie: str) -> None:
    data, says = LIES[lie]
    with pytest.raises(Damaged, match=says):
        members(data)


kinds: list[Kind] = ["file", "directory", "symlink", "link", "character", "block", "fifo"]
names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        Member,
        name=names,
        kind=st.sampled_from(kinds),
        mode=st.integers(0, 0o7777),
        uid=st.integers(0, (1 << 32) - 2),
        gid=st.integers(0, (1 << 32) - 2),
        mtime_ns=st.integers(-(10**20), 10**20),
        xattrs=st.dictionaries(
            st.text("a=%.325D", min_size=1, max_size=20).map(str.encode), st.binary(max_size=50), max_size=3
        ),
        target=names,
        major=st.integers(0, 4095),
        minor=st.integers(0, (1 << 20) - 1),
    )
)
def test_what_is_written_can_be_read(member: Member) -> None:
    """By us, in every detail; by Python's reader, as far as that goes."""
    if member.kind not in ("symlink", "link"):
        member.target = b""
    if member.kind not in ("character", "block"):
        member.major = member.minor = 0
    data = tarformat.header(member) + tarformat.END
    ((found, _),) = members(data)
    found.name = found.name.removesuffix(b"/") if found.kind == "directory" else found.name
    assert found == member
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        (theirs,) = tar.getmembers()
    assert (theirs.mode, theirs.uid, theirs.gid) == (member.mode, member.uid, member.gid)


def test_large_files() -> None:
    member = Member(b"x", "file", 0o644, 0, 0, 0, size=9 << 30)
    block = tarformat.header(member)
    assert Reader(Feed(iter([block]))).__iter__().__next__().size == 9 << 30


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=8), st.integers(0, 20_000))
def test_holes(runs: list[tuple[bool, int]], offset: int) -> None:
    """What is not written is zeros; whole blocks of zeros are not written."""
    data = b"".join(bytes(length) if zero else b"x" * length for zero, length in runs)
    parts = list(parts_with_data(data, offset))
    rebuilt = bytearray(len(data))
    for start, end in parts:
        assert start < end
        rebuilt[start:end] = data[start:end]
    assert rebuilt == data
    first = -offset % 4096
    for block in range(first, len(data) - 4095, 4096):
        if data[block : block + 4096] == bytes(4096):
            assert not any(start < block + 4096 and block < end for start, end in parts)


def test_the_same_header_each_time() -> None:
    member = Member(b"x" * 200, "file", 0o644, 1, 2, 3, {b"user.b": b"2", b"user.a": b"1"})
    other = Member(b"x" * 200, "file", 0o644, 1, 2, 3, {b"user.a": b"1", b"user.b": b"2"})
    assert tarformat.header(member) == tarformat.header(other)
